//! Notices when a process leaves the mm that a helper was made for.
//!
//! A helper keeps its mm alive. When the process exits the kernel tells at once, by its pidfd.
//! When it executes another program nobody is told, so that is asked for twice a second: until
//! then nothing but memory is lost, for the next call of the process asks, too.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use parking_lot::Mutex;

use super::mm::Mm;

const EXEC_INTERVAL: Duration = Duration::from_millis(500);

/// The mms that have helpers.
#[derive(Default)]
pub(crate) struct Watch {
    started: OnceLock<Option<Arc<Shared>>>,
}

struct Shared {
    /// A pipe: something to read when `mms` grew.
    wake: (OwnedFd, OwnedFd),
    /// A helper's mm, and the pidfd of its process.
    mms: Mutex<Vec<(Weak<Mm>, OwnedFd)>>,
}

impl Watch {
    /// Ends `mm`'s helper when the process behind `pidfd` is gone or has another mm. False when
    /// that cannot be watched.
    pub(crate) fn add(&self, mm: &Arc<Mm>, pidfd: &OwnedFd) -> bool {
        let started = self.started.get_or_init(|| {
            let wake = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
            let shared = Arc::new(Shared { wake, mms: Mutex::default() });
            let watched = shared.clone();
            let thread = std::thread::Builder::new().name("mm-watch".into());
            thread.spawn(move || watched.run()).ok().map(|_| shared)
        });
        let (Some(shared), Ok(pidfd)) = (started, pidfd.try_clone()) else { return false };
        shared.mms.lock().push((Arc::downgrade(mm), pidfd));
        let _ = write(&shared.wake.1, &[0]);
        true
    }
}

impl Shared {
    fn run(&self) {
        let mut asked = Instant::now();
        loop {
            // Descriptors are copied, so that nobody waits for the poll.
            let pidfds: Vec<OwnedFd> =
                self.mms.lock().iter().filter_map(|(_, fd)| fd.try_clone().ok()).collect();
            let mut fds = vec![PollFd::new(self.wake.0.as_fd(), PollFlags::POLLIN)];
            fds.extend(pidfds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            let timeout =
                if pidfds.is_empty() { PollTimeout::NONE } else { PollTimeout::from(500_u16) };
            let _ = poll(&mut fds, timeout);
            let _ = read(&self.wake.0, &mut [0; 64]);
            let exec = asked.elapsed() >= EXEC_INTERVAL;
            if exec {
                asked = Instant::now();
            }
            let mut gone = Vec::new();
            self.mms.lock().retain(|(mm, pidfd)| {
                let Some(mm) = mm.upgrade() else { return false };
                let mut exited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                let exited = poll(&mut exited, PollTimeout::ZERO) == Ok(1);
                let ended = exited || exec && mm.was_replaced();
                if !ended {
                    return true;
                }
                gone.push(mm);
                false
            });
            gone.iter().for_each(|mm| mm.leave());
        }
    }
}
