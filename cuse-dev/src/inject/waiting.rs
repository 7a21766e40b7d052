//! Stopping a thread that waits for our answer.
//!
//! While a front end holds a call, nothing but death interrupts its thread. So the thread is told
//! to stop, and its call is answered with a result that it never sees: on the way out of the kernel
//! it stops. When it is let go it makes the same call again, with all its signals handled as if it
//! had only now come to it. Nothing was carried out before, so that is one call for the caller.

use std::time::Duration;

use engine::Errno;

use super::Tracee;

/// How long a thread that was let go may take to its stop, on a machine that has much else to do.
const LONG: Duration = Duration::from_secs(20);

/// The result that makes a thread call again whatever signals do, in the kernel's own numbers
/// (`ERESTARTNOINTR`).
pub const CALL_AGAIN: i32 = 513;

impl Tracee {
    /// Stops the thread `tid`, which waits until `let_go` answers its call with `-`[`CALL_AGAIN`].
    /// An error before the answer (`EPERM`: somebody traces it already, or we may not) leaves it
    /// waiting; after one that came later it calls again by itself.
    pub fn stop_waiting(
        tid: u32,
        let_go: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Self, Errno> {
        let tracee = Self::seize(tid, 0)?;
        tracee.interrupt()?;
        let_go()?;
        tracee.wait(LONG)?;
        Ok(tracee)
    }
}
