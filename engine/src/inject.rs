//! Fault injection: the named places where the kernel could run out of memory.
//!
//! A front end that knows a thread's `fail-nth` count runs its call inside [`with_fail_nth`].
//! Each [`site`] the call passes counts it down; the one that brings it to zero fails.

use std::cell::Cell;

use crate::Errno;

thread_local! {
    static REMAINING: Cell<u64> = const { Cell::new(0) };
    static FIRED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// What is left of a `fail-nth` count after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailNth {
    /// The count that is left; 0 when the fault fired.
    pub remaining: u64,
    /// The site that failed.
    pub fired: Option<&'static str>,
}

/// Runs `call` so that the `nth` fault site it passes fails; 0 for none.
pub fn with_fail_nth<R>(nth: u64, call: impl FnOnce() -> R) -> (R, FailNth) {
    REMAINING.set(nth);
    FIRED.set(None);
    let result = call();
    let left = FailNth { remaining: REMAINING.get(), fired: FIRED.get() };
    REMAINING.set(0);
    (result, left)
}

/// A place where the kernel allocates. `ENOMEM` when the caller asked for it to fail.
pub fn site(name: &'static str) -> Result<(), Errno> {
    match REMAINING.get() {
        0 => Ok(()),
        1 => {
            REMAINING.set(0);
            FIRED.set(Some(name));
            tracing::debug!(site = name, "fault injected");
            Err(Errno::ENOMEM)
        }
        n => {
            REMAINING.set(n - 1);
            Ok(())
        }
    }
}
