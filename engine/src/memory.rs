//! The caller's memory as the engine needs it: copying, and pages that stay.
//!
//! An [`AddressSpace`] is one mm. It stays the same mm through pid reuse and after exec and exit
//! of the process that it came from. A [`Pin`] holds pages of it (or of a file), as
//! `pin_user_pages(FOLL_LONGTERM)` does.

use std::ops::Range;
use std::sync::Arc;

use crate::Errno;

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

    /// Runs `with` on the pin's pages where they are mapped in this process, or answers false
    /// where they are not. The pointer is valid during `with` for `bytes`.
    /// An access to a page that a truncation took is made a zero page, never a signal.
    fn window(&self, bytes: Range<u64>, with: &mut dyn FnMut(*mut u8)) -> bool {
        let _ = (bytes, with);
        false
    }

    /// Lets `pages` go. What was let go must not be touched again.
    fn release(&self, pages: Range<u64>);

    /// How the pages are held, for reports.
    fn held(&self) -> Held;
}

/// How a [`Pin`] holds its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The very pages, shared with the caller, and kept in their frames.
    Shared,
    /// The very pages, shared with the caller. The kernel may move them to other frames, or has not
    /// made them yet, for this reason.
    Mapped(&'static str),
    /// A kernel pin of private memory.
    Pinned,
    /// A live view of the caller's addresses, with the reason: follows the VA, not the page.
    Window(&'static str),
    /// A copy made when it was pinned, with the reason.
    Copy(&'static str),
}
