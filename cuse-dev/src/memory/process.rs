//! One mm of a caller.
//!
//! [`Mm`] holds `/proc/PID/{mem,maps,pagemap}`, opened once: each of them names the mm that the
//! process had then, whatever happens to the process and its number. Copies for a running call
//! go through `process_vm_readv` and `process_vm_writev` on the calling thread, which obey the
//! caller's protections as the kernel's own copies do.
#![allow(unsafe_code)] // opening a mm's files takes none, copies with wild addresses do

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use engine::Errno;
use engine::memory::{AddressSpace, MmId, PAGE_SIZE, Pin};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::helper::Helper;
use super::map::{FileKind, FileMap};
use super::pfn::Frames;
use super::pin::{Hold, Pages, Part};
use super::private::Registered;
use super::vma::{Mappings, Vma};
use super::{Host, errno};
use crate::caller::pending::Pending;
use crate::caller::sys;
use crate::inject::{Tracee, on_tracer};

/// Addresses probed by one `process_vm_readv`.
const PROBES: usize = 1024;

/// Why private pages are not pinned.
const READ_ONLY: &str = "read-only private memory cannot be pinned from outside";
const TRACED: &str = "the process may not be traced, or is traced by another program";
const GONE: &str = "the process is gone";
const FOREIGN: &str = "the process runs code of another architecture";
const NO_THREAD: &str = "no thread of the process could be stopped to make a helper";
const NO_IO_URING: &str = "io_uring is disabled";

thread_local! {
    /// The process and the thread whose call this thread answers, or answered last.
    static WAITING: std::cell::Cell<(u32, u32)> = const { std::cell::Cell::new((0, 0)) };
}

/// The parts of a process that are one mm.
pub(crate) struct Mm {
    id: MmId,
    pid: u32,
    name: String,
    pidfd: OwnedFd,
    /// A thread that had this mm when it last called.
    thread: AtomicU32,
    mem: File,
    mappings: Mappings,
    pagemap: File,
    /// The process got another mm (exec) or exited.
    left: AtomicBool,
    helper: Mutex<Option<Arc<Helper>>>,
    /// Why there cannot be a helper, ever.
    refused: OnceLock<&'static str>,
}

/// One mm of a caller, for the engine.
#[derive(Clone)]
pub struct ProcessMemory {
    host: Arc<Host>,
    mm: Arc<Mm>,
}

impl Mm {
    fn open(pid: u32, thread: u32) -> Result<Self, Errno> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let pidfd = sys::pidfd_open(pid)?;
        let file = |name: &str, write: bool| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .open(format!("/proc/{thread}/{name}"))
                .map_err(|error| errno(&error))
        };
        let (mem, maps, pagemap) =
            (file("mem", true)?, file("maps", false)?, file("pagemap", false)?);
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok(Self {
            id: MmId(NEXT.fetch_add(1, Ordering::Relaxed)),
            pid,
            name: name.trim_end().to_owned(),
            pidfd,
            thread: AtomicU32::new(thread),
            mem,
            mappings: Mappings::new(maps),
            pagemap,
            left: AtomicBool::new(false),
            helper: Mutex::new(None),
            refused: OnceLock::new(),
        })
    }

    pub(crate) fn pagemap(&self) -> &File {
        &self.pagemap
    }

    /// The process has this mm no more. Its helper, if any, ends; its pins stay.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        let helper = self.helper.lock().take();
        if let Some(helper) = helper {
            helper.end();
        }
    }

    /// Whether the process has executed another program since its helper was made.
    pub(crate) fn was_replaced(&self) -> bool {
        let helper = self.helper.lock().as_ref().map(|helper| helper.tid());
        helper.is_some_and(|helper| sys::same_memory(helper, self.pid) == Ok(false))
    }

    /// Whether the living thread `thread` has this mm.
    fn belongs_to(&self, thread: u32) -> bool {
        if self.left.load(Ordering::Acquire) {
            return false;
        }
        let helper = self.helper.lock().as_ref().map(|helper| helper.tid());
        if let Some(same) = helper.and_then(|tid| sys::same_memory(tid, thread).ok()) {
            return same;
        }
        // A mm that nobody has reads as empty. Address 0 is never mapped: EIO while it lives.
        !matches!(self.mem.read_at(&mut [0], 0), Ok(0))
    }

    /// The helper of this mm, made if need be; or why there is none.
    fn helper(self: &Arc<Self>, host: &Host) -> Result<Arc<Helper>, &'static str> {
        if let Some(why) = self.refused.get() {
            return Err(why);
        }
        let mut helper = self.helper.lock();
        if let Some(helper) = &*helper
            && !helper.gone()
        {
            return Ok(helper.clone());
        }
        *helper = None;
        if self.left.load(Ordering::Acquire) {
            return Err(GONE);
        }
        let (mm, pending, (_, waiting)) = (self.clone(), Pending::current(), WAITING.get());
        let made = on_tracer(move || mm.make_helper(pending.as_deref(), waiting));
        match made.unwrap_or(Err(Errno::EAGAIN)) {
            Ok(made) => {
                let made = Arc::new(made);
                if !host.watch.add(self, &self.pidfd) {
                    return Err(NO_THREAD);
                }
                *helper = Some(made.clone());
                Ok(made)
            }
            Err(error) => {
                tracing::debug!(pid = self.pid, %error, "no helper for private memory");
                Err(match error {
                    Errno::EPERM => TRACED,
                    Errno::ESRCH => GONE,
                    Errno::ENOEXEC => FOREIGN,
                    _ => NO_THREAD,
                })
            }
        }
    }

    /// Makes a helper through the thread whose call is being answered, if that can be let go, or
    /// else through any other that can be stopped: `waiting` cannot before its answer. Runs on the
    /// tracer.
    fn make_helper(&self, pending: Option<&Pending>, waiting: u32) -> Result<Helper, Errno> {
        if let Some(pending) = pending
            && sys::is_thread_of(self.pid, pending.tid())
        {
            return pending.with_thread(Helper::make);
        }
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        let threads = threads.map_err(|_| Errno::ESRCH)?.flatten();
        let mut error = Errno::EBUSY;
        let tids = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for tid in tids.filter(|&tid| tid != waiting) {
            match Tracee::stop(tid) {
                Ok(mut tracee) => {
                    let made = tracee.begin().and_then(|()| Helper::make(&mut tracee));
                    let _ = tracee.detach();
                    return made;
                }
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    /// Reads the caller's memory whoever asks, and only while the mm lives. Rights of the mapping
    /// do not matter: a pinned page has none.
    pub(crate) fn peek(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.mem.read_exact_at(into, address).map_err(|_| Errno::EFAULT)
    }

    /// Writes the caller's memory, like [`Mm::peek`].
    pub(crate) fn poke(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        self.mem.write_all_at(from, address).map_err(|_| Errno::EFAULT)
    }

    fn thread(&self) -> Result<Pid, Errno> {
        if self.left.load(Ordering::Acquire) {
            return Err(Errno::EFAULT);
        }
        // The thread whose call this thread answers cannot go. Any other one can, at any time.
        let (pid, waiting) = WAITING.get();
        if pid == self.pid {
            return Ok(Pid::from_raw(waiting as i32));
        }
        let thread = self.thread.load(Ordering::Relaxed);
        let thread = if sys::is_thread_of(self.pid, thread) { thread } else { self.pid };
        Ok(Pid::from_raw(thread as i32))
    }

    /// Gives the caller pages of its own where it would share or copy them at its next write, as a
    /// pin does, so that they stay the same pages then. Changes no byte: the kernel takes the pages
    /// for writing before it finds that what should be written is not there.
    fn unshare(&self, address: u64, pages: u64) -> Result<(), Errno> {
        let thread = self.thread()?;
        // Address 0 is never mapped here.
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
        for page in 0..pages {
            let base = (address + page * PAGE_SIZE) as usize as *mut libc::c_void;
            let remote = libc::iovec { iov_base: base, iov_len: 1 };
            // SAFETY: both vectors outlive the call. It reads no memory of ours, as `nothing` is
            // none, and writes none of the caller's for the same reason.
            unsafe { libc::process_vm_writev(thread.as_raw(), &nothing, 1, &remote, 1, 0) };
        }
        Ok(())
    }

    /// Whether each page of the range can be read as the caller could. Maps what is missing.
    fn probe(&self, address: u64, pages: u64) -> Result<(), Errno> {
        let thread = self.thread()?;
        let mut bytes = [0; PROBES];
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min(PROBES as u64) as usize;
            let remote: Vec<_> = (0..count as u64)
                .map(|index| (address + (page + index) * PAGE_SIZE) as usize)
                .map(|base| RemoteIoVec { base, len: 1 })
                .collect();
            let mut local = [IoSliceMut::new(&mut bytes[..count])];
            match process_vm_readv(thread, &mut local, &remote) {
                Ok(read) if read == count => page += count as u64,
                _ => return Err(Errno::EFAULT),
            }
        }
        Ok(())
    }
}

impl ProcessMemory {
    /// The mm of the process `pid`, which has the thread `thread`.
    pub(crate) fn open(host: &Arc<Host>, pid: u32, thread: u32) -> Result<Self, Errno> {
        Ok(Self { host: host.clone(), mm: Arc::new(Mm::open(pid, thread)?) })
    }

    /// `thread` is now calling with this mm.
    pub(crate) fn called_by(&self, thread: u32) {
        self.mm.thread.store(thread, Ordering::Relaxed);
        WAITING.set((self.mm.pid, thread));
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
        if let Some(map) = self.host.maps.find((device, inode), needed, write) {
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
        self.host.maps.get(&file, &kind, needed, write).ok()
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

    /// Holds `length` bytes from `address`, which lie in `vma`: how, and in which frames where
    /// that is to be known now.
    fn hold(
        &self,
        vma: &Vma,
        address: u64,
        length: u64,
        write: bool,
    ) -> Result<(Hold, Option<Frames>), Errno> {
        // GUP refuses VM_IO and VM_PFNMAP, and so does this, which uses it.
        if vma.readable {
            self.mm.probe(address, 1)?;
        }
        if vma.shared {
            let offset = vma.offset.checked_add(address - vma.start).ok_or(Errno::EFAULT)?;
            let end = offset.checked_add(length).ok_or(Errno::EFAULT)?;
            if let Some(map) = self.map_shared(vma, end, write) {
                if write && !map.pinnable() {
                    return Err(Errno::EFAULT);
                }
                map.populate(offset, usize::try_from(length).map_err(|_| Errno::ENOMEM)?)?;
                return Ok((Hold::File { map, offset }, None));
            }
        }
        let why = if vma.writable {
            match self.register(address, length) {
                Ok((registered, frames)) => {
                    return Ok((Hold::Pinned(registered), Some(frames)));
                }
                Err(Refusal::Pages(error)) => return Err(error),
                Err(Refusal::Way(why)) => why,
            }
        } else {
            READ_ONLY
        };
        if vma.writable && !vma.shared {
            self.mm.unshare(address, length / PAGE_SIZE)?;
        }
        self.mm.probe(address, length / PAGE_SIZE)?;
        let frames = self.host.pfns.of(&self.mm.pagemap, address, length / PAGE_SIZE)?;
        Ok((Hold::Window { mm: self.mm.clone(), address, why }, Some(frames)))
    }

    /// Takes a kernel pin.
    fn register(&self, address: u64, length: u64) -> Result<(Registered, Frames), Refusal> {
        loop {
            let helper = self.mm.helper(&self.host).map_err(Refusal::Way)?;
            let error = match Registered::new(&self.host, &self.mm, &helper, address, length) {
                Ok(registered) => return Ok(registered),
                Err(error) => error,
            };
            return Err(match error {
                Errno::EFAULT | Errno::ENOMEM => Refusal::Pages(error),
                // Somebody killed the helper: another one.
                Errno::ESRCH if helper.gone() && self.mm.thread().is_ok() => continue,
                Errno::EPERM | Errno::ENOSYS | Errno::EACCES => {
                    Refusal::Way(self.mm.refused.get_or_init(|| NO_IO_URING))
                }
                _ => Refusal::Way(NO_THREAD),
            });
        }
    }
}

/// Why there is no kernel pin.
enum Refusal {
    /// The pages cannot be pinned, by anybody.
    Pages(Errno),
    /// This way is closed.
    Way(&'static str),
}

impl AddressSpace for ProcessMemory {
    fn id(&self) -> MmId {
        self.mm.id
    }

    fn describe(&self) -> String {
        format!("pid {} ({})", self.mm.pid, self.mm.name)
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        if into.is_empty() {
            return Ok(());
        }
        let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        let remote = [RemoteIoVec { base, len: into.len() }];
        let wanted = into.len();
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
            let (hold, frames) = self.hold(&vma, at, stop - at, write)?;
            parts.push(Part::new(at - address, stop - at, hold, frames));
            at = stop;
        }
        Ok(Arc::new(Pages::new(self.host.clone(), parts, write)))
    }
}
