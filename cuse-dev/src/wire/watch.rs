//! The watch: looks after requests that take longer than they should, and after who waits for them.
//!
//! A quick request can still block, on memory whose faults the caller answers itself. The watch
//! looks at the leader every few milliseconds while there is work; one that made no step and
//! sleeps loses the lead. One that is runnable only lacks a processor and keeps it for longer,
//! and so does one with a RELEASE, whose order would be lost. The watch sleeps while nothing is
//! asked.
//!
//! A CUSE device's RELEASE has a caller who waits, which a FUSE file's has not: whoever closes the
//! last descriptor, most likely by dying. What the handler needs for the close may be what only that
//! death gives it, such as the end of a fault in the caller's own memory. So the watch answers a
//! RELEASE when it takes the lead from it, and the close goes on without anybody who waits.
//!
//! A thread that is killed while its request is answered stays until it has the answer. The watch
//! looks after those whose request is held up, and answers for the handler where that allows it
//! ([`Handler::abandon`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::handler::Handler;
use super::server::{Answering, Apart, Shared};
use crate::wire::Errno;

/// How often the watch looks while there is work.
const TICK: Duration = Duration::from_millis(5);

/// Ticks after which a leader that is busy, not asleep, makes room for another.
const BUSY: u32 = 40;
/// Ticks after which a RELEASE does, whose order is lost by that: asleep, or busy.
const RELEASE: (u32, u32) = (20, 400);

/// How often the watch looks whether the callers of requests that are held up were killed.
const CARE: Duration = Duration::from_millis(20);

impl Answering {
    /// Whether the leader, which has not moved for `ticks` looks, is to lose the lead.
    fn stalls(&self, ticks: u32) -> bool {
        ticks
            >= match (self.release, runnable(self.by)) {
                (false, false) => 1,
                (false, true) => BUSY,
                (true, false) => RELEASE.0,
                (true, true) => RELEASE.1,
            }
    }
}

/// Whether the thread `tid` of another process was killed, and only has to return to its death.
fn is_killed(tid: u32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return false };
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    pending.is_some_and(|set| set & KILL != 0)
}

/// Whether the thread of this process runs, or would if it had a processor.
fn runnable(tid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R')))
}

impl<H: Handler> Shared<H> {
    /// Looks until the session ends.
    pub(super) fn watch(self: &Arc<Self>) {
        let mut last = self.turn.load(Ordering::SeqCst);
        let mut ticks = 0;
        let mut cared = Instant::now();
        while !self.stopping.load(Ordering::SeqCst) {
            let began = Instant::now();
            while began.elapsed() < TICK && !self.stopping.load(Ordering::SeqCst) {
                thread::sleep(TICK - began.elapsed().min(TICK));
            }
            if cared.elapsed() >= CARE {
                self.let_the_killed_go();
                cared = Instant::now();
            }
            let now = self.turn.load(Ordering::SeqCst);
            if now != last {
                (last, ticks) = (now, 0);
            } else if now % 2 == 1 {
                ticks += 1;
                let Some(answering) = self.answering.lock().clone() else { continue };
                if answering.stalls(ticks) && self.set_apart(now, &answering, true) {
                    if answering.release {
                        // ENOENT: answered by itself after all.
                        let _ = answering.channel.send(answering.header.unique, 0, &[]);
                    }
                    self.hand_over();
                    self.handler.stalled(&answering.header, answering.by);
                }
            } else if self.apart.lock().is_empty() {
                // The leader sets its turn before it looks whether the watch sleeps.
                self.watch_sleeps.store(true, Ordering::SeqCst);
                while self.watch_sleeps.load(Ordering::SeqCst)
                    && self.turn.load(Ordering::SeqCst) == now
                    && !self.stopping.load(Ordering::SeqCst)
                {
                    thread::park();
                }
                self.watch_sleeps.store(false, Ordering::SeqCst);
                (last, ticks) = (self.turn.load(Ordering::SeqCst), 0);
            }
        }
    }

    /// Answers those who were killed and whose requests are held up.
    fn let_the_killed_go(&self) {
        let held: Vec<_> = {
            let apart = self.apart.lock();
            apart.values().filter(|apart| apart.since.elapsed() >= CARE).cloned().collect()
        };
        for Apart { request, .. } in held {
            // Under the lock, so that the thread is not at another request by now.
            let known = self.apart.lock();
            if known.contains_key(&request.header.unique)
                && is_killed(request.header.tid)
                && self.handler.abandon(&request.header, request.by)
            {
                tracing::info!(tid = request.header.tid, "a killed caller's request is given up");
                // ENOENT: answered by itself after all.
                let _ = request.channel.send(request.header.unique, -(Errno::EINTR as i32), &[]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::wire::channel::Channel;
    use crate::wire::proto::{InHeader, OutHeader, ReleaseIn, opcode};
    use crate::wire::{Attributes, Header, Opened, Options, Server};

    /// A device whose close waits until the test says otherwise.
    struct Closing(crossbeam_channel::Receiver<()>);

    impl Handler for Closing {
        fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
            Ok(Attributes::file(node, 0o600))
        }
        fn open(&self, _: &Header, _: u32) -> Result<Opened, Errno> {
            Err(Errno::EIO)
        }
        fn release(&self, _: u64) {
            let _ = self.0.recv();
        }
    }

    #[test]
    fn a_close_that_takes_for_ever_is_answered() {
        // Messages in, messages out: what the kernel's descriptor does.
        let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, None, kind.2).unwrap();
        let kernel = Arc::new(Channel::from_fd(ours));
        let (close, closing) = crossbeam_channel::bounded(1);
        let channel = Arc::new(Channel::from_fd(theirs));
        let server =
            Server::start(channel, Arc::new(Closing(closing)), Options::default()).unwrap();

        let length = size_of::<InHeader>() + size_of::<ReleaseIn>();
        let header = InHeader {
            len: length as u32,
            opcode: opcode::RELEASE,
            unique: 7,
            ..Default::default()
        };
        let message = [header.as_bytes(), ReleaseIn::default().as_bytes()].concat();
        nix::unistd::write(&*kernel, &message).unwrap();
        let mut answer = [0; 64];
        let answer = kernel.read(&mut answer).unwrap();
        let expected = OutHeader { len: answer.len() as u32, error: 0, unique: 7 };
        assert_eq!(answer, expected.as_bytes());

        close.send(()).unwrap();
        drop(server);
    }
}
