//! Who is asked, what is on its way, and what is on its way out: the protocol by which no pod or container is lost
//! while a plugin joins (docs/design/nri.md). The lock is held for a look or a change, never while anybody is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::plugin::Plugin;

/// All of it. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// In the order in which they are asked.
    plugins: Vec<Arc<Plugin>>,
    last: u64,
    tickets: BTreeMap<u64, Making>,
    /// Ids of which plugins have been told that they go.
    leaving: BTreeSet<String>,
}

/// A pod or container on its way to be.
#[derive(Default)]
struct Making {
    /// All plugins that there were have been asked; who joins now waits for it to be seen.
    committed: bool,
    /// These learn of the ticket's end by seeing their senders go.
    waiting: Vec<oneshot::Sender<()>>,
}

/// Held while a pod or container is being made, until it is visible or has failed.
pub struct Ticket(Option<(Roster, u64)>);

impl Ticket {
    /// One that nobody looks at.
    pub(crate) fn none() -> Ticket {
        Ticket(None)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some((roster, number)) = &self.0 {
            roster.state().tickets.remove(number);
        }
    }
}

impl Roster {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All plugins, in the order in which they are asked.
    pub(crate) fn plugins(&self) -> Vec<Arc<Plugin>> {
        self.state().plugins.clone()
    }

    /// Begins to make something.
    pub(crate) fn begin(&self) -> Ticket {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.tickets.insert(number, Making::default());
        Ticket(Some((self.clone(), number)))
    }

    /// Those who have not been asked about it yet.
    pub(crate) fn unasked(&self, asked: &[Arc<Plugin>]) -> Vec<Arc<Plugin>> {
        self.state().plugins.iter().filter(|plugin| !is_in(plugin, asked)).cloned().collect()
    }

    /// All have been asked: from here on it is committed. `false`: there is somebody new, who has to be asked first.
    pub(crate) fn commit(&self, ticket: &Ticket, asked: &[Arc<Plugin>]) -> bool {
        let mut state = self.state();
        let all = state.plugins.iter().all(|plugin| is_in(plugin, asked));
        if all
            && let Some((_, number)) = &ticket.0
            && let Some(making) = state.tickets.get_mut(number)
        {
            making.committed = true;
        }
        all
    }

    /// Takes a plugin in, whose queue its caller holds. What comes back ends when all that it has not been asked about
    /// is visible. `None`: there are `most` already.
    pub(crate) fn join(&self, plugin: &Arc<Plugin>, most: usize) -> Option<Vec<oneshot::Receiver<()>>> {
        let mut state = self.state();
        if state.plugins.len() >= most {
            return None;
        }
        let key = |plugin: &Arc<Plugin>| (plugin.index.clone(), plugin.base.clone());
        let at = state.plugins.partition_point(|known| key(known) <= key(plugin));
        state.plugins.insert(at, plugin.clone());
        let committed = state.tickets.values_mut().filter(|making| making.committed);
        Some(
            committed
                .map(|making| {
                    let (sender, receiver) = oneshot::channel();
                    making.waiting.push(sender);
                    receiver
                })
                .collect(),
        )
    }

    /// Takes a plugin out. How many are left.
    pub(crate) fn leave(&self, plugin: &Arc<Plugin>) -> usize {
        let mut state = self.state();
        state.plugins.retain(|known| !Arc::ptr_eq(known, plugin));
        state.plugins.len()
    }

    /// Something is on its way out: whoever joins from here on is not told of it any more.
    pub(crate) fn leaving(&self, id: &str) {
        self.state().leaving.insert(id.to_owned());
    }

    /// It is gone.
    pub(crate) fn gone(&self, id: &str) {
        self.state().leaving.remove(id);
    }

    pub(crate) fn all_leaving(&self) -> BTreeSet<String> {
        self.state().leaving.clone()
    }
}

fn is_in(plugin: &Arc<Plugin>, list: &[Arc<Plugin>]) -> bool {
    list.iter().any(|known| Arc::ptr_eq(known, plugin))
}
