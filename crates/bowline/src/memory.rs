//! Memory that a burst of calls has used goes back to the node when the burst is over.
//!
//! Fewer pools for the threads (`M_ARENA_MAX`) would keep another MiB from being needed, and make calls wait for one another: pod down
//! took 4.8 ms for 3.9 (docs/performance.md).

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often is looked whether there is something to give back.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Less processor time than this between two looks is a quiet moment.
const QUIET: Duration = Duration::from_millis(100);
/// Less processor time than this since the last time leaves nothing that is worth it.
const WORKED: Duration = Duration::from_millis(300);

/// Gives back what lies free, in quiet moments after work. Without an end.
pub(crate) async fn keep_small() {
    let mut work = Work::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if work.is_over(processor_time()) {
            // The threads that serve calls need not wait for it.
            let _ = tokio::task::spawn_blocking(bowline_linux::memory::give_back).await;
        }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Tells the quiet moments after work from all others, by the processor time that the process has had.
#[derive(Debug, Default)]
struct Work {
    at_last_look: Duration,
    when_given_back: Duration,
}

impl Work {
    fn is_over(&mut self, now: Duration) -> bool {
        let quiet = now.saturating_sub(self.at_last_look) < QUIET;
        self.at_last_look = now;
        let over = quiet && now.saturating_sub(self.when_given_back) >= WORKED;
        if over {
            self.when_given_back = now;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_work() {
        let mut work = Work::default();
        // Processor time at each look, in milliseconds, and whether the moment has come.
        let looks = [
            (20, false), // started, and little done
            (30, false),
            (900, false),  // busy
            (2000, false), // busy
            (2050, true),  // over
            (2060, false), // nothing since
            (2140, false),
            (2230, false), // a little every time ..
            (2320, false),
            (2410, true), // .. adds up
            (2420, false),
        ];
        for (number, (millis, over)) in looks.into_iter().enumerate() {
            assert_eq!(work.is_over(Duration::from_millis(millis)), over, "look {number}");
        }
    }
}
