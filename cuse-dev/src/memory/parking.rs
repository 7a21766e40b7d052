//! When the helper of an mm is made, and why there is none.
//!
//! A helper takes a thread of the mm, stopped for a moment. The front end offers the calling
//! thread before a call that may pin memory ([`Mm::park`]); the thread then makes its call again
//! and finds the helper there. Once per mm.

use std::sync::Arc;

use engine::Errno;

use super::Host;
use super::helper::Helper;
use super::mm::Mm;
use crate::inject::{Tracee, Tracer};

const TRACED: &str = "the process may not be traced, or is traced by another program";
const GONE: &str = "the process is gone";
const FOREIGN: &str = "the process runs code of another architecture";
const FAILED: &str = "no helper could be made in the process";
const NOT_ASKED: &str = "no thread of the process was at hand to make a helper";

/// How often threads of one mm are stopped for a helper in vain.
const MOST_TRIES: u32 = 3;

/// The helper of one mm.
#[derive(Default)]
pub(crate) struct Parking {
    helper: Option<Arc<Helper>>,
    /// How often a thread was let go for a helper.
    tries: u32,
    /// Why there is no helper.
    why: Option<&'static str>,
    /// There will never be one.
    refused: bool,
}

impl Parking {
    /// The helper's process id.
    pub(super) fn tid(&self) -> Option<u32> {
        self.helper.as_ref().map(|helper| helper.tid())
    }

    /// Ends the helper.
    pub(super) fn end(&mut self) {
        self.why = Some(GONE);
        if let Some(helper) = self.helper.take() {
            helper.end();
        }
    }

    /// Helpers are of no use here.
    pub(super) fn refuse(&mut self, why: &'static str) {
        self.end();
        (self.why, self.refused) = (Some(why), true);
    }

    /// Whether there is one that can be used. One that somebody killed is forgotten.
    fn usable(&mut self) -> bool {
        if self.helper.as_ref().is_some_and(|helper| helper.gone()) {
            self.helper = None;
            self.why = Some(FAILED);
        }
        self.helper.is_some()
    }
}

impl Mm {
    /// The helper, or why there is none.
    pub(super) fn helper(&self) -> Result<Arc<Helper>, &'static str> {
        let mut parking = self.parking.lock();
        parking.usable();
        parking.helper.clone().ok_or(parking.why.unwrap_or(NOT_ASKED))
    }

    /// Makes the helper, if there is none, by way of the thread `tid`, which waits until `let_go`
    /// answers its call. False if `let_go` was not called.
    ///
    /// Other threads of the mm that call meanwhile wait for the outcome.
    pub(super) fn park(
        self: &Arc<Self>,
        host: &Host,
        tid: u32,
        let_go: impl FnOnce() -> Result<(), Errno> + Send + 'static,
    ) -> bool {
        let mut parking = self.parking.lock();
        if parking.refused || parking.tries >= MOST_TRIES || self.left() || parking.usable() {
            return false;
        }
        let Some(tracer) = Tracer::new() else {
            parking.why = Some(FAILED);
            return false;
        };
        let made = tracer.clone().run(move || {
            let mut answered = false;
            let stopped = Tracee::stop_waiting(tid, || {
                answered = true;
                let_go()
            });
            let made = stopped.and_then(|mut tracee| {
                let made = tracee.begin().and_then(|()| Helper::make(&tracer, &mut tracee));
                // One that died takes no helper with it.
                let _ = tracee.detach();
                made
            });
            (made, answered)
        });
        let (made, answered) = made.unwrap_or((Err(Errno::EAGAIN), false));
        parking.tries += u32::from(answered);
        match made {
            Ok(made) if host.watch.add(self, &self.pidfd, made.uffd().cloned()) => {
                parking.helper = Some(Arc::new(made));
                parking.why = None;
            }
            Ok(_) => parking.why = Some(FAILED),
            Err(error) => {
                tracing::debug!(pid = self.pid, tid, %error, "no helper for private memory");
                parking.why = Some(match error {
                    Errno::EPERM => TRACED,
                    Errno::ESRCH => GONE,
                    Errno::ENOEXEC => FOREIGN,
                    _ => FAILED,
                });
            }
        }
        answered
    }
}
