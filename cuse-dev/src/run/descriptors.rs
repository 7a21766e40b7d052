//! Which descriptors the front and the supervisor keep.
//!
//! They inherit the program's. A pipe's reader would wait for its end as long as we hold the other
//! one, so all but our own go, and standard input and output become `/dev/null`. Standard error
//! stays, for what we have to say.
#![allow(unsafe_code)] // close_range has no safe wrapper, and closes what others may own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Closes all but standard error and `kept`.
///
/// To be called while nothing else in this process owns a descriptor.
pub(crate) fn keep_only(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        // SAFETY: no pointers; the standard descriptors are nobody's.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    drop(null);
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    numbers.sort_unstable();
    let mut first = libc::STDERR_FILENO as u32 + 1;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if first < number {
            // SAFETY: no pointers; the caller says that nobody owns what is closed here.
            if unsafe { libc::syscall(libc::SYS_close_range, first, number - 1, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = first.max(number.saturating_add(1));
    }
    Ok(())
}
