//! What this process inherited, seen before Rust's runtime changed it.
//!
//! The runtime ignores `SIGPIPE` before `main`. A launcher must hand on what it was given: a
//! program that is started with `SIGPIPE` ignored keeps it, any other must die of it.
#![allow(unsafe_code)] // Runs before main, and asks for a disposition.

use std::sync::atomic::{AtomicBool, Ordering};

static IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: all zeroes is a valid `sigaction`, and the kernel writes one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut action) == 0 {
            IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        }
    }
}

// SAFETY: the section holds pointers to functions that the C runtime calls before main; `look`
// needs nothing that is set up later.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether this process was started with `SIGPIPE` ignored.
pub(crate) fn ignores_pipe() -> bool {
    IGNORED.load(Ordering::Relaxed)
}
