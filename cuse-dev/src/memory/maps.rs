//! The files of callers that are mapped here.
//!
//! One mapping of a whole file serves all pins of it, so that a pin of shared memory costs no
//! `mmap` of its own (a process has only 65530 of them). Where the file's pages can be kept, that is a
//! mapping which [keeps](FileMap::keeps) them. A file that has lost pinned pages and gets new ones is
//! mapped again for those: the pins that there are go on with the mapping that they have.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam_channel::Sender;
use engine::Errno;
use parking_lot::Mutex;

use super::map::{FileKind, FileMap};
use super::trap::Traps;

/// What a mapping of a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    /// Pins: it keeps pages, and may be written.
    Pins,
    /// Whatever the file has, to be written.
    Writing,
    /// The same, to be read.
    Reading,
}

type Key = ((u64, u64), Use);

/// The files that are mapped now.
#[derive(Default)]
pub(crate) struct FileMaps {
    maps: Mutex<HashMap<Key, Weak<FileMap>>>,
    /// Nothing where the kernel has no such thing for us.
    traps: OnceLock<Option<Arc<Traps>>>,
    /// Who watches those that keep pages.
    watch: OnceLock<Sender<Weak<FileMap>>>,
}

impl FileMaps {
    fn traps(&self) -> Option<&Arc<Traps>> {
        let new = || {
            let traps = Traps::new();
            let told = traps.inspect_err(|error| {
                tracing::debug!(%error, "pins of files are reached by way of io_uring");
            });
            told.ok().map(Arc::new)
        };
        self.traps.get_or_init(new).as_ref()
    }

    /// Gives all mappings that keep pages, from now on, to `watch`.
    pub(super) fn watched_by(&self, watch: Sender<Weak<FileMap>>) {
        let _ = self.watch.set(watch);
    }

    /// A mapping of the file with that device and inode that has at least `needed` bytes, if
    /// there is one for a pin, one to `write` if so said. A mapped file lives, so the inode's number
    /// cannot mean another one.
    pub(crate) fn find(&self, id: (u64, u64), needed: u64, write: bool) -> Option<Arc<FileMap>> {
        let found = |what| {
            let map = self.maps.lock().get(&(id, what))?.upgrade()?;
            (map.length() >= needed).then_some(map)
        };
        // What only shows the file's pages is none for a pin that could keep them.
        let shows = |map: &Arc<FileMap>| !map.pinnable() || self.traps().is_none();
        found(Use::Pins)
            .or_else(|| found(Use::Writing).filter(shows))
            .or_else(|| found(Use::Reading).filter(|map| !write && !map.pinnable()))
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
        let best = if kind.pinnable && self.traps().is_some() { Use::Pins } else { Use::Writing };
        match self.get(file, kind, needed, best) {
            Err(Errno::EACCES) if !write && kind.pinnable => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let again = std::fs::OpenOptions::new().read(true).write(true).open(path);
                let map = again.ok().and_then(|file| self.get(&file, kind, needed, best).ok());
                map.map_or_else(|| self.get(file, kind, needed, Use::Reading), Ok)
            }
            // Sealed against writing.
            Err(Errno::EPERM | Errno::EACCES) if !write => {
                self.get(file, kind, needed, Use::Reading)
            }
            other => other,
        }
    }

    /// A mapping of `map`'s file that shows what the file has, whatever that is.
    pub(super) fn showing(&self, map: &Arc<FileMap>) -> Result<Arc<FileMap>, Errno> {
        if !map.keeps() {
            return Ok(map.clone());
        }
        let kind = FileKind::of(map.file().as_fd())?;
        self.get(map.file(), &kind, 0, Use::Writing)
    }

    /// Another mapping than `map`, which has lost pages, for pins of its file from now on. `EFAULT`
    /// where the file has fewer than `needed` bytes now.
    pub(super) fn renew(&self, map: &Arc<FileMap>, needed: u64) -> Result<Arc<FileMap>, Errno> {
        let kind = FileKind::of(map.file().as_fd())?;
        let key = (kind.id, Use::Pins);
        {
            let mut maps = self.maps.lock();
            if maps.get(&key).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(map))) {
                maps.remove(&key);
            }
        }
        self.get(map.file(), &kind, needed, Use::Pins)
    }

    /// A mapping of `file` that has at least `needed` bytes.
    ///
    /// `file` is consulted only when there is none yet, and may then be opened again.
    fn get(
        &self,
        file: impl AsFd,
        kind: &FileKind,
        needed: u64,
        what: Use,
    ) -> Result<Arc<FileMap>, Errno> {
        let key = (kind.id, what);
        let mut maps = self.maps.lock();
        if let Some(map) = maps.get(&key).and_then(Weak::upgrade)
            && map.length() >= needed
        {
            return Ok(map);
        }
        let copy = file.as_fd().try_clone_to_owned().map_err(|_| Errno::ENFILE)?;
        let traps = if what == Use::Pins { self.traps().cloned() } else { None };
        let map = Arc::new(FileMap::new(copy, kind, what != Use::Reading, traps)?);
        if map.length() < needed {
            return Err(Errno::EFAULT);
        }
        if map.keeps()
            && let Some(watch) = self.watch.get()
        {
            let _ = watch.send(Arc::downgrade(&map));
        }
        maps.retain(|_, map| map.strong_count() > 0);
        maps.insert(key, Arc::downgrade(&map));
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use engine::dma::atomic::Width;
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
        let map = maps.get(&file, &kind, 4096, Use::Writing).unwrap();
        let again = maps.get(&file, &kind, 3 * 4096, Use::Writing).unwrap();
        assert!(Arc::ptr_eq(&map, &again));
        map.write(4090, b"across two pages").unwrap();
        let mut seen = [0; 16];
        nix::sys::uio::pread(&file, &mut seen, 4090).unwrap();
        assert_eq!(&seen, b"across two pages");
        assert_eq!(map.read(3 * 4096 - 1, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(maps.get(&file, &kind, 4 * 4096, Use::Writing).err(), Some(Errno::EFAULT));
    }

    #[test]
    fn a_file_that_grew_is_mapped_anew() {
        let maps = FileMaps::default();
        let file = memfd(4096);
        let small =
            maps.get(&file, &FileKind::of(file.as_fd()).unwrap(), 4096, Use::Writing).unwrap();
        ftruncate(&file, 8192).unwrap();
        let kind = FileKind::of(file.as_fd()).unwrap();
        let large = maps.get(&file, &kind, 8192, Use::Writing).unwrap();
        assert!(!Arc::ptr_eq(&small, &large));
        large.write(0, b"both").unwrap();
        let mut seen = [0; 4];
        small.read(0, &mut seen).unwrap();
        assert_eq!(&seen, b"both");
    }

    #[test]
    fn a_truncated_page_is_not_there() {
        let maps = FileMaps::default();
        let file = memfd(8192);
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.get(&file, &kind, 8192, Use::Writing).unwrap();
        map.write(0, &[7; 8192]).unwrap();
        ftruncate(&file, 4096).unwrap();
        let mut seen = [1; 8192];
        assert_eq!(map.read(0, &mut seen), Err(Errno::EFAULT));
        assert_eq!(map.read(0, &mut seen[..4096]), Ok(()));
        assert_eq!(map.write(5000, b"goes nowhere"), Err(Errno::EFAULT));
    }

    #[test]
    fn kept_pages_go_and_no_other_comes() {
        let maps = FileMaps::default();
        if maps.traps().is_none() {
            eprintln!("SKIPPED: no userfaultfd for files here");
            return;
        }
        let file = memfd(4 * 4096);
        nix::sys::uio::pwrite(&file, &[5; 4096], 0).unwrap();
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.for_pin(&file, &kind, 4 * 4096, true).unwrap();
        assert!(map.keeps());
        let byte = |map: &FileMap, page: u64| {
            let mut byte = [0];
            map.read(page * 4096, &mut byte).map(|()| byte[0])
        };
        assert_eq!(byte(&map, 0), Err(Errno::EFAULT), "nothing was put there");
        map.prepare(4096, 4096).unwrap();
        // A hole is between pages that the file has.
        nix::sys::uio::pwrite(&file, &[6; 4096], 2 * 4096).unwrap();
        map.prepare(0, 4 * 4096).unwrap();
        assert_eq!([0, 1, 2, 3].map(|page| byte(&map, page)), [Ok(5), Ok(0), Ok(6), Ok(0)]);
        map.write(4096, &[1]).unwrap();
        assert_eq!(map.compare_exchange(4096, Width::Four, 1, 2), Some(1));
        // The file loses pages, and gets others, which it has and the mapping has not.
        ftruncate(&file, 4096).unwrap();
        ftruncate(&file, 4 * 4096).unwrap();
        nix::sys::uio::pwrite(&file, &[9; 4096], 4096).unwrap();
        map.prepare(0, 4 * 4096).unwrap();
        let gone = Err(Errno::EFAULT);
        assert_eq!([0, 1, 2, 3].map(|page| byte(&map, page)), [Ok(5), gone, gone, gone]);
        assert_eq!(map.compare_exchange(4096, Width::Eight, 9, 2), None);
        let again = maps.renew(&map, 4 * 4096).unwrap();
        again.prepare(0, 4 * 4096).unwrap();
        assert_eq!([0, 1, 2, 3].map(|page| byte(&again, page)), [Ok(5), Ok(9), Ok(0), Ok(0)]);
        assert!(Arc::ptr_eq(&again, &maps.for_pin(&file, &kind, 4096, true).unwrap()));
        assert_eq!(maps.renew(&map, 5 * 4096).err(), Some(Errno::EFAULT), "the file has four");
        assert!(Arc::ptr_eq(&again, &maps.for_pin(&file, &kind, 4096, true).unwrap()));
    }

    #[test]
    fn what_shows_a_file_is_none_for_pins() {
        let maps = FileMaps::default();
        let file = memfd(8192);
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.for_pin(&file, &kind, 8192, true).unwrap();
        let shows = maps.showing(&map).unwrap();
        assert!(!shows.keeps());
        shows.write(4096, &[3]).unwrap();
        let id = kind.id;
        drop(map);
        if maps.traps().is_some() {
            assert!(maps.find(id, 8192, true).is_none());
        }
        assert!(Arc::ptr_eq(&shows, &maps.showing(&shows).unwrap()));
    }

    #[test]
    fn populate_makes_pages_and_stops_at_the_end() {
        let maps = FileMaps::default();
        let file = memfd(8192);
        let kind = FileKind::of(file.as_fd()).unwrap();
        let map = maps.get(&file, &kind, 8192, Use::Writing).unwrap();
        map.populate(0, 8192).unwrap();
        assert_eq!(nix::sys::stat::fstat(&file).unwrap().st_blocks, 16);
        ftruncate(&file, 4096).unwrap();
        assert_eq!(map.populate(0, 8192), Err(Errno::EFAULT));
    }
}
