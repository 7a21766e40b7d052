//! Who calls: from a thread id to the process, its memory, its rights and its descriptors.
//!
//! A front end learns the id of the thread whose call it answers and asks [`Callers::resolve`].
//! The thread waits for the answer, so its id stays valid meanwhile. What is found is kept for
//! the next call of the process and checked again in each: the process may have exited and its
//! number may name another one, or it may have another mm since an exec.

pub(crate) mod copying;
mod deaths;
pub(crate) mod sys;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use engine::Errno;
use engine::caller::{CallerFile, Capability, Process};
use engine::memory::AddressSpace;
use parking_lot::RwLock;
use rustc_hash::FxHashMap;

use crate::memory::Host;
use crate::memory::file::HostFile;
use crate::memory::process::ProcessMemory;
use deaths::Deaths;

/// `CAP_SYS_RESOURCE` of `<linux/capability.h>`.
const CAP_SYS_RESOURCE: u32 = 24;
/// The inode of the initial user namespace (`PROC_USER_INIT_INO`).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// The processes that called so far.
pub struct Callers {
    host: Arc<Host>,
    /// By the id of the calling thread.
    threads: RwLock<FxHashMap<u32, Arc<CallerProcess>>>,
    /// Set if somebody looks after it.
    deaths: OnceLock<Deaths>,
}

/// A process that calls, with the mm it has.
pub struct CallerProcess {
    pid: u32,
    pidfd: OwnedFd,
    memory: Arc<ProcessMemory>,
    /// In the initial user namespace, so that its capabilities count.
    initial_namespace: bool,
    /// The last answers, for when the process is gone.
    uid: AtomicU32,
    memlock: AtomicU64,
}

impl Callers {
    /// Nobody has called yet.
    pub fn new(host: Arc<Host>) -> Self {
        Self { host, threads: RwLock::default(), deaths: OnceLock::new() }
    }

    /// What all callers share.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Forgets those who called, as far as nobody else needs them. To be called when all are gone.
    pub fn forget(&self) {
        for (_, known) in self.threads.write().drain() {
            known.memory.leave();
        }
    }

    /// The process of the thread `tid`, which waits in a call. `ESRCH` when it is gone, `EACCES`
    /// or `EPERM` when this daemon may not look into it.
    pub fn resolve(&self, tid: u32) -> Result<Arc<CallerProcess>, Errno> {
        let known = self.threads.read().get(&tid).cloned();
        if let Some(known) = known
            && known.is_of(tid)
        {
            known.memory.called_by(tid);
            return Ok(known);
        }
        let pid = thread_group(tid)?;
        let mut threads = self.threads.write();
        // Another thread of the process may have called before; the dead are forgotten.
        let mut process = None;
        threads.retain(|_, known| {
            if known.pid == pid && process.is_none() && known.is_of(tid) {
                process = Some(known.clone());
            }
            if !sys::alive(known.pidfd.as_fd()) || known.pid == pid && process.is_none() {
                known.leave();
                return false;
            }
            true
        });
        let process = match process {
            Some(process) => process,
            None => {
                // A process may share its mm with another (vfork, CLONE_VM).
                let shared = threads
                    .values()
                    .find(|known| sys::same_memory(known.pid, tid).unwrap_or(false));
                let memory = shared.map(|known| known.memory.clone());
                let process = Arc::new(CallerProcess::new(&self.host, pid, tid, memory)?);
                if let Some(deaths) = self.deaths.get() {
                    deaths.add(pid, &process.pidfd)?;
                }
                process
            }
        };
        threads.insert(tid, process.clone());
        process.memory.called_by(tid);
        Ok(process)
    }
}

impl CallerProcess {
    fn new(
        host: &Arc<Host>,
        pid: u32,
        tid: u32,
        memory: Option<Arc<ProcessMemory>>,
    ) -> Result<Self, Errno> {
        let memory = match memory {
            Some(memory) => memory,
            None => Arc::new(ProcessMemory::open(host, pid, tid)?),
        };
        let namespace = std::fs::metadata(format!("/proc/{pid}/ns/user"));
        let process = Self {
            pid,
            pidfd: sys::pidfd_open(pid)?,
            memory,
            initial_namespace: namespace.is_ok_and(|file| file.ino() == INITIAL_USER_NAMESPACE),
            uid: AtomicU32::new(u32::MAX),
            memlock: AtomicU64::new(0),
        };
        process.uid();
        process.memlock_limit();
        Ok(process)
    }

    /// The process is gone, or has another mm.
    fn leave(&self) {
        if self.pid == self.memory.pid() {
            self.memory.leave();
        }
    }

    /// Whether `tid` is a thread of this very process, and has the mm that is kept here.
    fn is_of(&self, tid: u32) -> bool {
        sys::alive(self.pidfd.as_fd())
            // The first thread has the process's id, whoever reaps the process.
            && (tid == self.pid || sys::is_thread_of(self.pid, tid))
            && self.memory.is_of(self.pid, tid)
    }

    /// The process's memory, for the engine.
    pub fn memory(&self) -> Arc<dyn AddressSpace> {
        self.memory.clone()
    }

    /// Before a call that may pin memory of this process: makes ready for that by way of the
    /// calling thread `tid`, once in the life of an mm. If it answers true, `let_go` was called. It
    /// has to answer the call with `-`[`CALL_AGAIN`](crate::inject::CALL_AGAIN), which the thread
    /// does not see, as it is stopped on its way; it makes the same call again and is to be served
    /// then. If not, the call is to be served now.
    pub fn prepare_pins(
        &self,
        tid: u32,
        let_go: impl FnOnce() -> Result<(), Errno> + Send + 'static,
    ) -> bool {
        self.memory.prepare(tid, let_go)
    }

    /// Whether the kernel shows pins that were taken here in the process's `VmPin`.
    pub fn pins_show(&self) -> bool {
        self.memory.counted_by_kernel()
    }

    /// A duplicate of the descriptor `fd` of the thread `tid` of this process. `EBADF` when it
    /// has none by that number.
    pub fn descriptor(&self, tid: u32, fd: i32) -> Result<OwnedFd, Errno> {
        if tid != self.pid {
            // A thread may have a descriptor table of its own.
            if let Ok(thread) = sys::pidfd_open_thread(tid) {
                return sys::pidfd_getfd(thread.as_fd(), fd);
            }
        }
        sys::pidfd_getfd(self.pidfd.as_fd(), fd)
    }

    /// What `file`, which [`CallerProcess::descriptor`] returned, is to the engine when it is no
    /// file of the engine.
    pub fn classify(&self, file: OwnedFd) -> Result<CallerFile, Errno> {
        HostFile::classify(self.memory.host(), file)
    }

    /// A pidfd of the process.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }
}

impl Process for CallerProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn uid(&self) -> u32 {
        let uid = sys::real_uid(self.pidfd.as_fd()).or_else(|error| match error {
            Errno::ESRCH => Err(error),
            _ => status(self.pid, "Uid:"),
        });
        if let Ok(uid) = uid {
            self.uid.store(uid, Ordering::Relaxed);
        }
        self.uid.load(Ordering::Relaxed)
    }

    fn memlock_limit(&self) -> u64 {
        if let Ok(limit) = sys::memlock_limit(self.pid)
            && sys::alive(self.pidfd.as_fd())
        {
            self.memlock.store(limit, Ordering::Relaxed);
        }
        self.memlock.load(Ordering::Relaxed)
    }

    fn capable(&self, capability: Capability) -> bool {
        let number = match capability {
            Capability::IpcLock => sys::CAP_IPC_LOCK,
            Capability::SysResource => CAP_SYS_RESOURCE,
        };
        // What CAP_SYS_RESOURCE guards here is a choice within softiommu. Where a container takes it
        // from root, too, root may choose.
        let exact = self.memory.host().exact_rights.load(Ordering::Relaxed);
        if capability == Capability::SysResource && !exact && !sys::obtainable(number) {
            return self.uid() == 0;
        }
        self.initial_namespace
            && sys::effective_capability(self.pid, number).unwrap_or(false)
            && sys::alive(self.pidfd.as_fd())
    }
}

/// The first number after `field` in `/proc/TID/status`.
pub(crate) fn status(tid: u32, field: &str) -> Result<u32, Errno> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|_| Errno::ESRCH)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_ascii_whitespace().next());
    number.and_then(|number| number.parse().ok()).ok_or(Errno::ESRCH)
}

/// The process of a thread.
fn thread_group(tid: u32) -> Result<u32, Errno> {
    status(tid, "Tgid:")
}
