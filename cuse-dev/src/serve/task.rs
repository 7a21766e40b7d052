//! What the daemon asks the kernel about threads, by their ids.
#![allow(unsafe_code)] // system calls that nix does not wrap.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use engine::Errno;

/// `PIDFD_THREAD` of `<linux/pidfd.h>` (Linux 6.9).
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// A duplicate of the descriptor `fd` of the thread `tid`, which waits for us. `EBADF`.
pub(super) fn descriptor_of(tid: u32, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; what comes back is a new descriptor.
    unsafe {
        let thread = owned(libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD))
            // An older kernel has handles of processes only, named by their first thread.
            .or_else(|_| owned(libc::syscall(libc::SYS_pidfd_open, leader(tid), 0)))?;
        owned(libc::syscall(libc::SYS_pidfd_getfd, thread.as_raw_fd(), fd, 0))
    }
}

/// Whether `tid` is a thread of this process.
pub(super) fn is_own(tid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    tid != 0 && unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) } == 0
}

/// The id of the process that traces `tid`; 0 for none.
pub(super) fn tracer(tid: u32) -> u32 {
    field(tid, "TracerPid:").unwrap_or(0)
}

/// The real user of `tid`.
pub(super) fn uid(tid: u32) -> Option<u32> {
    field(tid, "Uid:")
}

fn leader(tid: u32) -> u32 {
    field(tid, "Tgid:").unwrap_or(tid)
}

fn field(tid: u32, name: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// # Safety
/// `result` is what a system call returned that makes a new descriptor.
unsafe fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the caller promises that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
