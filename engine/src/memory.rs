//! The caller's memory as the engine needs it: copying, and pages that stay.
//!
//! An [`AddressSpace`] is one mm. It stays the same mm through pid reuse and after exec and exit
//! of the process that it came from. A [`Pin`] holds pages of it (or of a file), as
//! `pin_user_pages(FOLL_LONGTERM)` does.

use std::ops::Range;
use std::sync::Arc;

use crate::Errno;
use crate::dma::atomic::Width;

/// Bytes of a page of the caller.
pub const PAGE_SIZE: u64 = 4096;

/// Names one mm, unique in the life of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MmId(pub u64);

/// One mm of a caller.
pub trait AddressSpace: Send + Sync {
    /// Which mm this is. Two callers with the same memory answer the same.
    fn id(&self) -> MmId;

    /// The process for reports: "pid 4711 (qemu)".
    fn describe(&self) -> String;

    /// The process that it was found in, for reports.
    fn pid(&self) -> Option<u32> {
        None
    }

    /// Whether no process has it any more: after exec and exit.
    fn gone(&self) -> bool {
        false
    }

    /// The frame that is at `address` now, or nothing where there is none: for reports, which tell
    /// whether a pinned page still is the process's. `EOPNOTSUPP` where that cannot be seen.
    fn frame_at(&self, address: u64) -> Result<Option<u64>, Errno> {
        let _ = address;
        Err(Errno::EOPNOTSUPP)
    }

    /// Copies `into.len()` bytes from `address`, with the caller's own rights.
    /// `EFAULT` when any byte is not readable; `into` is then unspecified.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Copies `from` to `address`, with the caller's own rights.
    /// `EFAULT` when any byte is not writable; some bytes may have been written.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno>;

    /// Pins `pages` pages from the page-aligned `address`, all or nothing. `write` asks for
    /// write access and breaks copy-on-write first.
    ///
    /// `EFAULT` when a page is missing, lacks the right, or is `VM_IO`/`VM_PFNMAP`.
    /// `ENOMEM` when the system cannot hold it.
    fn pin(&self, address: u64, pages: u64, write: bool) -> Result<Arc<dyn Pin>, Errno>;
}

/// A file whose pages `IOMMU_IOAS_MAP_FILE` can pin.
pub trait BackingFile: Send + Sync {
    /// For reports: "memfd:guest-ram".
    fn describe(&self) -> String;

    /// Whether the descriptor allows writing.
    fn writable(&self) -> bool;

    /// Whether pages of this kind of file can be pinned (memfd, shmem, hugetlbfs; not ext4).
    /// The kernel's `memfd_pin_folios` refuses the rest with `EINVAL` once a page is needed.
    fn pinnable(&self) -> bool;

    /// Bytes in the file now.
    fn size(&self) -> u64;

    /// Pins `pages` pages from the page-aligned byte `offset`, all or nothing.
    fn pin(&self, offset: u64, pages: u64, write: bool) -> Result<Arc<dyn Pin>, Errno>;

    /// For a dma-buf of the engine: the exporter, else nothing.
    fn dmabuf(&self) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        None
    }
}

/// Pages that stay, until [`Pin::release`] or drop. Page numbers count from the pin's first page.
pub trait Pin: Send + Sync {
    /// How many pages were pinned.
    fn pages(&self) -> u64;

    /// The physical frames of `pages`, as runs in order: (first PFN, how many follow each other).
    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64));

    /// Copies from byte `offset` of the pin.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Copies to byte `offset` of the pin.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno>;

    /// Compares the bytes at the aligned byte `offset` with `old` and, where they are equal, replaces
    /// them by `new`, in one step towards everybody else who has the page. Answers what was there;
    /// all three as the processor would load them. Nothing where that cannot be had.
    fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        old: u64,
        new: u64,
    ) -> Option<Result<u64, Errno>> {
        let _ = (offset, width, old, new);
        None
    }

    /// Calls `each` with (first page, how many) for those of `pages` that their file was found to have no
    /// more, since it was truncated or a hole was punched into it, and that nobody was told of.
    fn lost(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let _ = (pages, each);
    }

    /// Lets `pages` go. What was let go must not be touched again.
    fn release(&self, pages: Range<u64>);

    /// How the pages are held, for reports.
    fn held(&self) -> Held;
}

/// How a [`Pin`] holds its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A kernel pin of the very pages of shared memory, which are mapped here, too.
    Shared,
    /// A mapping of the file behind them, with the reason: shows what the file has there, which after a
    /// truncation is another page; in the frames that it has at the time.
    Mapped(&'static str),
    /// A kernel pin that is reached through the kernel alone.
    Pinned,
    /// A live view of the caller's addresses, with the reason: follows the VA, not the page.
    Window(&'static str),
    /// A copy made when it was pinned, with the reason.
    Copy(&'static str),
}
