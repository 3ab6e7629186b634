//! The events of one pod, one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// Gives out turns. Whoever has one waits for all that were given before.
#[derive(Default)]
pub(crate) struct Turns {
    given: u64,
    over: Arc<watch::Sender<Over>>,
}

/// Which turns are over.
#[derive(Default)]
struct Over {
    /// All below this one.
    below: u64,
    /// And these, which ended before their turn came.
    early: BTreeSet<u64>,
}

impl Turns {
    /// The next turn.
    pub fn take(&mut self) -> Turn {
        let number = self.given;
        self.given += 1;
        Turn { number, over: self.over.clone() }
    }

    /// To wait for all turns that were given, without having one.
    pub fn settled(&self) -> Settled {
        Settled { number: self.given, over: self.over.clone() }
    }
}

/// A turn; it is over when this goes.
pub(crate) struct Turn {
    number: u64,
    over: Arc<watch::Sender<Over>>,
}

impl Turn {
    /// Waits for it.
    pub async fn come(&self) {
        come(&self.over, self.number).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.over.send_modify(|over| {
            over.early.insert(self.number);
            while over.early.remove(&over.below) {
                over.below += 1;
            }
        });
    }
}

/// All turns up to some moment.
pub(crate) struct Settled {
    number: u64,
    over: Arc<watch::Sender<Over>>,
}

impl Settled {
    /// Waits until they are over.
    pub async fn come(self) {
        come(&self.over, self.number).await;
    }
}

async fn come(over: &watch::Sender<Over>, number: u64) {
    // The sender is ours: it cannot go.
    let _ = over.subscribe().wait_for(|over| over.below >= number).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn turns_come_in_the_order_in_which_they_were_given() {
        let mut turns = Turns::default();
        let seen = Mutex::new(Vec::new());
        turns.settled().come().await;
        let (one, two) = (turns.take(), turns.take());
        // One that nobody takes holds nobody up, and lets nobody past.
        drop(turns.take());
        let settled = turns.settled();
        let work = |turn: Turn, name| {
            let seen = &seen;
            async move {
                turn.come().await;
                tokio::task::yield_now().await;
                seen.lock().unwrap().push(name);
            }
        };
        let last = async {
            settled.come().await;
            seen.lock().unwrap().push("settled");
        };
        tokio::join!(last, work(two, "two"), work(one, "one"));
        assert_eq!(*seen.lock().unwrap(), ["one", "two", "settled"]);
    }
}
