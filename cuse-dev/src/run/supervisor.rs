//! Answers the calls that the filter reports.
//!
//! One thread takes notifications from the listener and answers them; when a call takes long,
//! another goes on in its place ([`super::turns`]), so that nobody else is held up.

mod opens;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::file::{EngineFile, ReadBuffer};
use engine::{Engine, Errno};
use ioctl_abi::command::iommufd::IOMMU_DESTROY;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::arch::Call;
use super::caller::IoctlCaller;
use super::context::OpenContext;
use super::debugfs::Debugfs;
use super::fail_nth::FailNth;
use super::notify::{Listener, Notification};
use super::open_files::OpenFiles;
use super::turns::Turns;
use super::via;
use crate::caller::{CallerProcess, Callers, sys};
use crate::event_files::{EventFiles, FileId, NoMount};
use crate::memory::Host;
use crate::trace;

/// Most threads that answer.
const THREADS: usize = 64;

/// Who owns event files: all of what was launched is one.
const OWNER: u64 = 0;

/// The supervisor of one launched program and all that it starts.
pub(crate) struct Supervisor {
    listener: Arc<Listener>,
    /// The daemon whose node callers use, in place of `engine`.
    via: Option<via::Node>,
    engine: Arc<Engine>,
    open_files: OpenFiles,
    callers: Callers,
    fail_nth: FailNth,
    debugfs: Debugfs,
    /// Or why there are none.
    event_files: Result<EventFiles, NoMount>,
    /// The user knows why there are none.
    told: AtomicBool,
    /// Who receives the next call.
    turns: Turns,
    /// Threads that answer: the leader, and those that lost the lead in a long call.
    answering: AtomicUsize,
}

/// What is left when all callers are gone.
#[derive(Debug)]
struct Left {
    contexts: usize,
    files: usize,
    objects: usize,
    /// Pages that accounts are charged with.
    charged: u64,
    /// Pages that are pinned, or held in another way.
    held: u64,
}

impl Left {
    fn total(&self) -> u64 {
        (self.contexts + self.files + self.objects) as u64 + self.charged.max(self.held)
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { contexts, files, objects, charged, held } = self;
        write!(
            f,
            "{contexts} contexts, {files} other descriptors, {objects} objects, {held} pinned \
             pages ({charged} accounted)"
        )
    }
}

/// What a call gets.
enum Answer {
    /// The kernel's own.
    LetThrough,
    /// None: the thread was let go and makes the call again.
    Again,
    /// A result or an errno.
    Result(Result<i64, Errno>),
    /// A new descriptor, with or without close-on-exec.
    Descriptor(OwnedFd, bool),
}

impl From<Errno> for Answer {
    fn from(errno: Errno) -> Self {
        Self::Result(Err(errno))
    }
}

impl Supervisor {
    /// A supervisor that answers `listener`'s calls from a new engine.
    pub(crate) fn new(
        listener: OwnedFd,
        host: Arc<Host>,
        quirks: bool,
        via: Option<via::Node>,
    ) -> Result<Arc<Self>, Errno> {
        let event_files = EventFiles::new();
        let engine = Engine::with_quirks(quirks);
        host.warn_of_changes(&engine).map_err(|error| crate::memory::errno(&error))?;
        Ok(Arc::new(Self {
            listener: Arc::new(Listener::new(listener)),
            via,
            open_files: OpenFiles::new(engine.clone())?,
            engine,
            callers: Callers::new(host),
            fail_nth: FailNth::default(),
            debugfs: Debugfs::default(),
            event_files,
            told: AtomicBool::new(false),
            turns: Turns::default(),
            answering: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// What answers.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn open_files(&self) -> &OpenFiles {
        &self.open_files
    }

    /// Starts answering, on threads of its own.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let watcher = self.clone();
        thread::Builder::new().name("closes".into()).spawn(move || watcher.open_files.watch())?;
        let watcher = self.clone();
        thread::Builder::new().name("watch".into()).spawn(move || watcher.watch_turns())?;
        self.add_thread()
    }

    /// How much is left when nobody can have anything open any more, and says what if there is
    /// any. To be called when all callers are gone.
    pub(crate) fn left_behind(&self) -> i32 {
        // Descriptors in flight are closed by the kernel's own garbage collection, a little later.
        let patience = Instant::now() + Duration::from_secs(2);
        let mut left = self.left();
        while left.total() != 0 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
            left = self.left();
        }
        self.callers.forget();
        self.debugfs.remove();
        let own = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let released = self.open_files.totals().0;
        tracing::debug!(released, ?left, own_descriptors = own, "all callers are gone");
        if left.total() != 0 {
            super::tell(&format!("left behind: {left}"));
        }
        i32::try_from(left.total()).unwrap_or(i32::MAX)
    }

    fn left(&self) -> Left {
        self.open_files.settle_all();
        let (contexts, files) = self.open_files.by_kind();
        let kept = self.engine.contexts();
        // A context that is closed and lives is kept by something that was not released.
        let stray: usize = kept.iter().map(|context| context.objects().len()).sum();
        Left {
            contexts: contexts.max(kept.len()),
            files: files + self.files_left(),
            objects: self.open_files.totals().1 + stray,
            charged: self.engine.accounts().pinned(),
            held: self.callers.host().pages_held(),
        }
    }

    /// How many descriptors of event files callers have.
    fn files_left(&self) -> usize {
        self.event_files.as_ref().map_or(0, EventFiles::len)
    }

    fn add_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let supervisor = self.clone();
        let body = move || {
            sys::short_turns(0);
            supervisor.answer_calls();
        };
        thread::Builder::new().name("calls".into()).spawn(body)?;
        self.answering.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the lead to a new thread whenever the leader stays in a call.
    fn watch_turns(self: &Arc<Self>) {
        let mut watch = self.turns.watch();
        let mut pause = Duration::ZERO;
        loop {
            thread::sleep(pause);
            if self.answering.load(Ordering::Relaxed) >= THREADS {
                continue;
            }
            let taken;
            (taken, pause) = self.turns.look(&mut watch);
            if !taken {
                continue;
            }
            // Without a leader nothing is answered: try until there is one.
            while let Err(error) = self.add_thread() {
                tracing::warn!(%error, "cannot start another thread");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// The leader's work, until it loses the lead.
    fn answer_calls(self: &Arc<Self>) {
        loop {
            let call = match self.listener.receive() {
                Ok(call) => call,
                // ENOENT: the caller was killed before we looked, or nobody is left to call; the
                // launcher finds that out by itself and ends us.
                Err(Errno::EINTR | Errno::ENOENT) => {
                    thread::yield_now();
                    continue;
                }
                Err(errno) => {
                    tracing::error!(%errno, "cannot receive calls");
                    return;
                }
            };
            let turn = self.turns.received();
            self.answer(&call);
            if !self.turns.answered(turn) {
                self.answering.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }

    fn answer(self: &Arc<Self>, call: &Notification) {
        let answer = match Call::of(call.arch, call.number) {
            _ if call.tid == 0 => {
                tracing::warn!("a call from a pid namespace that is not ours to see");
                Answer::LetThrough
            }
            Some(Call::Open) => self.open(call, libc::AT_FDCWD, call.args[0], call.args[1]),
            Some(Call::Openat) => self.open(call, call.args[0] as i32, call.args[1], call.args[2]),
            Some(Call::Openat2) => self.openat2(call),
            Some(Call::Ioctl) => self.ioctl(call),
            Some(Call::Mmap) => self.mmap(call, call.args[5]),
            Some(Call::Mmap2) => self.mmap(call, call.args[5] << 12),
            Some(Call::ReadNothing) => {
                self.transfer_nothing(call, |file| file.read(&mut NoRoom).map(|()| 0))
            }
            Some(Call::WriteNothing) => {
                self.transfer_nothing(call, |file| file.write(&[]).map(|taken| taken as i64))
            }
            None => Answer::LetThrough,
        };
        match answer {
            Answer::LetThrough => self.listener.let_through(call),
            Answer::Again => {}
            Answer::Result(result) => self.listener.answer(call, result),
            Answer::Descriptor(fd, close_on_exec) => {
                // Ours is closed before the caller goes on: its next close may be the last one, and
                // after an error it finds nothing left behind.
                let number = self.listener.add(call, fd.as_fd(), close_on_exec);
                drop(fd);
                self.listener.answer(call, number.map(i64::from));
            }
        }
    }

    /// What the caller's descriptor `fd` is. Nothing where it is not ours, or where we may not
    /// look.
    fn caller_file(
        &self,
        call: &Notification,
        fd: i32,
    ) -> Option<(Arc<CallerProcess>, OwnedFd, FileId)> {
        let tid = call.tid;
        let process = self
            .callers
            .resolve(tid)
            .inspect_err(|errno| {
                // ESRCH: it was killed in the middle of its call.
                if *errno != Errno::ESRCH {
                    tracing::warn!(tid, %errno, "cannot look into the caller");
                }
            })
            .ok()?;
        let file = process.descriptor(tid, fd).inspect_err(|errno| {
            if !matches!(errno, Errno::EBADF | Errno::ESRCH) {
                tracing::warn!(tid, fd, %errno, "cannot see the caller's descriptor");
            }
        });
        let file = file.ok()?;
        let id = FileId::of(file.as_fd()).ok()?;
        Some((process, file, id))
    }

    fn ioctl(self: &Arc<Self>, call: &Notification) -> Answer {
        if let Some(via) = &self.via {
            self.arm(via, call);
            return Answer::LetThrough;
        }
        let Some((process, file, id)) = self.caller_file(call, call.args[0] as i32) else {
            return Answer::LetThrough;
        };
        let Some(open) = self.open_files.context(id) else { return Answer::LetThrough };
        // What was closed before this call is gone before this call.
        if let Ok(event_files) = &self.event_files {
            event_files.settle(OWNER);
        }
        if self.open_files.len() > 1 {
            self.open_files.settle();
        }
        if engine::call::maps_memory(call.args[1] as u32) {
            let (supervisor, waiting) = (self.clone(), *call);
            if process.prepare_pins(call.tid, move || supervisor.listener.let_go(&waiting)) {
                return Answer::Again;
            }
        }
        let result = self.fail_nth.around(call.tid, || self.command(call, &process, &open));
        // Before the answer: the caller's next close may be the last one.
        drop(file);
        Answer::Result(result)
    }

    /// Before the daemon answers a call: tells it of the fault that the thread asked for.
    fn arm(&self, via: &via::Node, call: &Notification) {
        let Some(count) = self.fail_nth.armed(call.tid) else { return };
        let Some((_, file, _)) = self.caller_file(call, call.args[0] as i32) else { return };
        if via.is_open_of(file.as_fd())
            && let Err(error) = via::arm(file.as_fd(), call.tid, count.file())
        {
            tracing::warn!(tid = call.tid, %error, "no fault can be injected");
        }
    }

    fn command(
        &self,
        call: &Notification,
        process: &Arc<CallerProcess>,
        open: &OpenContext,
    ) -> Result<i64, Errno> {
        let caller = IoctlCaller::new(self, call, process);
        let (command, argument) = (call.args[1] as u32, call.args[2]);
        let what = trace::Call { tid: call.tid, context: open.context.id().0, command, argument };
        trace::around(what, &*process.memory(), || {
            let answer = || open.context.ioctl(&caller, command, argument);
            let result = match answer() {
                // What is in use may be so by a mapping that is gone.
                Err(Errno::EBUSY) if command == IOMMU_DESTROY && open.forget_unmapped() => answer(),
                result => result,
            }?;
            Ok(caller.installed().map_or(result, i64::from))
        })
    }

    fn mmap(&self, call: &Notification, offset: u64) -> Answer {
        let Some((_, file, id)) = self.caller_file(call, call.args[4] as i32) else {
            return Answer::LetThrough;
        };
        if let Some(via) = &self.via {
            if !via.is_open_of(file.as_fd()) {
                return Answer::LetThrough;
            }
            return match via::mmap(&self.listener, call, file.as_fd(), offset) {
                via::Mapped::Answer(error) => error.into(),
                via::Mapped::Done => Answer::Again,
            };
        }
        let Some(open) = self.open_files.context(id) else { return Answer::LetThrough };
        let [_, length, protection, flags, ..] = call.args;
        match open.allow_mmap(length, protection as i32, flags as i32, offset) {
            Ok(()) => Answer::LetThrough,
            Err(errno) => errno.into(),
        }
    }

    /// Reads or writes of no bytes end in the kernel's FUSE; the engine may have an errno for
    /// them.
    fn transfer_nothing(
        &self,
        call: &Notification,
        transfer: impl FnOnce(&dyn EngineFile) -> Result<i64, Errno>,
    ) -> Answer {
        if self.files_left() == 0 && self.via.is_none() {
            return Answer::LetThrough;
        }
        let found = self.caller_file(call, call.args[0] as i32);
        let Some((_, fd, id)) = found else { return Answer::LetThrough };
        let file = match &self.via {
            Some(via) if via.is_event(fd.as_fd()) => None,
            Some(_) => return Answer::LetThrough,
            None => match self.find_file(id) {
                Some(file) => Some(file),
                None => return Answer::LetThrough,
            },
        };
        let write = !matches!(Call::of(call.arch, call.number), Some(Call::ReadNothing));
        let needed = if write { OFlag::O_RDONLY } else { OFlag::O_WRONLY };
        let mode = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        if mode.is_ok_and(|mode| mode & OFlag::O_ACCMODE == needed) {
            // Not open for that: the kernel's EBADF.
            return Answer::LetThrough;
        }
        let Some(file) = file else {
            return Answer::Result(via::transfer_nothing(fd.as_fd(), write));
        };
        drop(fd);
        Answer::Result(transfer(&*file))
    }

    /// A descriptor for `file`, to be given to a caller.
    pub(crate) fn open_file(&self, file: Arc<dyn EngineFile>) -> Result<OwnedFd, Errno> {
        match &self.event_files {
            Ok(event_files) => event_files.open(OWNER, file),
            Err(_) if file.only_names() => self.open_files.open_file(file),
            Err(why) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    super::tell(&format!("no descriptor for {}: {why}", file.name()));
                }
                file.release();
                Err(Errno::ENODEV)
            }
        }
    }

    /// The engine's file that `id` names.
    pub(crate) fn find_file(&self, id: FileId) -> Option<Arc<dyn EngineFile>> {
        match &self.event_files {
            Ok(event_files) => event_files.find(id),
            Err(_) => self.open_files.file(id),
        }
    }
}

/// What a read of no bytes reads into.
struct NoRoom;

impl ReadBuffer for NoRoom {
    fn room(&self) -> usize {
        0
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() { Ok(()) } else { Err(Errno::EFAULT) }
    }
}
