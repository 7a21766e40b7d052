//! The process that the user's shell knows: it lives, stops and ends as the program does.
//!
//! Three processes take part:
//!
//! ```text
//! front ──> supervisor ──> program
//! ```
//!
//! The *program* is in the front's process group, so the terminal's signals and job control reach
//! it as if it had been started directly. The *supervisor* must go on while the program is
//! stopped, for another process of the tree may need an answer in order to continue it; it has a
//! session of its own. The *front* does to itself what happens to the program, for whoever waits
//! for it: stops, continues, exits with the same status, dies of the same signal. What others send
//! to the front alone, it passes on; signals of the kernel (the terminal's) the program gets by
//! itself.
#![allow(unsafe_code)] // Signal numbers beyond `nix`'s, and ending as the program ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// What the supervisor tells the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The program runs, as this process.
    Started(i32),
    /// A signal stopped it.
    Stopped(i32),
    /// It goes on.
    Continued,
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// It could not be started; the reason was told. Exit with this status.
    Failed(i32),
    /// The program and all that it started are gone; so much was left behind.
    Left(i32),
}

impl News {
    fn encode(self) -> [u8; 5] {
        let (kind, value) = match self {
            Self::Started(pid) => (0, pid),
            Self::Stopped(signal) => (1, signal),
            Self::Continued => (2, 0),
            Self::Exited(status) => (3, status),
            Self::Killed(signal) => (4, signal),
            Self::Failed(status) => (5, status),
            Self::Left(count) => (6, count),
        };
        let value = value.to_ne_bytes();
        [kind, value[0], value[1], value[2], value[3]]
    }

    fn decode(bytes: [u8; 5]) -> Option<Self> {
        let value = i32::from_ne_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        Some(match bytes[0] {
            0 => Self::Started(value),
            1 => Self::Stopped(value),
            2 => Self::Continued,
            3 => Self::Exited(value),
            4 => Self::Killed(value),
            5 => Self::Failed(value),
            6 => Self::Left(value),
            _ => return None,
        })
    }
}

/// The supervisor's way to the front.
#[derive(Debug)]
pub(crate) struct ToFront(pub(crate) OwnedFd);

impl ToFront {
    pub(crate) fn tell(&self, news: News) {
        // The front may have been killed; the supervisor notices that by other means.
        let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
        let _ = nix::sys::socket::send(self.0.as_raw_fd(), &news.encode(), flags);
    }
}

/// How the program ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Status(i32),
    Signal(i32),
}

/// Stands for the program until it ends, and ends as it did. With `strict` it exits with 1 if
/// something was left behind and the program itself succeeded. `process` is the supervisor. All
/// signals are blocked.
pub(crate) fn stand_for_program(supervisor: &OwnedFd, process: Pid, strict: bool) -> ! {
    let end = match wait(supervisor, process, strict) {
        Ok(end) => end,
        Err(error) => {
            eprintln!("softiommu: {error}");
            End::Status(125)
        }
    };
    match end {
        End::Status(status) => std::process::exit(status),
        End::Signal(signal) => {
            // The program has dumped its core, if anybody wanted one.
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            do_to_self(signal);
            std::process::exit(128 + signal)
        }
    }
}

fn wait(supervisor: &OwnedFd, process: Pid, strict: bool) -> io::Result<End> {
    let signals =
        SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut program = None;
    let mut stopped = false;
    let mut end = None;
    // What came for a program that we do not know yet.
    let mut early = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(supervisor.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        while let Ok(Some(signal)) = signals.read_signal() {
            let number = signal.ssi_signo as i32;
            // The supervisor's are for the front itself: the program goes on already.
            if signal.ssi_pid == process.as_raw() as u32 {
                continue;
            }
            if !is_for_the_program(number, signal.ssi_code, stopped) {
                continue;
            }
            match program {
                None if end.is_none() => early.push(number),
                program => send(program, number),
            }
        }
        let any = fds[0].any().unwrap_or(false);
        if !any {
            continue;
        }
        let mut bytes = [0; 5];
        let length = nix::unistd::read(supervisor, &mut bytes)?;
        match News::decode(bytes).filter(|_| length == bytes.len()) {
            Some(News::Started(pid)) => {
                program = Some(pid);
                early.drain(..).for_each(|signal| send(program, signal));
            }
            Some(News::Stopped(signal)) => {
                stopped = true;
                do_to_self(signal);
                // Somebody continued us; the whole group, or us alone.
                send(program, libc::SIGCONT);
            }
            Some(News::Continued) => stopped = false,
            Some(News::Exited(status)) => {
                program = None;
                end = Some(End::Status(status));
            }
            Some(News::Killed(signal)) => {
                program = None;
                end = Some(End::Signal(signal));
            }
            Some(News::Failed(status)) => return Ok(End::Status(status)),
            Some(News::Left(count)) => {
                let end = end.unwrap_or(End::Status(125));
                let failed = strict && count != 0 && matches!(end, End::Status(0));
                return Ok(if failed { End::Status(1) } else { end });
            }
            None => {
                send(program, libc::SIGKILL);
                return Err(io::Error::other("the supervisor died, and so did the program"));
            }
        }
    }
}

/// Does `signal`'s default to this process: stops or kills it.
fn do_to_self(signal: i32) {
    // SAFETY: the disposition is a default, the set is initialised by the first call that uses
    // it, and none of these touches memory of ours otherwise.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

fn is_for_the_program(signal: i32, code: i32, stopped: bool) -> bool {
    // What the kernel sends is about the terminal, which the program shares, or about us.
    let from_a_process = code <= 0;
    let wanted = match signal {
        libc::SIGCHLD => false,
        libc::SIGCONT => stopped,
        _ => true,
    };
    from_a_process && wanted
}

fn send(program: Option<i32>, signal: i32) {
    if let Some(pid) = program {
        // SAFETY: no pointers.
        unsafe { libc::kill(pid, signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_survive_the_way() {
        for news in [
            News::Started(7),
            News::Stopped(20),
            News::Continued,
            News::Exited(-1),
            News::Killed(9),
            News::Failed(127),
            News::Left(3),
        ] {
            assert_eq!(News::decode(news.encode()), Some(news));
        }
        assert_eq!(News::decode([9, 0, 0, 0, 0]), None);
    }
}
