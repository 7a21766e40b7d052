//! A file of a caller, mapped into this process: the very pages that the caller sees.
#![allow(unsafe_code)] // mmap and copies to and from it

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use engine::Errno;
use engine::dma::atomic::Width;
use nix::unistd::Whence;
use parking_lot::Mutex;
use rangemap::RangeSet;

use super::guarded;
use super::losses::Losses;
use super::rings::Grain;
use super::trap::{Stop, Traps};

const PAGE: usize = engine::memory::PAGE_SIZE as usize;

/// `HUGETLBFS_MAGIC` of `<linux/magic.h>`.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// `TMPFS_MAGIC` of `<linux/magic.h>`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// The least that mappings are aligned to: a huge page of the processor.
const LARGEST_ALIGNMENT: usize = 2 << 20;

/// What kind of file a descriptor names, as far as pinning goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileKind {
    /// Device and inode.
    pub(crate) id: (u64, u64),
    /// Bytes in it now.
    pub(crate) size: u64,
    /// memfd, tmpfs, SysV or hugetlbfs: its pages can be pinned for long.
    pub(crate) pinnable: bool,
    /// Bytes of a page of the file's mappings.
    pub(crate) page: usize,
    /// A regular file.
    pub(crate) regular: bool,
}

impl FileKind {
    /// Asks the kernel about `file`.
    pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = nix::sys::stat::fstat(file)?;
        let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let (mut pinnable, mut page) = (false, PAGE);
        if regular {
            let system = nix::sys::statfs::fstatfs(file)?;
            match system.filesystem_type().0 as i64 {
                HUGETLBFS_MAGIC => {
                    pinnable = true;
                    page = usize::try_from(system.block_size()).unwrap_or(PAGE).max(PAGE);
                }
                TMPFS_MAGIC => pinnable = true,
                _ => {}
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Self { id: (stat.st_dev, stat.st_ino), size, pinnable, page, regular })
    }
}

/// A file mapped shared, from its first byte.
pub(crate) struct FileMap {
    base: *mut u8,
    length: usize,
    id: (u64, u64),
    writable: bool,
    pinnable: bool,
    /// Bytes of a page of it.
    page: u64,
    file: OwnedFd,
    trapped: Option<Trapped>,
}

/// What a mapping has to which pages are put, and do not come by themselves.
struct Trapped {
    traps: Arc<Traps>,
    /// The bytes of the file whose pages were put there. Each is once: when it is not there any more,
    /// the file has lost it (or the kernel has unmapped it to see whether anybody wants it), and
    /// somebody may hold it still.
    put: Mutex<RangeSet<u64>>,
    losses: Losses,
}

impl Trapped {
    fn new(traps: Arc<Traps>) -> Self {
        Self { traps, put: Mutex::default(), losses: Losses::default() }
    }
}

/// How often the file is given pages that somebody takes away at once.
const MOST_TRIES: u32 = 8;

// SAFETY: the mapping belongs to the process, not to a thread, and lives until drop. Accesses go
// through raw pointers to memory that other processes change at any time anyway.
unsafe impl Send for FileMap {}
// SAFETY: as above.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps `file`. With `traps` the mapping has no page until one is [put](FileMap::put) there.
    pub(super) fn new(
        file: OwnedFd,
        kind: &FileKind,
        writable: bool,
        traps: Option<Arc<Traps>>,
    ) -> Result<Self, Errno> {
        guarded::install();
        let length = usize::try_from(kind.size).map_err(|_| Errno::ENOMEM)?;
        let length = length.checked_next_multiple_of(kind.page).ok_or(Errno::ENOMEM)?;
        if length == 0 {
            return Err(Errno::EFAULT);
        }
        // Files are mapped at an address aligned as they are inside, so that large pages of the
        // file can be large pages of the mapping.
        let align = kind.page.max(LARGEST_ALIGNMENT);
        let span = length.checked_add(align).ok_or(Errno::ENOMEM)?;
        let rights = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh reservation at an address of the kernel's choice touches nothing.
        let reserved = unsafe {
            libc::mmap(
                ptr::null_mut(),
                span,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = reserved as usize;
        let base = start.next_multiple_of(align);
        // SAFETY: `base..base+length` lies in the reservation just made, which nobody else knows.
        let mapped = unsafe {
            libc::mmap(
                base as *mut libc::c_void,
                length,
                rights,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        let error = (mapped == libc::MAP_FAILED).then(Errno::last);
        let keep = if error.is_some() { base..base } else { base..base + length };
        for spare in [start..keep.start, keep.end..start + span] {
            if !spare.is_empty() {
                // SAFETY: the parts of the reservation that the file does not cover.
                unsafe { libc::munmap(spare.start as *mut libc::c_void, spare.len()) };
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        let mut map = Self {
            base: base as *mut u8,
            length,
            id: kind.id,
            writable,
            pinnable: kind.pinnable,
            page: kind.page as u64,
            file,
            trapped: traps.map(Trapped::new),
        };
        if let Some(trapped) = &map.trapped
            && let Err(error) = trapped.traps.set(base as u64, length as u64)
        {
            tracing::debug!(%error, "a mapping does not keep its pages");
            map.trapped = None;
        }
        Ok(map)
    }

    /// Device and inode of the file.
    pub(crate) fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Whether the mapping allows writing.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// What its pages are.
    pub(super) fn grain(&self) -> Grain {
        if self.page > PAGE as u64 { Grain::Huge } else { Grain::Small }
    }

    /// The file.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Bytes of the file that are mapped.
    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    /// Whether what was put there stays or is missing, and never is another page.
    pub(super) fn keeps(&self) -> bool {
        self.trapped.is_some()
    }

    /// What it knows of the pages that it has no more, if it keeps pages.
    pub(super) fn losses(&self) -> Option<&Losses> {
        self.trapped.as_ref().map(|trapped| &trapped.losses)
    }

    /// The bytes of the file whose pages were put there.
    pub(super) fn ever_put(&self) -> RangeSet<u64> {
        self.trapped.as_ref().map(|trapped| trapped.put.lock().clone()).unwrap_or_default()
    }

    /// Whether the kernel would pin pages of the file for writing.
    pub(crate) fn pinnable(&self) -> bool {
        self.pinnable
    }

    /// The address in this process of byte `offset` of the file, when `length` bytes from there
    /// are mapped.
    pub(crate) fn at(&self, offset: u64, length: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        (offset.checked_add(length)? <= self.length).then(|| self.base.wrapping_add(offset))
    }

    /// Makes the pages from `offset` present, as a pin would. `EFAULT` for what is past the end.
    /// Not for a mapping that [keeps](FileMap::keeps) its pages.
    pub(crate) fn populate(&self, offset: u64, length: usize) -> Result<(), Errno> {
        let advice =
            if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        self.advise(offset, length, advice)
    }

    /// The same for a pin that follows: to read makes the pages of a shared mapping, too, and many
    /// with one fault. In a mapping that keeps its pages those that were there once and no longer are
    /// stay away, which the pin then finds.
    pub(super) fn prepare(&self, offset: u64, length: usize) -> Result<(), Errno> {
        let Some(trapped) = &self.trapped else {
            return self.advise(offset, length, libc::MADV_POPULATE_READ);
        };
        self.at(offset, length).ok_or(Errno::EFAULT)?;
        let page = self.page;
        let wanted = offset & !(page - 1)..(offset + length as u64).next_multiple_of(page);
        let mut put = trapped.put.lock();
        let new: Vec<_> = put.gaps(&wanted).collect();
        for gap in new {
            self.put(&trapped.traps, gap.clone())?;
            put.insert(gap);
            trapped.losses.grown();
        }
        Ok(())
    }

    /// Puts the file's pages of `bytes` into the mapping, and makes those that it does not have.
    fn put(&self, traps: &Traps, bytes: Range<u64>) -> Result<(), Errno> {
        let mut at = bytes.start;
        for _ in 0..MOST_TRIES {
            loop {
                let (done, stop) = traps.put(self.base as u64 + at, bytes.end - at);
                at += done;
                match stop {
                    None => return Ok(()),
                    // Of an earlier attempt that failed further on.
                    Some(Stop::Present) => at += self.page,
                    Some(Stop::Hole) => break,
                    Some(Stop::Failed(error)) => return Err(error),
                }
                if at >= bytes.end {
                    return Ok(());
                }
            }
            self.make(at..bytes.end)?;
        }
        Err(Errno::EFAULT)
    }

    /// Has the file make the pages of `bytes` that it does not have, as a pin would.
    fn make(&self, bytes: Range<u64>) -> Result<(), Errno> {
        let offset = libc::off_t::try_from(bytes.start).map_err(|_| Errno::EFAULT)?;
        let length = (bytes.end - bytes.start) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            libc::mmap(ptr::null_mut(), length, rights, flags, self.file.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let made = populate(at.cast(), length, libc::MADV_POPULATE_READ);
        // SAFETY: the mapping just made, whose address nobody else knows.
        unsafe { libc::munmap(at, length) };
        made
    }

    fn advise(&self, offset: u64, length: usize, advice: i32) -> Result<(), Errno> {
        populate(self.at(offset, length).ok_or(Errno::EFAULT)?, length, advice)
    }

    /// The ranges of `offset..offset+length` in which the file has pages; at most `most`.
    pub(crate) fn data(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Range<u64>>, Errno> {
        let end = offset + length;
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).map_err(|_| Errno::EINVAL)?;
            let found = nix::unistd::lseek(&self.file, at, whence)?;
            u64::try_from(found).map_err(|_| Errno::EINVAL)
        };
        let mut found = Vec::new();
        let mut at = offset;
        while at < end && found.len() < most {
            let start = match seek(at, Whence::SeekData) {
                Ok(start) => start & !(self.page - 1),
                // No more; or a file that knows no holes (hugetlbfs).
                Err(Errno::ENXIO) => break,
                Err(_) => return Ok(std::iter::once(offset..end).collect()),
            };
            let stop = seek(start, Whence::SeekHole)?.next_multiple_of(self.page).min(end);
            if start.max(at) < stop {
                found.push(start.max(at)..stop);
            }
            at = stop.max(at + self.page);
        }
        Ok(found)
    }

    /// Reads what the file itself has at byte `offset`. False past its end.
    pub(super) fn file_has(&self, offset: u64, into: &mut [u8]) -> bool {
        let read = i64::try_from(offset)
            .map_err(|_| Errno::EINVAL)
            .and_then(|offset| nix::sys::uio::pread(&self.file, into, offset));
        read == Ok(into.len())
    }

    /// Copies from byte `offset` of the file. `EFAULT` for what is not there.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.at(offset, into.len()).ok_or(Errno::EFAULT)?;
        // SAFETY: `from` and the bytes after it are mapped while `self` lives, which installed the
        // guard. Others may write them meanwhile, as they may during real DMA: the copy then has old
        // or new bytes, and none of them are trusted.
        let copied = unsafe { guarded::copy(into.as_mut_ptr(), from, into.len()) };
        copied.map_err(|_| self.missed(offset, into.len()))
    }

    /// Copies to byte `offset` of the file. `EFAULT` for what is not there or may not be written.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::EFAULT);
        }
        let to = self.at(offset, from.len()).ok_or(Errno::EFAULT)?;
        // SAFETY: as in `read`, and the mapping is writable.
        let copied = unsafe { guarded::copy(to, from.as_ptr(), from.len()) };
        copied.map_err(|_| self.missed(offset, from.len()))
    }

    fn missed(&self, offset: u64, length: usize) -> Errno {
        if let Some(losses) = self.losses() {
            losses.missed(offset..offset + length as u64);
        }
        Errno::EFAULT
    }

    /// Replaces the `width` bytes at byte `offset` of the file, which is a multiple of that, if they
    /// are `old`: what was there. Nothing for what is not there or may not be written.
    pub(super) fn compare_exchange(
        &self,
        offset: u64,
        width: Width,
        old: u64,
        new: u64,
    ) -> Option<u64> {
        let at = self.at(offset, width.bytes() as usize).filter(|_| self.writable)?;
        if !offset.is_multiple_of(width.bytes()) {
            return None;
        }
        // SAFETY: aligned, as the mapping begins at a page, and mapped while `self` lives, which
        // installed the guard.
        unsafe { guarded::compare_exchange(at, width, old, new) }.ok()
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and with the last reference nobody uses its addresses.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// Makes pages of a mapping of a file present. `EFAULT` for what is past its end.
fn populate(at: *mut u8, length: usize, advice: i32) -> Result<(), Errno> {
    loop {
        // SAFETY: callers give a mapping of theirs, and populating changes no contents.
        match unsafe { libc::madvise(at.cast(), length, advice) } {
            0 => return Ok(()),
            _ => match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => {}
                Errno::ENOMEM => return Err(Errno::ENOMEM),
                _ => return Err(Errno::EFAULT),
            },
        }
    }
}
