//! A reader that looks for the next request for a moment before it sleeps.
//!
//! A caller that calls again at once meets a reader that went to sleep meanwhile, mostly on another
//! processor, and waking that takes longer than the call itself. So the reader keeps looking while
//! that pays off. Where it does not, because callers come seldom, or share the reader's processor,
//! or are so many that a request is always there, it looks ever more rarely, down to once in
//! [`SELDOM`] requests. A look ends after [`LOOK`], and the reader sleeps: an idle server uses no
//! processor.

use std::time::{Duration, Instant};

use super::channel::Channel;

/// How long one look is. Waking a reader costs about half of that.
const LOOK: Duration = Duration::from_micros(20);

/// Most requests that are read without a look before.
const SELDOM: u32 = 1024;

/// When one reader looks.
#[derive(Debug)]
pub(super) struct Patience {
    /// Requests to be read without a look.
    skip: u32,
    /// How many the next look that is in vain adds.
    step: u32,
    /// Whether a caller can run at all while this thread looks.
    apart: bool,
}

impl Patience {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { skip: 0, step: 1, apart: processors > 1 }
    }

    /// Before a read of `channel`, which waits if need be.
    pub(super) fn look(&mut self, channel: &Channel) {
        if self.is_due() {
            let began = Instant::now();
            let mut waited = false;
            while !channel.has_request() {
                waited = true;
                if began.elapsed() >= LOOK {
                    return self.note(false);
                }
            }
            self.note(waited);
        }
    }

    /// Whether a look comes before this read.
    fn is_due(&mut self) -> bool {
        let due = self.apart && self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        due
    }

    /// The look found a request that was not there at once, or was for nothing.
    fn note(&mut self, paid: bool) {
        self.step = if paid { 1 } else { (self.step * 2).min(SELDOM) };
        self.skip = if paid { 0 } else { self.step };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(patience: &mut Patience, reads: u32, paid: bool) -> u32 {
        let mut looks = 0;
        for _ in 0..reads {
            if patience.is_due() {
                looks += 1;
                patience.note(paid);
            }
        }
        looks
    }

    #[test]
    fn looks_that_pay_go_on_and_others_become_rare() {
        let mut patience = Patience { skip: 0, step: 1, apart: true };
        assert_eq!(looks(&mut patience, 1000, true), 1000);
        let vain = looks(&mut patience, 2 * SELDOM, false);
        assert!((8..16).contains(&vain), "{vain} looks");
        assert_eq!(looks(&mut patience, 10 * (SELDOM + 1), false), 10);
        // One that pays is found by the next of the rare looks.
        assert!(looks(&mut patience, 2 * SELDOM, true) >= SELDOM - 1);
    }

    #[test]
    fn nobody_looks_on_the_only_processor() {
        let mut patience = Patience { skip: 0, step: 1, apart: false };
        assert_eq!(looks(&mut patience, 100, true), 0);
    }
}
