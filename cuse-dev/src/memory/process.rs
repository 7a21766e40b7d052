//! The memory of a caller as the engine sees it: copies, and pins of each kind of mapping.

use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::Errno;
use engine::memory::{AddressSpace, MmId, PAGE_SIZE, Pin};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};

use super::map::{FileKind, FileMap};
use super::mm::Mm;
use super::own::{NO_IO_URING, Refusal};
use super::pfn::Frames;
use super::pin::{Hold, Pages, Part};
use super::private::Registered;
use super::rest::Unlocked;
use super::vma::Vma;
use super::{Host, shared};
use crate::caller::{copying, sys};

/// Why private pages are not pinned.
const READ_ONLY: &str = "what can only be read cannot be pinned while other threads may run";
const LOCKED: &str = "what can only be read could not be made writable for a pin";
const CLOSED: &str = "the file behind it may not be opened";
const NO_ROOM: &str = "the user's RLIMIT_MEMLOCK has no room for a pin by io_uring";
const UNUSABLE: &str = "the helper of the process did not answer";

/// One mm of a caller, for the engine.
#[derive(Clone)]
pub struct ProcessMemory {
    host: Arc<Host>,
    mm: Arc<Mm>,
}

impl ProcessMemory {
    /// The mm of the process `pid`, which has the thread `thread`.
    pub(crate) fn open(host: &Arc<Host>, pid: u32, thread: u32) -> Result<Self, Errno> {
        Ok(Self { host: host.clone(), mm: Arc::new(Mm::open(pid, thread)?) })
    }

    /// `thread` is now calling with this mm.
    pub(crate) fn called_by(&self, thread: u32) {
        self.mm.called_by(thread);
    }

    /// Makes the mm's helper, if it has none, by way of the thread `tid`, which waits until
    /// `let_go` answers its call with `-`[`crate::inject::CALL_AGAIN`]. True if that was done: the
    /// thread makes its call again.
    pub(crate) fn prepare(
        &self,
        tid: u32,
        let_go: impl FnOnce() -> Result<(), Errno> + Send + 'static,
    ) -> bool {
        self.mm.park(&self.host, tid, let_go)
    }

    /// The process has this mm no more.
    pub(crate) fn leave(&self) {
        self.mm.leave();
    }

    /// Whether the thread `thread` of the living process `pid` has this mm.
    pub(crate) fn is_of(&self, pid: u32, thread: u32) -> bool {
        let other = pid != self.mm.pid;
        if other && !sys::same_memory(self.mm.pid, thread).unwrap_or(false) {
            return false;
        }
        self.mm.belongs_to(thread)
    }

    /// Whether the kernel counts pins of ours in the mm's `VmPin`.
    pub(crate) fn counted_by_kernel(&self) -> bool {
        self.mm.counted.load(Ordering::Relaxed) != 0
    }

    /// The process in which the mm was found.
    pub(crate) fn pid(&self) -> u32 {
        self.mm.pid
    }

    /// The host that it belongs to.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The file behind a shared mapping, mapped here. `None` where nobody lets us have it.
    fn map_shared(&self, vma: &Vma, needed: u64, write: bool) -> Option<Arc<FileMap>> {
        let (major, minor, inode) = vma.file?;
        let device = nix::sys::stat::makedev(major.into(), minor.into());
        let find = |writable| self.host.maps.find((device, inode), needed, writable);
        if let Some(map) = find(true).or_else(|| find(false).filter(|_| !write)) {
            return Some(map);
        }
        let thread = self.mm.thread().ok()?;
        let path = format!("/proc/{thread}/map_files/{:x}-{:x}", vma.start, vma.end);
        let file = match OpenOptions::new().read(true).write(write).open(path) {
            Ok(file) => file.into(),
            Err(_) => self.descriptor_of(device, inode, write)?,
        };
        let kind = FileKind::of(file.as_fd()).ok()?;
        if kind.id.1 != inode || !kind.regular {
            return None;
        }
        self.host.maps.for_pin(&file, &kind, needed, write).ok()
    }

    /// A descriptor of the process for the file with that inode.
    fn descriptor_of(&self, device: u64, inode: u64, write: bool) -> Option<OwnedFd> {
        let directory = format!("/proc/{}/fd", self.mm.pid);
        for entry in std::fs::read_dir(directory).ok()?.flatten() {
            // Asking for a file's metadata may wait for whoever serves it, and that may be us:
            // the link's text rules other filesystems' files out first.
            let text = std::fs::read_link(entry.path()).ok();
            let text = text.as_ref().map(|path| path.to_string_lossy());
            if text.is_none_or(|text| text.starts_with("/dev/") || text.starts_with("socket:")) {
                continue;
            }
            let Ok(found) = std::fs::metadata(entry.path()) else { continue };
            if (found.dev(), found.ino()) != (device, inode) {
                continue;
            }
            if let Ok(file) = OpenOptions::new().read(true).write(write).open(entry.path()) {
                return Some(file.into());
            }
        }
        None
    }

    /// Pins `length` bytes from `address`, which lie in `vma`, and appends that to `parts`, the
    /// parts of a pin, from its byte `start` on.
    fn hold(
        &self,
        vma: &Vma,
        (address, length, start): (u64, u64, u64),
        write: bool,
        parts: &mut Vec<Part>,
    ) -> Result<(), Errno> {
        // GUP refuses VM_IO and VM_PFNMAP, and so does this, which uses it.
        if vma.readable {
            self.mm.probe(address, 1)?;
        }
        let offset = vma.offset.checked_add(address - vma.start).ok_or(Errno::EFAULT)?;
        let end = offset.checked_add(length).ok_or(Errno::EFAULT)?;
        let shared = if vma.shared { self.map_shared(vma, end, write) } else { None };
        self.mm.watch(vma, shared.as_ref().is_some_and(|map| map.keeps()));
        if let Some(map) = shared {
            if write && !map.pinnable() {
                return Err(Errno::EFAULT);
            }
            return shared::pin(&self.host, &map, offset, length, start, parts);
        }
        let why = match self.register(vma, address, length) {
            Ok((registered, frames)) => {
                let hold = Hold::Pinned(registered);
                parts.push(Part::new(start, length, hold, frames));
                return Ok(());
            }
            Err(Refusal::Pages(error)) => return Err(error),
            Err(Refusal::Way(why)) => why,
        };
        if vma.writable && !vma.shared {
            self.mm.unshare(address, length / PAGE_SIZE)?;
        }
        self.mm.probe(address, length / PAGE_SIZE)?;
        let mut frames = Frames::default();
        self.mm.add_frames(&self.host, &mut frames, address, length / PAGE_SIZE)?;
        frames.shrink();
        let hold = Hold::Window { mm: self.mm.clone(), address, why };
        parts.push(Part::new(start, length, hold, frames));
        Ok(())
    }

    /// Takes a kernel pin of what lies in `vma`.
    fn register(
        &self,
        vma: &Vma,
        address: u64,
        length: u64,
    ) -> Result<(Registered, Frames), Refusal> {
        let helper = self.mm.helper().map_err(Refusal::Way)?;
        let _unlocked = match (vma.writable, vma.shared) {
            (true, _) => None,
            (false, true) => return Err(Refusal::Way(CLOSED)),
            (false, false) if !self.mm.rests() => return Err(Refusal::Way(READ_ONLY)),
            (false, false) => {
                Some(Unlocked::new(&self.mm, &helper, vma).map_err(|_| Refusal::Way(LOCKED))?)
            }
        };
        let error = match Registered::new(&self.host, &self.mm, &helper, address, length) {
            Ok(registered) => return Ok(registered),
            Err(error) => error,
        };
        Err(match error {
            // The engine has charged the pages already; this is the kernel's own count, which has
            // the ring and whole huge pages in it, too.
            Errno::ENOMEM if helper.limited() => Refusal::Way(NO_ROOM),
            Errno::EFAULT | Errno::ENOMEM => Refusal::Pages(error),
            Errno::EPERM | Errno::ENOSYS | Errno::EACCES => {
                self.mm.parking.lock().refuse(NO_IO_URING);
                Refusal::Way(NO_IO_URING)
            }
            error => {
                tracing::debug!(pid = self.mm.pid, %error, "no pin by the helper");
                Refusal::Way(UNUSABLE)
            }
        })
    }
}

impl AddressSpace for ProcessMemory {
    fn id(&self) -> MmId {
        self.mm.id
    }

    fn describe(&self) -> String {
        format!("pid {} ({})", self.mm.pid, self.mm.name)
    }

    fn frame_at(&self, address: u64) -> Result<Option<u64>, Errno> {
        self.mm.frame_at(&self.host, address)
    }

    fn gone(&self) -> bool {
        self.mm.gone()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.mm.pid)
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        if into.is_empty() {
            return Ok(());
        }
        let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        let remote = [RemoteIoVec { base, len: into.len() }];
        let wanted = into.len();
        let _copying = copying::enter()?;
        match process_vm_readv(self.mm.thread()?, &mut [IoSliceMut::new(into)], &remote) {
            Ok(read) if read == wanted => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        if from.is_empty() {
            return Ok(());
        }
        let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        let remote = [RemoteIoVec { base, len: from.len() }];
        let _copying = copying::enter()?;
        match process_vm_writev(self.mm.thread()?, &[IoSlice::new(from)], &remote) {
            Ok(written) if written == from.len() => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }

    fn pin(&self, address: u64, pages: u64, write: bool) -> Result<Arc<dyn Pin>, Errno> {
        let length = pages.checked_mul(PAGE_SIZE).ok_or(Errno::EFAULT)?;
        let end = address.checked_add(length).ok_or(Errno::EFAULT)?;
        if length == 0 || !address.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let mut parts = Vec::with_capacity(1);
        let mut at = address;
        while at < end {
            let vma = self.mm.mappings.find(at).map_err(|_| Errno::EFAULT)?;
            if if write { !vma.writable } else { !vma.readable } {
                return Err(Errno::EFAULT);
            }
            let stop = vma.end.min(end);
            self.hold(&vma, (at, stop - at, at - address), write, &mut parts)?;
            at = stop;
        }
        Ok(Arc::new(Pages::new(self.host.clone(), parts, write)))
    }
}
