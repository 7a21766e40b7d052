//! Processes to try things on: they wait until they are let go, and leave nothing.
#![allow(unsafe_code)] // fork, and what a forked process may call.

use std::os::fd::{AsRawFd, OwnedFd};

use engine::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// A process that waits. It ends when this is dropped, or when we die.
pub(super) struct Waiting {
    pid: Pid,
    /// Whether it is a child of ours, to be waited for.
    ours: bool,
    /// Its end of input is the process's end.
    _alive: OwnedFd,
}

impl Waiting {
    /// A child.
    pub(super) fn child() -> Result<Self, Errno> {
        let (theirs, alive) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child calls nothing but what a signal handler might.
        match unsafe { fork()? } {
            ForkResult::Child => wait_for_end(&theirs, &alive),
            ForkResult::Parent { child } => Ok(Self { pid: child, ours: true, _alive: alive }),
        }
    }

    /// A process of ours that is no descendant: to Yama, anybody's.
    pub(super) fn stranger() -> Result<Self, Errno> {
        let (theirs, alive) = pipe2(OFlag::O_CLOEXEC)?;
        let (answer, number) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: both children call nothing but what a signal handler might.
        match unsafe { fork()? } {
            // SAFETY: as above.
            ForkResult::Child => match unsafe { fork() } {
                Ok(ForkResult::Child) => wait_for_end(&theirs, &alive),
                Ok(ForkResult::Parent { child }) => {
                    let _ = nix::unistd::write(&number, &child.as_raw().to_ne_bytes());
                    // SAFETY: nothing of the parent's may run.
                    unsafe { libc::_exit(0) }
                }
                // SAFETY: nothing of the parent's may run.
                Err(_) => unsafe { libc::_exit(1) },
            },
            ForkResult::Parent { child } => {
                drop(number);
                while waitpid(child, None) == Err(Errno::EINTR) {}
                let mut pid = [0; 4];
                if nix::unistd::read(&answer, &mut pid)? != pid.len() {
                    return Err(Errno::EAGAIN);
                }
                let pid = Pid::from_raw(i32::from_ne_bytes(pid));
                Ok(Self { pid, ours: false, _alive: alive })
            }
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        if self.ours {
            while waitpid(self.pid, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
        }
    }
}

/// The life of a [`Waiting`].
fn wait_for_end(pipe: &OwnedFd, other_end: &OwnedFd) -> ! {
    // SAFETY: closes a descriptor of this process, reads into a byte of the stack, ends.
    unsafe {
        libc::close(other_end.as_raw_fd());
        let mut byte = 0_u8;
        while libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) > 0 {}
        libc::_exit(0)
    }
}

/// Runs `tried` in a child, because it changes what the process is. Answers its errno.
///
/// `tried` may allocate, so no other thread should be doing so.
pub(super) fn in_child(tried: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    // SAFETY: the C library keeps its allocator usable in the child; `tried` takes no other lock.
    match unsafe { fork()? } {
        ForkResult::Child => {
            let status = tried().map_or_else(|error| error as i32, |()| 0);
            // SAFETY: nothing of the parent's may run.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, status)) => return Err(Errno::from_raw(status)),
                _ => return Err(Errno::ECHILD),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_its_owner() {
        let child = Waiting::child().unwrap();
        let pid = child.pid();
        assert!(nix::sys::signal::kill(pid, None).is_ok());
        drop(child);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_stranger_is_no_child() {
        let stranger = Waiting::stranger().unwrap();
        assert!(nix::sys::signal::kill(stranger.pid(), None).is_ok());
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stranger.pid())).unwrap();
        let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap();
        assert_ne!(parent, std::process::id().to_string());
    }

    #[test]
    fn an_errno_comes_back_from_a_child() {
        assert_eq!(in_child(|| Ok(())), Ok(()));
        assert_eq!(in_child(|| Err(Errno::EPERM)), Err(Errno::EPERM));
    }
}
