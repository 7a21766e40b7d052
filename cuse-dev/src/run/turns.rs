//! Who receives the next call: one thread at a time.
//!
//! The kernel wakes every thread that waits on a listener, for each call, so there is just one: the
//! *leader* receives a call, answers it, and receives the next. A call may take long, on a large map
//! or on memory whose faults the caller answers itself. So a *watch* looks every few milliseconds,
//! less often while nothing happens; when the leader is in the same call as at the last look, it
//! takes the lead from it and gives it to a new thread. The old leader ends with its call.
//!
//! The lead is a number: even while the leader waits, odd while it answers, one more at each step.
//! Only the leader changes an even number; an odd one is changed once, by the leader or the watch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the watch looks while calls come, and while none do.
const BUSY: Duration = Duration::from_millis(4);
const IDLE: Duration = Duration::from_millis(64);

/// The lead of one listener.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicU64);

/// What the watch saw last.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: u64,
    pause: Duration,
}

impl Turns {
    /// The leader received a call. Answers its turn, for [`Turns::answered`].
    pub(crate) fn received(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The call of `turn` is answered. False if the lead was taken meanwhile.
    pub(crate) fn answered(&self, turn: u64) -> bool {
        self.0.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A watch of these turns.
    pub(crate) fn watch(&self) -> Watch {
        Watch { seen: 0, pause: BUSY }
    }

    /// Takes the lead if `watch` finds the leader where it was at its last look. Answers whether it
    /// did, and how long to wait before the next look.
    pub(crate) fn look(&self, watch: &mut Watch) -> (bool, Duration) {
        let now = self.0.load(Ordering::Relaxed);
        let (answering, same) = (now & 1 == 1, now == watch.seen);
        let (stalled, idle) = (answering && same, !answering && same);
        watch.pause = if idle { (watch.pause * 2).min(IDLE) } else { BUSY };
        watch.seen = now;
        (stalled && self.answered(now), watch.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_goes_on_keeps_the_lead() {
        let turns = Turns::default();
        let mut watch = turns.watch();
        for _ in 0..5 {
            let turn = turns.received();
            assert!(!turns.look(&mut watch).0);
            assert!(turns.answered(turn));
        }
    }

    #[test]
    fn a_leader_that_stalls_loses_it_once() {
        let turns = Turns::default();
        let mut watch = turns.watch();
        let turn = turns.received();
        assert!(!turns.look(&mut watch).0, "the first look only notes it");
        assert!(turns.look(&mut watch).0);
        assert!(!turns.look(&mut watch).0, "the new leader waits");
        assert!(!turns.answered(turn));
        let next = turns.received();
        assert!(turns.answered(next));
    }

    #[test]
    fn the_watch_looks_less_often_while_nothing_happens() {
        let turns = Turns::default();
        let mut watch = turns.watch();
        for _ in 0..8 {
            turns.look(&mut watch);
        }
        assert_eq!(turns.look(&mut watch).1, IDLE);
        turns.received();
        assert_eq!(turns.look(&mut watch).1, BUSY);
    }
}
