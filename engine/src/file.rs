//! Files of the engine that callers hold descriptors of: fault queues, event queues, accesses,
//! dma-bufs.

use std::any::Any;
use std::sync::Arc;

use crate::Errno;
use crate::kept::Opens;

/// Names one open of `/dev/iommu`, unique in the life of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextId(pub u64);

bitflags::bitflags! {
    /// What `poll` answers, with the kernel's `EPOLL*` values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PollEvents: u32 {
        /// Data to read.
        const IN = 0x001;
        /// Room to write.
        const OUT = 0x004;
        /// An error state.
        const ERR = 0x008;
        /// The other end is gone.
        const HUP = 0x010;
        /// Normal data to read.
        const RDNORM = 0x040;
        /// Normal data may be written.
        const WRNORM = 0x100;
    }
}

/// Where a read puts its bytes. A fault half-way is the caller's pointer being bad.
pub trait ReadBuffer {
    /// Bytes that still fit.
    fn room(&self) -> usize;
    /// Appends `bytes`, all or nothing. `EFAULT` when the caller's memory does not take them.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno>;
}

/// A file that the engine made and a front end gave to a caller.
///
/// No method blocks: a blocking read is the front end's, which waits for [`Wake::wake`] and asks
/// again.
pub trait EngineFile: Send + Sync {
    /// The name that `/proc/PID/fd` shows upstream, such as `[iommufd-pgfault]`.
    fn name(&self) -> &'static str;

    /// Whether `O_RDWR` (else `O_RDONLY`) is the descriptor's mode.
    fn writable(&self) -> bool;

    /// Reads what is there. `EAGAIN` when nothing is; the front end then blocks or returns it. A file
    /// that is not read answers `EINVAL`.
    fn read(&self, into: &mut dyn ReadBuffer) -> Result<(), Errno> {
        let _ = into;
        Err(Errno::EINVAL)
    }

    /// Writes `bytes`, and says how many it took. A file that is not written answers `EINVAL`.
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let _ = bytes;
        Err(Errno::EINVAL)
    }

    /// Whether a descriptor of it only names it, for ioctls and for `mmap`: reads and writes are
    /// errors, and polls find it ready. Its last close is all that it hears of.
    fn only_names(&self) -> bool {
        false
    }

    /// What is ready now. A file without `poll` always is.
    fn poll(&self) -> PollEvents {
        PollEvents::IN | PollEvents::OUT | PollEvents::RDNORM | PollEvents::WRNORM
    }

    /// Asks for a call of `wake` each time [`EngineFile::poll`] may answer more than before.
    fn watch(&self, wake: Arc<dyn Wake>) {
        let _ = wake;
    }

    /// The pages behind the file for `mmap` and `IOMMU_IOAS_MAP_FILE`, if it has any (dma-buf).
    fn backing(&self) -> Option<Arc<dyn crate::memory::BackingFile>> {
        None
    }

    /// The last descriptor is closed. Called once. It ends, unless an area maps it.
    fn release(&self) {
        if self.opens().is_none_or(Opens::close) {
            self.end();
        }
    }

    /// What keeps it open. Nothing for a file of which nobody can see whether it is.
    fn opens(&self) -> Option<&Opens> {
        None
    }

    /// Nothing keeps it open any more. Called once, with no lock held.
    fn end(&self);

    /// For the engine to know its own file again.
    fn as_any(&self) -> &dyn Any;

    /// For the engine to know its own file again.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// Somebody who waits for an [`EngineFile`].
pub trait Wake: Send + Sync {
    /// The file's state changed. Called with engine locks held: only notes it and returns.
    fn wake(&self);
}
