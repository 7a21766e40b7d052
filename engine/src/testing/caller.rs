//! A caller that does not exist, with memory, descriptors and rights.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use ioctl_abi::CommandStruct;
use parking_lot::Mutex;

use crate::caller::{Caller, CallerFile, Capability, Process};
use crate::file::EngineFile;
use crate::memory::{AddressSpace, BackingFile, PAGE_SIZE};
use crate::{Context, Errno};

use super::TestMemory;

/// A process: what accounting asks.
pub struct TestProcess {
    pid: u32,
    /// The user.
    pub uid: AtomicU32,
    /// Bytes of `RLIMIT_MEMLOCK`.
    pub memlock: AtomicU64,
    /// `CAP_IPC_LOCK`.
    pub ipc_lock: AtomicBool,
    /// `CAP_SYS_RESOURCE`.
    pub sys_resource: AtomicBool,
}

impl Process for TestProcess {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn uid(&self) -> u32 {
        self.uid.load(Ordering::Relaxed)
    }

    fn memlock_limit(&self) -> u64 {
        self.memlock.load(Ordering::Relaxed)
    }

    fn capable(&self, capability: Capability) -> bool {
        match capability {
            Capability::IpcLock => self.ipc_lock.load(Ordering::Relaxed),
            Capability::SysResource => self.sys_resource.load(Ordering::Relaxed),
        }
    }
}

enum Descriptor {
    Context(Arc<Context>),
    Engine(Arc<dyn EngineFile>),
    Backing(Arc<dyn BackingFile>),
    Other,
}

/// A caller. Its page at [`TestCaller::ARGUMENT`] takes the arguments of [`TestCaller::call`].
pub struct TestCaller {
    /// Its memory.
    pub memory: Arc<TestMemory>,
    /// Its process.
    pub process: Arc<TestProcess>,
    files: Mutex<BTreeMap<i32, Descriptor>>,
    next_fd: AtomicI32,
    result: AtomicI32,
}

impl Default for TestCaller {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCaller {
    /// Where arguments are: one writable page.
    pub const ARGUMENT: u64 = 0x1000;

    /// A privileged caller without limits, of a process and user of its own.
    pub fn new() -> Self {
        static NEXT_PID: AtomicU32 = AtomicU32::new(1000);
        let pid = NEXT_PID.fetch_add(1, Ordering::Relaxed);
        let memory = TestMemory::new();
        memory.map(Self::ARGUMENT, 1, true);
        Self {
            memory,
            process: Arc::new(TestProcess {
                pid,
                uid: AtomicU32::new(pid),
                memlock: AtomicU64::new(u64::MAX),
                ipc_lock: AtomicBool::new(true),
                sys_resource: AtomicBool::new(true),
            }),
            files: Mutex::default(),
            next_fd: AtomicI32::new(3),
            result: AtomicI32::new(-1),
        }
    }

    /// One without `CAP_IPC_LOCK` that may lock `pages` pages.
    pub fn limited(pages: u64) -> Self {
        let caller = Self::new();
        caller.process.ipc_lock.store(false, Ordering::Relaxed);
        caller.process.memlock.store(pages * PAGE_SIZE, Ordering::Relaxed);
        caller
    }

    /// A descriptor of a file that can be mapped.
    pub fn open(&self, file: Arc<dyn BackingFile>) -> i32 {
        self.add(Descriptor::Backing(file))
    }

    /// A descriptor of an iommufd, which its close closes.
    pub fn open_context(&self, context: &Arc<Context>) -> i32 {
        self.add(Descriptor::Context(context.clone()))
    }

    /// A descriptor of a pipe.
    pub fn open_other(&self) -> i32 {
        self.add(Descriptor::Other)
    }

    /// The engine's file that `fd` names.
    pub fn engine_file(&self, fd: i32) -> Option<Arc<dyn EngineFile>> {
        match self.files.lock().get(&fd)? {
            Descriptor::Engine(file) => Some(file.clone()),
            _ => None,
        }
    }

    /// Closes a descriptor.
    pub fn close(&self, fd: i32) {
        let gone = self.files.lock().remove(&fd);
        match gone {
            Some(Descriptor::Engine(file)) => file.release(),
            Some(Descriptor::Context(context)) => assert_eq!(context.close(), 0),
            _ => {}
        }
    }

    /// Makes the ioctl of `argument`, whose first word is set to its size, and takes the answer
    /// back into it.
    pub fn call<T: CommandStruct>(
        &self,
        context: &Arc<Context>,
        argument: &mut T,
    ) -> Result<i64, Errno> {
        let size = size_of::<T>() as u32;
        argument.as_mut_bytes()[..4].copy_from_slice(&size.to_ne_bytes());
        self.memory.write(Self::ARGUMENT, argument.as_bytes())?;
        let result = context.ioctl(self, T::COMMAND as u32, Self::ARGUMENT);
        self.memory.read(Self::ARGUMENT, argument.as_mut_bytes())?;
        result
    }

    fn add(&self, descriptor: Descriptor) -> i32 {
        let fd = self.next_fd.fetch_add(1, Ordering::Relaxed);
        self.files.lock().insert(fd, descriptor);
        fd
    }
}

impl Caller for TestCaller {
    fn memory(&self) -> Arc<dyn AddressSpace> {
        self.memory.clone()
    }

    fn process(&self) -> Arc<dyn Process> {
        self.process.clone()
    }

    fn file(&self, fd: i32) -> Result<CallerFile, Errno> {
        match self.files.lock().get(&fd).ok_or(Errno::EBADF)? {
            Descriptor::Context(context) => Ok(CallerFile::Context(context.id())),
            Descriptor::Engine(file) => Ok(CallerFile::Engine(file.clone())),
            Descriptor::Backing(file) => Ok(CallerFile::Backing(file.clone())),
            Descriptor::Other => Ok(CallerFile::Other),
        }
    }

    fn install(&self, file: Arc<dyn EngineFile>, number_at: u64) -> Result<(), Errno> {
        let fd = self.next_fd.load(Ordering::Relaxed);
        self.memory.write(number_at, &fd.to_ne_bytes())?;
        self.add(Descriptor::Engine(file));
        Ok(())
    }

    fn install_untold(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        self.add(Descriptor::Engine(file));
        Ok(())
    }

    fn install_as_result(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        let fd = self.add(Descriptor::Engine(file));
        self.result.store(fd, Ordering::Relaxed);
        Ok(())
    }
}
