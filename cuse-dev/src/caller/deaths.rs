//! Tells when callers die, so that what is kept of them goes, too.
//!
//! A process dies after its files are closed, so nothing that a front end sees is late enough to
//! look for the dead; its pidfd is.

use std::os::fd::{AsFd, OwnedFd};

use engine::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Callers;

/// The callers whose death is waited for.
pub(super) struct Deaths(Epoll);

impl Deaths {
    pub(super) fn new() -> Result<Self, Errno> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self)
    }

    /// Waits for the death of the process `pid`, too. Its pidfd's last close ends that.
    ///
    /// It is told once: what is pinned for a process keeps the pidfd after its death.
    pub(super) fn add(&self, pid: u32, pidfd: &OwnedFd) -> Result<(), Errno> {
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        self.0.add(pidfd, EpollEvent::new(once, pid.into()))
    }
}

impl Callers {
    /// Before the first caller: their deaths are noted, and [`Callers::bury`] is called.
    pub fn expect_deaths(&self) -> Result<(), Errno> {
        let _ = self.deaths.set(Deaths::new()?);
        Ok(())
    }

    /// Waits until callers die, and forgets them. An error means that it cannot wait.
    pub fn bury(&self) -> Result<(), Errno> {
        let deaths = self.deaths.get().ok_or(Errno::EINVAL)?;
        let mut events = [EpollEvent::empty(); 64];
        let died = match deaths.0.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(()),
            died => died?,
        };
        let died = &events[..died];
        let mut dead = Vec::new();
        self.threads.write().retain(|_, known| {
            let named = died.iter().any(|event| event.data() == u64::from(known.pid));
            // The number alone may be another process's by now.
            let keep = !(named && has_ended(&known.pidfd));
            if !keep {
                dead.push(known.clone());
            }
            keep
        });
        for process in dead {
            process.leave();
        }
        Ok(())
    }
}

/// Whether every thread of the process is dead, whether or not its parent has seen that.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll_fd = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut poll_fd, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::caller::sys;

    /// Whoever keeps a dead caller keeps its pidfd.
    #[test]
    fn a_death_is_told_once() {
        let deaths = Deaths::new().unwrap();
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = sys::pidfd_open(child.id()).unwrap();
        deaths.add(child.id(), &pidfd).unwrap();
        let mut events = [EpollEvent::empty(); 2];
        assert_eq!(deaths.0.wait(&mut events, EpollTimeout::ZERO), Ok(0));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(deaths.0.wait(&mut events, EpollTimeout::NONE), Ok(1));
        assert_eq!(events[0].data(), u64::from(child.id()));
        assert_eq!(deaths.0.wait(&mut events, EpollTimeout::ZERO), Ok(0));
    }
}
