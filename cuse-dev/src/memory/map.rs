//! Files of callers, mapped into this process: the very pages that the caller sees.
//!
//! One mapping of a whole file serves all pins of it, so that a pin of shared memory costs no
//! `mmap` of its own (a process has only 65530 of them) and two pins of one page are one page.
#![allow(unsafe_code)] // mmap and copies to and from it

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Weak};

use engine::Errno;
use nix::unistd::Whence;
use parking_lot::Mutex;

use super::rings::Grain;
use super::sigbus::{self, Watched};

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
    _watched: Watched,
    file: OwnedFd,
}

// SAFETY: the mapping belongs to the process, not to a thread, and lives until drop. Accesses go
// through raw pointers to memory that other processes change at any time anyway.
unsafe impl Send for FileMap {}
// SAFETY: as above.
unsafe impl Sync for FileMap {}

impl FileMap {
    fn new(file: OwnedFd, kind: &FileKind, writable: bool) -> Result<Self, Errno> {
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
        match sigbus::watch(base, length, kind.page) {
            Ok(watched) => Ok(Self {
                base: base as *mut u8,
                length,
                id: kind.id,
                writable,
                pinnable: kind.pinnable,
                _watched: watched,
                page: kind.page as u64,
                file,
            }),
            Err(error) => {
                // SAFETY: the mapping just made; nobody has seen its address.
                unsafe { libc::munmap(base as *mut libc::c_void, length) };
                Err(error)
            }
        }
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
    pub(crate) fn populate(&self, offset: u64, length: usize) -> Result<(), Errno> {
        let advice =
            if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        self.advise(offset, length, advice)
    }

    /// The same for a pin that follows: to read makes the pages of a shared mapping, too, and many
    /// with one fault.
    pub(super) fn prepare(&self, offset: u64, length: usize) -> Result<(), Errno> {
        self.advise(offset, length, libc::MADV_POPULATE_READ)
    }

    fn advise(&self, offset: u64, length: usize, advice: i32) -> Result<(), Errno> {
        let at = self.at(offset, length).ok_or(Errno::EFAULT)?;
        loop {
            // SAFETY: the range lies in our own mapping, and populating changes no contents.
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

    /// Copies from byte `offset` of the file.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.at(offset, into.len()).ok_or(Errno::EFAULT)?;
        // SAFETY: `from` and the bytes after it are mapped while `self` lives; a truncated page
        // becomes a zero page. Others may write them meanwhile, as they may during real DMA:
        // the copy then has old or new bytes, and none of them are trusted.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies to byte `offset` of the file.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::EFAULT);
        }
        let to = self.at(offset, from.len()).ok_or(Errno::EFAULT)?;
        // SAFETY: as in `read`, and the mapping is writable.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and with the last reference nobody uses its addresses.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// The files that are mapped now.
#[derive(Default)]
pub(crate) struct FileMaps(Mutex<HashMap<(u64, u64, bool), Weak<FileMap>>>);

impl FileMaps {
    /// A mapping of the file with that device and inode that has at least `needed` bytes, if
    /// there is one. A mapped file lives, so the inode's number cannot mean another one.
    pub(crate) fn find(&self, id: (u64, u64), needed: u64, write: bool) -> Option<Arc<FileMap>> {
        let maps = self.0.lock();
        let map = maps.get(&(id.0, id.1, write))?.upgrade()?;
        (map.length as u64 >= needed).then_some(map)
    }

    /// A mapping of `file` for a pin: one that may be written where that can be had at all, since
    /// only such pages can be kept in place; for `write`, none else.
    ///
    /// Whether devices may write is not decided here.
    pub(crate) fn for_pin(
        &self,
        file: impl AsFd,
        kind: &FileKind,
        needed: u64,
        write: bool,
    ) -> Result<Arc<FileMap>, Errno> {
        if let Some(map) = self.find(kind.id, needed, true) {
            return Ok(map);
        }
        let file = file.as_fd();
        match self.get(file, kind, needed, true) {
            Err(Errno::EACCES) if !write && kind.pinnable => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let again = std::fs::OpenOptions::new().read(true).write(true).open(path);
                let map = again.ok().and_then(|file| self.get(&file, kind, needed, true).ok());
                map.map_or_else(|| self.get(file, kind, needed, false), Ok)
            }
            // Sealed against writing.
            Err(Errno::EPERM | Errno::EACCES) if !write => self.get(file, kind, needed, false),
            other => other,
        }
    }

    /// A mapping of `file` that has at least `needed` bytes.
    ///
    /// `file` is consulted only when there is none yet, and may then be opened again.
    pub(crate) fn get(
        &self,
        file: impl AsFd,
        kind: &FileKind,
        needed: u64,
        writable: bool,
    ) -> Result<Arc<FileMap>, Errno> {
        let key = (kind.id.0, kind.id.1, writable);
        let mut maps = self.0.lock();
        if let Some(map) = maps.get(&key).and_then(Weak::upgrade)
            && map.length as u64 >= needed
        {
            return Ok(map);
        }
        let copy = file.as_fd().try_clone_to_owned().map_err(|_| Errno::ENFILE)?;
        let map = Arc::new(FileMap::new(copy, kind, writable)?);
        if (map.length as u64) < needed {
            return Err(Errno::EFAULT);
        }
        maps.retain(|_, map| map.strong_count() > 0);
        maps.insert(key, Arc::downgrade(&map));
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    fn memfd(bytes: i64) -> OwnedFd {
        let file = memfd_create(c"map-test", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, bytes).unwrap();
        file
    }

    #[test]
    fn one_mapping_serves_all() {
        let maps = FileMaps::default();
        let file = memfd(3 * 4096);
        let kind = FileKind::of(file.as_fd()).unwrap();
        assert!(kind.pinnable && kind.regular);
        let map = maps.get(&file, &kind, 4096, true).unwrap();
        let again = maps.get(&file, &kind, 3 * 4096, true).unwrap();
        assert!(Arc::ptr_eq(&map, &again));
        map.write(4090, b"across two pages").unwrap();
        let mut seen = [0; 16];
        nix::sys::uio::pread(&file, &mut seen, 4090).unwrap();
        assert_eq!(&seen, b"across two pages");
        assert_eq!(map.read(3 * 4096 - 1, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(maps.get(&file, &kind, 4 * 4096, true).err(), Some(Errno::EFAULT));
    }

    #[test]
    fn a_file_that_grew_is_mapped_anew() {
        let maps = FileMaps::default();
        let file = memfd(4096);
        let small = maps.get(&file, &FileKind::of(file.as_fd()).unwrap(), 4096, true).unwrap();
        ftruncate(&file, 8192).unwrap();
        let kind = FileKind::of(file.as_fd()).unwrap();
        let large = maps.get(&file, &kind, 8192, true).unwrap();
        assert!(!Arc::ptr_eq(&small, &large));
        large.write(0, b"both").unwrap();
        let mut seen = [0; 4];
        small.read(0, &mut seen).unwrap();
        assert_eq!(&seen, b"both");
    }

    #[test]
    fn a_truncated_page_reads_zeroes() {
        let maps = FileMaps::default();
        let file = memfd(8192);
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.get(&file, &kind, 8192, true).unwrap();
        map.write(0, &[7; 8192]).unwrap();
        ftruncate(&file, 4096).unwrap();
        let before = sigbus::replaced();
        let mut seen = [1; 8192];
        map.read(0, &mut seen).unwrap();
        assert!(seen[..4096].iter().all(|&byte| byte == 7));
        assert!(seen[4096..].iter().all(|&byte| byte == 0));
        assert!(sigbus::replaced() > before);
        map.write(5000, b"goes nowhere").unwrap();
    }

    #[test]
    fn populate_makes_pages_and_stops_at_the_end() {
        let maps = FileMaps::default();
        let file = memfd(8192);
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.get(&file, &kind, 8192, true).unwrap();
        map.populate(0, 8192).unwrap();
        assert_eq!(nix::sys::stat::fstat(&file).unwrap().st_blocks, 16);
        ftruncate(&file, 4096).unwrap();
        assert_eq!(map.populate(0, 8192), Err(Errno::EFAULT));
    }
}
