//! The calling thread, as a front end shows it to the engine for the length of one call.

use std::sync::Arc;

use crate::Errno;
use crate::file::EngineFile;
use crate::memory::{AddressSpace, BackingFile};

/// The thread whose call is being answered.
///
/// A front end builds one for each request. What must outlive the call is behind an [`Arc`].
pub trait Caller: Send + Sync {
    /// The memory that the call's pointers point into.
    fn memory(&self) -> Arc<dyn AddressSpace>;

    /// Who is charged for pinned pages, and by which limits.
    fn process(&self) -> Arc<dyn Process>;

    /// What the caller's descriptor `fd` names. `EBADF` when it names nothing.
    fn file(&self, fd: i32) -> Result<CallerFile, Errno>;

    /// Gives the caller a descriptor for `file` (with close-on-exec, as the kernel's anonymous
    /// inodes have) and stores its number as an `i32` at `number_at` in the caller's memory.
    ///
    /// By the time the ioctl returns to the caller both have happened. On an error (`EMFILE`,
    /// `EFAULT`, ...) neither is visible, and the front end has dropped `file`. After the last
    /// descriptor is closed the front end calls [`EngineFile::release`] once.
    fn install(&self, file: Arc<dyn EngineFile>, number_at: u64) -> Result<(), Errno>;

    /// Like [`Caller::install`] for a call that tells the number to nobody, as Linux 7.3's
    /// `IOMMU_TEST_OP_DMABUF_GET` does.
    fn install_untold(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno>;

    /// Like [`Caller::install`] for calls that return the descriptor as the ioctl's result
    /// (the selftest's `IOMMU_TEST_OP_DMABUF_GET`): the front end replaces the result by the
    /// number.
    fn install_as_result(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno>;
}

/// The process behind a call: what accounting asks of it. It may have died since.
pub trait Process: Send + Sync {
    /// Thread-group id, for reports.
    fn pid(&self) -> u32;

    /// Real user id in the initial namespace, the key of per-user accounting.
    fn uid(&self) -> u32;

    /// The soft `RLIMIT_MEMLOCK` in bytes, `u64::MAX` for none.
    fn memlock_limit(&self) -> u64;

    /// Whether the process holds `capability`.
    fn capable(&self, capability: Capability) -> bool;
}

/// The capabilities that iommufd asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_IPC_LOCK`: pins without limit.
    IpcLock,
    /// `CAP_SYS_RESOURCE`: may set `IOMMU_OPTION_RLIMIT_MODE`.
    SysResource,
}

/// What a descriptor of the caller names.
pub enum CallerFile {
    /// A file of this engine that [`Caller::install`] delivered.
    Engine(Arc<dyn EngineFile>),
    /// An iommufd context of this engine, by its id.
    Context(crate::file::ContextId),
    /// A file whose pages can be mapped: memfd, tmpfs, hugetlbfs, an ordinary file.
    Backing(Arc<dyn BackingFile>),
    /// A file whose pages cannot be mapped: pipe, socket, directory and the like.
    Other,
}
