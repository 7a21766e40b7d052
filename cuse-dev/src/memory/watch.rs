//! Notices what becomes of the processes whose memory is pinned.
//!
//! A helper keeps its mm alive. When the process exits the kernel tells at once, by its pidfd.
//! When it executes another program nobody is told, so that is asked for twice a second: until
//! then nothing but memory is lost, for the next call of the process asks, too. What happens to
//! mapped ranges the mm's userfaultfd tells ([`super::uffd`]); the process waits until that is
//! read, so who is told of it ([`Watch::tell`]) hears it on another thread.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use engine::memory::MmId;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use parking_lot::Mutex;

use super::mm::Mm;
use super::uffd::{Event, Uffd};

const EXEC_INTERVAL: Duration = Duration::from_millis(500);
/// Events that wait to be told; more are dropped rather than waited for.
const QUEUE: usize = 1024;
/// Events of one mm that are read before the next one's.
const MOST_AT_ONCE: usize = 64;
/// Events of one mm that are told in a second, of those that anybody wants to know.
const MOST_TOLD: u32 = 32;

/// Who is told that something happened (the last argument) to addresses of an mm. Answers whether
/// that was worth telling.
pub(super) type Tell = Box<dyn Fn(MmId, &Range<u64>, Instant, &str) -> bool + Send + Sync>;

/// The mms that have helpers.
#[derive(Default)]
pub(crate) struct Watch {
    started: OnceLock<Option<Arc<Shared>>>,
    tell: OnceLock<Sender<(MmId, Event)>>,
}

struct Shared {
    /// A pipe: something to read when `mms` grew.
    wake: (OwnedFd, OwnedFd),
    mms: Mutex<Vec<Watched>>,
    tell: Option<Sender<(MmId, Event)>>,
}

/// One mm that has a helper.
#[derive(Clone)]
struct Watched {
    mm: Weak<Mm>,
    id: MmId,
    /// Of its process.
    pidfd: Arc<OwnedFd>,
    uffd: Option<Arc<Uffd>>,
}

impl Watch {
    /// Tells `tell` what happens to mapped ranges. To be called once, before the first process is
    /// watched.
    pub(super) fn tell(&self, tell: Tell) -> std::io::Result<()> {
        let (sender, events) = bounded(QUEUE);
        std::thread::Builder::new()
            .name("mm-news".into())
            .spawn(move || pass_on(&events, &tell))?;
        let _ = self.tell.set(sender);
        Ok(())
    }

    /// Ends `mm`'s helper when the process behind `pidfd` is gone or has another mm, and tells what
    /// `uffd` does. False when that cannot be watched.
    pub(super) fn add(&self, mm: &Arc<Mm>, pidfd: &OwnedFd, uffd: Option<Arc<Uffd>>) -> bool {
        let started = self.started.get_or_init(|| {
            let wake = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
            let tell = self.tell.get().cloned();
            let shared = Arc::new(Shared { wake, mms: Mutex::default(), tell });
            let watched = shared.clone();
            let thread = std::thread::Builder::new().name("mm-watch".into());
            thread.spawn(move || watched.run()).ok().map(|_| shared)
        });
        let (Some(shared), Ok(pidfd)) = (started, pidfd.try_clone()) else { return false };
        let (id, pidfd) = (mm.id, Arc::new(pidfd));
        shared.mms.lock().push(Watched { mm: Arc::downgrade(mm), id, pidfd, uffd });
        let _ = write(&shared.wake.1, &[0]);
        true
    }
}

impl Shared {
    fn run(&self) {
        let mut asked = Instant::now();
        loop {
            // A copy, so that nobody waits for the poll.
            let watched = self.mms.lock().clone();
            let fds = watched.iter().flat_map(|one| {
                let uffd = one.uffd.as_ref().map(|uffd| uffd.as_fd());
                [Some(one.pidfd.as_fd()), uffd].into_iter().flatten()
            });
            let fds = [self.wake.0.as_fd()].into_iter().chain(fds);
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let timeout =
                if watched.is_empty() { PollTimeout::NONE } else { PollTimeout::from(500_u16) };
            let _ = poll(&mut fds, timeout);
            let _ = read(&self.wake.0, &mut [0; 64]);
            for one in &watched {
                let Some(uffd) = &one.uffd else { continue };
                // One process after the other, however much one of them does.
                for event in std::iter::from_fn(|| uffd.event()).take(MOST_AT_ONCE) {
                    if let Some(tell) = &self.tell {
                        let _ = tell.try_send((one.id, event));
                    }
                }
            }
            let exec = asked.elapsed() >= EXEC_INTERVAL;
            if exec {
                asked = Instant::now();
            }
            let ended: Vec<_> = watched.into_iter().filter(|one| one.ended(exec)).collect();
            if !ended.is_empty() {
                let is = |one: &Watched, other: &Watched| Arc::ptr_eq(&one.pidfd, &other.pidfd);
                self.mms.lock().retain(|one| !ended.iter().any(|other| is(one, other)));
            }
        }
    }
}

impl Watched {
    /// Whether it needs no watch any more: its process has left the mm, and so its helper ends.
    /// `exec` asks also whether the process executed another program.
    fn ended(&self, exec: bool) -> bool {
        let Some(mm) = self.mm.upgrade() else { return true };
        let mut exited = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let exited = poll(&mut exited, PollTimeout::ZERO) == Ok(1);
        let ended = exited || exec && mm.was_replaced();
        if ended {
            mm.leave();
        }
        ended
    }
}

/// Tells `tell` of `events`, but not more of one mm than anybody reads.
fn pass_on(events: &Receiver<(MmId, Event)>, tell: &Tell) {
    let mut told: HashMap<MmId, u32> = HashMap::new();
    let mut second = Instant::now();
    for (mm, event) in events {
        if second.elapsed() >= Duration::from_secs(1) {
            second = Instant::now();
            told.clear();
        }
        let told = told.entry(mm).or_default();
        if *told > MOST_TOLD || !tell(mm, &event.addresses, event.when, &event.what.to_string()) {
            continue;
        }
        *told += 1;
        if *told > MOST_TOLD {
            tracing::warn!("more happens to memory of a process in this second than is told");
        }
    }
}
