//! The open files that stand for what the engine has opened: a memfd for each.
//!
//! A caller's iommufd is a second open of a memfd that the supervisor made. The memfd's inode
//! number tells what it stands for, whichever descriptor a call comes through. Files of the engine
//! of which only ioctls speak (accesses, dma-bufs) are memfds, too, where there is no FUSE.
//!
//! # The last close
//! An inotify watch tells when a caller's open file is closed for good: dups, descriptors in flight
//! and mappings included, since each keeps the open file alive. Somebody may have opened the memfd
//! again (through `/proc/self/fd`), so the event is only a reason to look: a write lease can be
//! had if and only if no open file but the supervisor's own is left. The kernel sends the event
//! just before it drops the open file, so a look may come too early; such a file stays *suspect*
//! and is looked at again, by the next call or a little later.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::file::EngineFile;
use engine::{Engine, Errno, Node};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::{Mutex, RwLock};

use super::context::OpenContext;
use super::memfd::SharedMemfd;
use crate::event_files::FileId;

/// What a memfd stands for.
#[derive(Clone)]
enum Meaning {
    Context(Arc<OpenContext>),
    File(Arc<dyn EngineFile>),
}

/// A memfd that callers have open.
struct OpenFile {
    meaning: Meaning,
    memfd: Arc<SharedMemfd>,
    watch: WatchDescriptor,
}

#[derive(Default)]
struct Closing {
    /// Inodes of files that were closed once, and whether they still are open is to be looked at.
    suspects: HashMap<u64, u32>,
    released: usize,
    left_over: usize,
}

/// How often a suspect is looked at by the clock (once a millisecond) before only its next close
/// counts again.
const LOOKS: u32 = 200;

/// All open files.
pub(crate) struct OpenFiles {
    engine: Arc<Engine>,
    by_inode: RwLock<HashMap<u64, Arc<OpenFile>>>,
    count: AtomicUsize,
    device: (u32, u32),
    inotify: Inotify,
    closing: Mutex<Closing>,
}

impl OpenFiles {
    /// No files. Fails where memfds or inotify cannot be had.
    pub(crate) fn new(engine: Arc<Engine>) -> Result<Self, Errno> {
        Ok(Self {
            engine,
            by_inode: RwLock::default(),
            count: AtomicUsize::new(0),
            device: SharedMemfd::new(c"device")?.device(),
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            closing: Mutex::default(),
        })
    }

    /// Opens `node`. Answers a descriptor for the caller, opened with the access mode and status
    /// flags of `flags`; closing all its duplicates ends the context.
    pub(crate) fn open_node(&self, node: Node, flags: OFlag) -> Result<OwnedFd, Errno> {
        self.settle();
        let memfd = Arc::new(SharedMemfd::new(c"iommufd")?);
        self.give(memfd.clone(), flags, || {
            Meaning::Context(Arc::new(OpenContext::new(self.engine.open(node), memfd)))
        })
    }

    /// A descriptor for `file`, of which nobody reads or writes. Its last close releases the file;
    /// so does an error here.
    pub(crate) fn open_file(&self, file: Arc<dyn EngineFile>) -> Result<OwnedFd, Errno> {
        let opened = named(file.name()).and_then(|memfd| {
            let mode = if file.writable() { OFlag::O_RDWR } else { OFlag::O_RDONLY };
            self.give(Arc::new(memfd), mode, || Meaning::File(file.clone()))
        });
        opened.inspect_err(|_| file.release())
    }

    fn give(
        &self,
        memfd: Arc<SharedMemfd>,
        flags: OFlag,
        meaning: impl FnOnce() -> Meaning,
    ) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/self/fd/{}", memfd.file().as_raw_fd());
        let watch = self.inotify.add_watch(path.as_str(), AddWatchFlags::IN_CLOSE)?;
        let given = memfd.open(flags)?;
        let open = OpenFile { meaning: meaning(), watch, memfd };
        self.by_inode.write().insert(open.memfd.inode(), Arc::new(open));
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(given)
    }

    fn find(&self, id: FileId) -> Option<Meaning> {
        if id.device != self.device {
            return None;
        }
        self.by_inode.read().get(&id.inode).map(|open| open.meaning.clone())
    }

    /// The context that the file `id` is, if it is one.
    pub(crate) fn context(&self, id: FileId) -> Option<Arc<OpenContext>> {
        match self.find(id)? {
            Meaning::Context(context) => Some(context),
            Meaning::File(_) => None,
        }
    }

    /// The file of the engine that the file `id` is, if it is one.
    pub(crate) fn file(&self, id: FileId) -> Option<Arc<dyn EngineFile>> {
        match self.find(id)? {
            Meaning::Context(_) => None,
            Meaning::File(file) => Some(file),
        }
    }

    /// How many are open, or are being released.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// How many contexts are open, and how many other files.
    pub(crate) fn by_kind(&self) -> (usize, usize) {
        let open = self.by_inode.read();
        let contexts = open.values().filter(|open| matches!(open.meaning, Meaning::Context(_)));
        let contexts = contexts.count();
        (contexts, open.len() - contexts)
    }

    /// How many files were released, and how many objects would not go with them.
    pub(crate) fn totals(&self) -> (usize, usize) {
        let closing = self.closing.lock();
        (closing.released, closing.left_over)
    }

    /// Releases the files that were closed before now. Answers whether some may be closed in a
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

    /// Looks at every file, and answers how many are open.
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
                    closing.suspects.insert(open.memfd.inode(), LOOKS);
                }
            }
        }
    }

    fn release(&self, open: &OpenFile, closing: &mut Closing) {
        self.by_inode.write().remove(&open.memfd.inode());
        let _ = self.inotify.rm_watch(open.watch);
        closing.released += 1;
        match &open.meaning {
            Meaning::Context(context) => closing.left_over += context.close(),
            Meaning::File(file) => file.release(),
        }
        // Last: who finds none to settle takes it for done.
        self.count.fetch_sub(1, Ordering::Release);
    }

    /// Releases files as they are closed, for ever. For a thread of its own.
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
                tracing::error!(%errno, "cannot wait for closed files");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// A memfd for a file of the engine: `[name]` shows as `memfd:name`.
fn named(name: &'static str) -> Result<SharedMemfd, Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    SharedMemfd::sealed(&name)
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)] // mmap

    use super::*;
    use nix::sys::stat::Mode;
    use std::any::Any;
    use std::time::Instant;

    fn contexts() -> OpenFiles {
        OpenFiles::new(Engine::new()).unwrap()
    }

    fn settle_until(contexts: &OpenFiles, len: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while contexts.len() != len && Instant::now() < end {
            contexts.settle();
            std::thread::yield_now();
        }
        assert_eq!(contexts.len(), len);
    }

    fn is_found(contexts: &OpenFiles, fd: &OwnedFd) -> bool {
        contexts.context(FileId::of(fd.as_fd()).unwrap()).is_some()
    }

    #[test]
    fn the_last_close_releases() {
        let contexts = contexts();
        let one = contexts.open_node(Node::Iommu, OFlag::O_RDWR).unwrap();
        let other = contexts.open_node(Node::Iommu, OFlag::O_RDONLY).unwrap();
        assert!(is_found(&contexts, &one) && is_found(&contexts, &other));
        assert!(
            contexts
                .context(FileId::of(SharedMemfd::new(c"other").unwrap().file().as_fd()).unwrap())
                .is_none()
        );
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

    /// A file that looks, when it is released, how many are open.
    struct Looks(Arc<OpenFiles>, AtomicUsize);

    impl EngineFile for Looks {
        fn name(&self) -> &'static str {
            "looks"
        }
        fn writable(&self) -> bool {
            true
        }
        fn end(&self) {
            self.1.store(self.0.len(), Ordering::SeqCst);
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
            self
        }
    }

    /// A call that comes meanwhile waits for it, as it sees that there is something to settle.
    #[test]
    fn what_is_being_released_counts() {
        let files = Arc::new(contexts());
        let looks = Arc::new(Looks(files.clone(), AtomicUsize::new(0)));
        drop(files.open_file(looks.clone()).unwrap());
        settle_until(&files, 0);
        assert_eq!(looks.1.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_second_open_of_the_same_memfd_keeps_it() {
        let contexts = contexts();
        let one = contexts.open_node(Node::Iommu, OFlag::O_RDWR).unwrap();
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
        let fd = contexts.open_node(Node::Iommu, OFlag::O_RDWR).unwrap();
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
