//! Threads that answer a session's requests: one leads, the others follow.
//!
//! Only the *leader* reads requests. It answers a [`Pace::Quick`] one itself and reads on, so a
//! lone caller meets a thread that is awake, on a warm cache, and no lock. Before a
//! [`Pace::Slow`] one it hands the lead to a follower. As one thread reads at a time, a RELEASE
//! is done before the requests that the kernel queued behind it are even seen; with free readers,
//! a program's next ioctl overtakes its own close.
//!
//! Before it sleeps it looks for the next request for some microseconds, where that pays off
//! ([`Patience`]).
//!
//! Each thread reads by a descriptor of its own where the session has more than one (FUSE; not
//! CUSE): what it read and has not answered is a queue apart, so that threads meet only where
//! requests come in. Those stay in one queue, and in order.
//!
//! FUSE over io_uring is not spoken: there each processor has a queue of requests, and a program
//! that moved to another one overtakes its own RELEASE. For a lone caller it is no quicker (4.5 µs;
//! 3.6 µs for a reader on the caller's processor), and it takes an administrator to switch it on
//! (`fuse.enable_uring`).
//!
//! A quick request can still block, on memory whose faults the caller answers itself: the
//! [watch](super::watch) takes the lead from it then.
//!
//! The lead is a number, [`Shared::turn`]: even while the leader reads, odd while it answers. It
//! only grows, so whoever takes a step by compare-and-swap knows that no other took it.
#![allow(unsafe_code)] // A signal handler, and the signal that ends a blocked read.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

use super::channel::Channel;
use super::dispatch::{self, MAX_WRITE};
use super::handler::{Handler, Pace};
use super::patience::Patience;
use super::request::{Header, Op, ParseError, Request};
use crate::wire::Errno;

/// Ends a blocked `read` of the leader. Its default is to do nothing, so a stray one is harmless.
const NUDGE: Signal = Signal::SIGURG;

/// How a server runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most threads, each of which a slow request can hold.
    pub threads: usize,
    /// Idle threads that are kept.
    pub spare: usize,
    /// Begins the threads' names.
    pub name: &'static str,
    /// How long [`Server::stop`] waits for requests that are being answered.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 128, spare: 2, name: "wire", grace: Duration::from_secs(2) }
    }
}

/// A running session. Dropping it stops it.
pub struct Server {
    shared: Arc<dyn Stop>,
    watch: Option<JoinHandle<()>>,
}

pub(super) struct Shared<H> {
    /// The session's first descriptor.
    channel: Arc<Channel>,
    pub(super) handler: Arc<H>,
    options: Options,
    /// See the module's header.
    pub(super) turn: AtomicU64,
    /// What the leader answers, for the watch.
    pub(super) answering: Mutex<Option<Answering>>,
    /// Requests that are answered apart from the leader, by their number.
    pub(super) apart: Mutex<FxHashMap<u64, Apart>>,
    pool: Mutex<Pool>,
    /// The lead is free, or the end has come: for followers.
    lead_free: Condvar,
    /// A thread ended, or the end has come: for [`Server::wait`].
    ended: Condvar,
    pub(super) stopping: AtomicBool,
    /// Since when.
    stopped: OnceLock<Instant>,
    spawned: AtomicUsize,
    pub(super) watch_sleeps: AtomicBool,
    watch: OnceLock<Thread>,
}

#[derive(Clone)]
pub(super) struct Answering {
    pub(super) header: Header,
    /// Where it was read, and is to be answered.
    pub(super) channel: Arc<Channel>,
    /// The thread's id.
    pub(super) by: i32,
    /// Whether it is a RELEASE.
    pub(super) release: bool,
}

/// A request that a thread other than the leader answers.
#[derive(Clone)]
pub(super) struct Apart {
    pub(super) request: Answering,
    pub(super) since: Instant,
    /// It kept the reader.
    pub(super) stalled: bool,
}

#[derive(Default)]
struct Pool {
    /// The thread that leads; none while the lead is free.
    leader: Option<Pthread>,
    threads: usize,
    idle: usize,
}

/// What [`Server`] needs of its threads, whatever their handler is.
trait Stop: Send + Sync {
    fn stop(&self) -> bool;
    fn wait(&self) -> bool;
}

impl Server {
    /// Starts answering `channel`'s requests.
    pub fn start<H: Handler>(
        channel: Arc<Channel>,
        handler: Arc<H>,
        options: Options,
    ) -> Result<Self, Errno> {
        extern "C" fn nothing(_: libc::c_int) {}
        let action =
            SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is async-signal-safe.
        unsafe { signal::sigaction(NUDGE, &action)? };
        let shared = Arc::new(Shared {
            channel,
            handler,
            options,
            turn: AtomicU64::new(0),
            answering: Mutex::new(None),
            apart: Mutex::default(),
            pool: Mutex::default(),
            lead_free: Condvar::new(),
            ended: Condvar::new(),
            stopping: AtomicBool::new(false),
            stopped: OnceLock::new(),
            spawned: AtomicUsize::new(0),
            watch_sleeps: AtomicBool::new(false),
            watch: OnceLock::new(),
        });
        let watched = shared.clone();
        let watch = shared.spawn(move || watched.watch())?;
        let _ = shared.watch.set(watch.thread().clone());
        shared.add_thread(&mut shared.pool.lock())?;
        Ok(Self { shared, watch: Some(watch) })
    }

    /// Waits for the session's end: its unmounting, or [`Server::stop`] on another thread.
    pub fn wait(&self) {
        self.shared.wait();
    }

    /// Ends the session: no further request is read, those in work are finished, those that the
    /// handler kept are answered by its [`Handler::shutdown`]. False when threads are still held
    /// by requests after [`Options::grace`]; only the end of the process ends those.
    pub fn stop(&self) -> bool {
        self.shared.stop()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

impl<H: Handler> Stop for Shared<H> {
    fn stop(&self) -> bool {
        self.end();
        self.wait()
    }

    fn wait(&self) -> bool {
        let mut pool = self.pool.lock();
        while pool.threads > 0 {
            let Some(stopped) = self.stopped.get() else {
                self.ended.wait(&mut pool);
                continue;
            };
            if stopped.elapsed() >= self.options.grace {
                return false;
            }
            // The leader may be about to read: only a signal that comes during the read ends it,
            // so this asks until the leader is gone.
            if let Some(leader) = pool.leader {
                let _ = pthread_kill(leader, NUDGE);
            }
            self.ended.wait_for(&mut pool, Duration::from_millis(2));
        }
        true
    }
}

impl<H: Handler> Shared<H> {
    fn spawn(&self, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Errno> {
        let number = self.spawned.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.options.name);
        // The threads inherit the mask: signals are for the program's own threads. But who faults
        // while that signal is blocked dies of it, whatever its handler would do.
        let mut mask = SigSet::all();
        for fault in [Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV] {
            mask.remove(fault);
        }
        let mut before = SigSet::empty();
        signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), Some(&mut before))?;
        let thread = thread::Builder::new().name(name).stack_size(512 << 10).spawn(body);
        signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        thread.map_err(super::channel::errno)
    }

    /// Adds a thread, which leads as soon as the lead is free.
    fn add_thread(self: &Arc<Self>, pool: &mut Pool) -> Result<(), Errno> {
        let shared = self.clone();
        let channel = match pool.threads {
            0 => self.channel.clone(),
            _ => self.channel.try_clone().map_or_else(|_| self.channel.clone(), Arc::new),
        };
        self.spawn(move || shared.serve(&channel))?;
        pool.threads += 1;
        Ok(())
    }

    /// A thread's life: follow, lead, follow...
    fn serve(self: &Arc<Self>, channel: &Arc<Channel>) {
        let nudge = SigSet::from(NUDGE);
        let _ = signal::pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&nudge), None);
        let mut buffer = vec![0; MAX_WRITE as usize + 4096];
        let mut patience = Patience::new();
        loop {
            let mut pool = self.pool.lock();
            pool.idle += 1;
            let spare = pool.idle > self.options.spare;
            while pool.leader.is_some() && !self.stopping.load(Ordering::SeqCst) && !spare {
                self.lead_free.wait(&mut pool);
            }
            pool.idle -= 1;
            if pool.leader.is_some() || self.stopping.load(Ordering::SeqCst) {
                pool.threads -= 1;
                self.ended.notify_all();
                return;
            }
            pool.leader = Some(pthread_self());
            drop(pool);
            self.lead(channel, &mut buffer, &mut patience);
        }
    }

    /// Reads and answers until the lead is lost.
    fn lead(self: &Arc<Self>, channel: &Arc<Channel>, buffer: &mut [u8], patience: &mut Patience) {
        // While this thread has the lead, nobody else moves an even turn.
        let mut turn = self.turn.load(Ordering::SeqCst);
        let by = nix::unistd::gettid().as_raw();
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return self.end();
            }
            patience.look(channel);
            let bytes = match channel.read(buffer) {
                Ok(bytes) => bytes,
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => continue,
                Err(error) => {
                    if error != Errno::ENODEV {
                        tracing::error!(%error, "cannot read requests");
                    }
                    return self.end();
                }
            };
            let request = match Request::parse(bytes) {
                Ok(request) => request,
                Err(error) => {
                    tracing::warn!(%error, "not a request");
                    if let ParseError::Body { unique, .. } | ParseError::Name { unique, .. } = error
                    {
                        channel.reply(unique).error(Errno::EIO);
                    }
                    continue;
                }
            };
            let release = matches!(request.op, Op::Release { .. });
            let answering =
                Answering { header: request.header, channel: channel.clone(), by, release };
            *self.answering.lock() = Some(answering.clone());
            self.turn.store(turn + 1, Ordering::SeqCst);
            if self.watch_sleeps.load(Ordering::SeqCst) {
                self.wake_watch();
            }
            let slow = dispatch::pace(&*self.handler, &request) == Pace::Slow;
            if slow && self.set_apart(turn + 1, &answering, false) {
                self.hand_over();
            }
            dispatch::dispatch(&*self.handler, channel, &request);
            if slow || !self.step(turn + 1) {
                let was = self.apart.lock().remove(&request.header.unique);
                if was.is_some_and(|apart| apart.stalled) {
                    self.handler.resumed(&request.header);
                }
                return;
            }
            turn += 2;
        }
    }

    /// Moves the turn on from `from`, unless another did.
    fn step(&self, from: u64) -> bool {
        self.turn.compare_exchange(from, from + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes the lead from the request, which goes on apart, unless its turn is over.
    pub(super) fn set_apart(&self, turn: u64, request: &Answering, stalled: bool) -> bool {
        // Under the lock, so that the request's end finds it there.
        let mut apart = self.apart.lock();
        let taken = self.step(turn);
        if taken {
            let since = Instant::now();
            let request = request.clone();
            apart.insert(request.header.unique, Apart { request, since, stalled });
        }
        taken
    }

    /// Gives the lead away, to a follower or a new thread.
    pub(super) fn hand_over(self: &Arc<Self>) {
        let mut pool = self.pool.lock();
        pool.leader = None;
        if pool.idle > 0 {
            self.lead_free.notify_one();
        } else if pool.threads < self.options.threads
            && let Err(error) = self.add_thread(&mut pool)
        {
            tracing::warn!(%error, "cannot start another thread");
        }
        // Else the first thread that is done leads.
    }

    /// No request is read from here on.
    fn end(&self) {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            let _ = self.stopped.set(Instant::now());
            self.handler.shutdown();
        }
        {
            // Under the lock, so that nobody is between looking and waiting.
            let mut pool = self.pool.lock();
            if pool.leader == Some(pthread_self()) {
                pool.leader = None;
            }
            self.lead_free.notify_all();
            self.ended.notify_all();
        }
        self.wake_watch();
    }

    fn wake_watch(&self) {
        self.watch_sleeps.store(false, Ordering::SeqCst);
        if let Some(watch) = self.watch.get() {
            watch.unpark();
        }
    }
}
