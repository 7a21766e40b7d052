//! The iommufds of the launched programs: memfds that stand for contexts of the engine.
//!
//! A caller's iommufd is a second open of a memfd that the supervisor made. The memfd's inode
//! number names the context whichever descriptor a call comes through, and the memfd's pages are
//! what `mmap` of the iommufd maps.
//!
//! # The last close
//! An inotify watch tells when a caller's open file is closed for good: dups, descriptors in flight
//! and mappings included, since each keeps the open file alive. Somebody may have opened the memfd
//! again (through `/proc/self/fd`), so the event is only a reason to look: a write lease can be
//! had if and only if no open file but the supervisor's own is left. The kernel sends the event
//! just before it drops the open file, so a look may come too early; such a context stays *suspect*
//! and is looked at again, by the next call or a little later.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::{Context, Engine, Errno, Mapping, MmapRequest, Node};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::{Mutex, RwLock};

use super::memfd::SharedMemfd;
use crate::event_files::FileId;

/// A context that a launched program has open.
pub(crate) struct OpenContext {
    /// The engine's side.
    pub(crate) context: Arc<Context>,
    memfd: SharedMemfd,
    inode: u64,
    watch: WatchDescriptor,
    /// What callers mapped, and may still map.
    mappings: Mutex<Vec<(Region, Mapping)>>,
}

/// Bytes of the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    offset: u64,
    length: u64,
}

impl OpenContext {
    /// Answers `mmap` of the iommufd: the kernel then maps the memfd's pages, which from now on
    /// are the driver's.
    pub(crate) fn allow_mmap(
        &self,
        length: u64,
        protection: i32,
        flags: i32,
        offset: u64,
    ) -> Result<(), Errno> {
        let kind = flags & libc::MAP_TYPE;
        let mapping = self.context.mmap(MmapRequest {
            offset,
            length,
            shared: kind == libc::MAP_SHARED || kind == libc::MAP_SHARED_VALIDATE,
            executable: protection & libc::PROT_EXEC != 0,
        })?;
        mapping.memory().place(self.memfd.file().as_fd(), offset)?;
        let region = Region { offset, length: mapping.memory().length() };
        let mut mappings = self.mappings.lock();
        if !mappings.iter().any(|(known, _)| *known == region) {
            mappings.push((region, mapping));
        }
        Ok(())
    }

    /// Lets go what callers have unmapped since. A mapping leaves no trace when it goes, so this
    /// looks through the mappings of all processes: for the rare call that wants to know.
    pub(crate) fn forget_unmapped(&self) {
        let mut mappings = self.mappings.lock();
        if mappings.is_empty() {
            return;
        }
        let live = mapped_regions(self.inode);
        mappings.retain(|(region, _)| {
            live.iter().any(|l| {
                l.offset < region.offset + region.length && region.offset < l.offset + l.length
            })
        });
    }
}

#[derive(Default)]
struct Closing {
    /// Contexts that were closed once, and whether they still are open is to be looked at.
    suspects: HashMap<u64, u32>,
    released: usize,
    left_over: usize,
}

/// How often a suspect is looked at by the clock (once a millisecond) before only its next close
/// counts again.
const LOOKS: u32 = 200;

/// All open contexts.
pub(crate) struct Contexts {
    engine: Arc<Engine>,
    by_inode: RwLock<HashMap<u64, Arc<OpenContext>>>,
    count: AtomicUsize,
    device: (u32, u32),
    inotify: Inotify,
    closing: Mutex<Closing>,
}

impl Contexts {
    /// No contexts. Fails where memfds or inotify cannot be had.
    pub(crate) fn new(engine: Arc<Engine>) -> Result<Self, Errno> {
        let device = FileId::of(new_memfd()?.file().as_fd())?.device;
        Ok(Self {
            engine,
            by_inode: RwLock::default(),
            count: AtomicUsize::new(0),
            device,
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            closing: Mutex::default(),
        })
    }

    /// Opens `node`. Answers a descriptor for the caller, opened with the access mode and status
    /// flags of `flags`; closing all its duplicates ends the context.
    pub(crate) fn open(&self, node: Node, flags: OFlag) -> Result<OwnedFd, Errno> {
        self.settle();
        let memfd = new_memfd()?;
        let inode = FileId::of(memfd.file().as_fd())?.inode;
        let path = format!("/proc/self/fd/{}", memfd.file().as_raw_fd());
        let watch = self.inotify.add_watch(path.as_str(), AddWatchFlags::IN_CLOSE)?;
        let given = memfd.open(flags)?;
        let context = self.engine.open(node);
        let open = OpenContext { context, memfd, inode, watch, mappings: Mutex::default() };
        self.by_inode.write().insert(inode, Arc::new(open));
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(given)
    }

    /// The context that the file `id` is, if it is one.
    pub(crate) fn find(&self, id: FileId) -> Option<Arc<OpenContext>> {
        if id.device != self.device {
            return None;
        }
        self.by_inode.read().get(&id.inode).cloned()
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// How many contexts were released, and how many objects would not go with them.
    pub(crate) fn totals(&self) -> (usize, usize) {
        let closing = self.closing.lock();
        (closing.released, closing.left_over)
    }

    /// Releases the contexts that were closed before now. Answers whether some may be closed in a
    /// moment.
    pub(crate) fn settle(&self) -> bool {
        let mut closing = self.closing.lock();
        self.collect(&mut closing);
        let inodes: Vec<u64> = closing.suspects.keys().copied().collect();
        for inode in inodes {
            let open = self.by_inode.read().get(&inode).cloned();
            match open {
                Some(open) if open.memfd.is_open() => {}
                Some(open) => {
                    closing.suspects.remove(&inode);
                    self.release(&open, &mut closing);
                }
                None => drop(closing.suspects.remove(&inode)),
            }
        }
        !closing.suspects.is_empty()
    }

    /// Looks at every context, and answers how many are open.
    pub(crate) fn settle_all(&self) -> usize {
        let inodes: Vec<u64> = self.by_inode.read().keys().copied().collect();
        self.closing.lock().suspects.extend(inodes.into_iter().map(|inode| (inode, LOOKS)));
        self.settle();
        self.len()
    }

    /// Reads what inotify has to say.
    fn collect(&self, closing: &mut Closing) {
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                let known = self.by_inode.read();
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    closing.suspects.extend(known.keys().map(|&inode| (inode, LOOKS)));
                } else if let Some(open) = known.values().find(|open| open.watch == event.wd) {
                    closing.suspects.insert(open.inode, LOOKS);
                }
            }
        }
    }

    fn release(&self, open: &OpenContext, closing: &mut Closing) {
        self.by_inode.write().remove(&open.inode);
        self.count.fetch_sub(1, Ordering::Relaxed);
        let _ = self.inotify.rm_watch(open.watch);
        open.mappings.lock().clear();
        let left_over = open.context.close();
        closing.released += 1;
        closing.left_over += left_over;
        tracing::debug!(context = open.context.id().0, left_over, "released");
    }

    /// Releases contexts as they are closed, for ever. For a thread of its own.
    pub(crate) fn watch(&self) {
        loop {
            let patience = if self.settle() { PollTimeout::from(1u8) } else { PollTimeout::NONE };
            {
                let mut closing = self.closing.lock();
                closing.suspects.retain(|_, looks| {
                    *looks = looks.saturating_sub(1);
                    *looks > 0
                });
            }
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            if let Err(errno) = poll(&mut fds, patience)
                && errno != Errno::EINTR
            {
                tracing::error!(%errno, "cannot wait for closed iommufds");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// What of the memfd with this `inode` is mapped, by anyone whom we may look at.
fn mapped_regions(inode: u64) -> Vec<Region> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut regions = Vec::new();
    for process in processes.flatten() {
        let is_process = process.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok());
        let Ok(maps) = fs::read(process.path().join("maps")) else { continue };
        if is_process {
            let maps = String::from_utf8_lossy(&maps);
            regions.extend(maps.lines().filter_map(|line| region_of(line, inode)));
        }
    }
    regions
}

/// The region that a line of `/proc/PID/maps` shows, if it is of our memfd.
fn region_of(line: &str, inode: u64) -> Option<Region> {
    if !line.contains("/memfd:iommufd") {
        return None;
    }
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let offset = hex(words.nth(1)?)?;
    let length = hex(end)?.checked_sub(hex(start)?)?;
    (words.nth(1)?.parse() == Ok(inode)).then_some(Region { offset, length })
}

fn new_memfd() -> Result<SharedMemfd, Errno> {
    SharedMemfd::new(c"iommufd")
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)] // mmap

    use super::*;
    use nix::sys::stat::Mode;
    use std::time::Instant;

    fn contexts() -> Contexts {
        Contexts::new(Engine::new()).unwrap()
    }

    fn settle_until(contexts: &Contexts, len: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while contexts.len() != len && Instant::now() < end {
            contexts.settle();
            std::thread::yield_now();
        }
        assert_eq!(contexts.len(), len);
    }

    fn is_found(contexts: &Contexts, fd: &OwnedFd) -> bool {
        contexts.find(FileId::of(fd.as_fd()).unwrap()).is_some()
    }

    #[test]
    fn the_last_close_releases() {
        let contexts = contexts();
        let one = contexts.open(Node::Iommu, OFlag::O_RDWR).unwrap();
        let other = contexts.open(Node::Iommu, OFlag::O_RDONLY).unwrap();
        assert!(is_found(&contexts, &one) && is_found(&contexts, &other));
        assert!(contexts.find(FileId::of(new_memfd().unwrap().file().as_fd()).unwrap()).is_none());
        let dup = one.try_clone().unwrap();
        drop(one);
        contexts.settle();
        assert!(is_found(&contexts, &dup));
        drop(dup);
        settle_until(&contexts, 1);
        drop(other);
        settle_until(&contexts, 0);
        assert_eq!(contexts.totals(), (2, 0));
    }

    #[test]
    fn a_second_open_of_the_same_memfd_keeps_it() {
        let contexts = contexts();
        let one = contexts.open(Node::Iommu, OFlag::O_RDWR).unwrap();
        let path = format!("/proc/self/fd/{}", one.as_raw_fd());
        let second = nix::fcntl::open(path.as_str(), OFlag::O_RDWR, Mode::empty()).unwrap();
        drop(one);
        for _ in 0..3 {
            contexts.settle();
        }
        assert!(is_found(&contexts, &second));
        drop(second);
        settle_until(&contexts, 0);
    }

    #[test]
    fn a_mapping_keeps_it() {
        let contexts = contexts();
        let fd = contexts.open(Node::Iommu, OFlag::O_RDWR).unwrap();
        let page = std::num::NonZeroUsize::new(4096).unwrap();
        nix::unistd::ftruncate(&fd, 4096).unwrap();
        let (read, shared) =
            (nix::sys::mman::ProtFlags::PROT_READ, nix::sys::mman::MapFlags::MAP_SHARED);
        // SAFETY: a fresh mapping, of which nothing is read.
        let map = unsafe { nix::sys::mman::mmap(None, page, read, shared, &fd, 0) }.unwrap();
        drop(fd);
        for _ in 0..3 {
            contexts.settle();
        }
        assert_eq!(contexts.len(), 1);
        // SAFETY: the mapping made above; nobody uses it.
        unsafe { nix::sys::mman::munmap(map, 4096) }.unwrap();
        settle_until(&contexts, 0);
    }
}
