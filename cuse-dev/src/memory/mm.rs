//! One mm of a caller: what names it, and the way to its bytes.
//!
//! [`Mm`] holds `/proc/PID/{mem,maps,pagemap}`, opened once: each of them names the mm that the
//! process had then, whatever happens to the process and its number. Copies for a running call
//! go through `process_vm_readv` and `process_vm_writev` on the calling thread, which obey the
//! caller's protections as the kernel's own copies do.
#![allow(unsafe_code)] // copies with wild addresses

use std::fs::{File, OpenOptions};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use engine::Errno;
use engine::memory::{MmId, PAGE_SIZE};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::block::Place;
use super::parking::Parking;
use super::pfn::Frames;
use super::rings::Grain;
use super::vma::{Mappings, Vma};
use super::{Host, errno, rest};
use crate::caller::{copying, sys};

/// Addresses probed by one `process_vm_readv`.
const PROBES: usize = 1024;

thread_local! {
    /// The process and the thread whose call this thread answers, or answered last.
    static WAITING: std::cell::Cell<(u32, u32)> = const { std::cell::Cell::new((0, 0)) };
}

/// The parts of a process that are one mm.
pub(crate) struct Mm {
    pub(super) id: MmId,
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) pidfd: OwnedFd,
    /// A thread that had this mm when it last called.
    thread: AtomicU32,
    mem: File,
    pub(super) mappings: Mappings,
    pagemap: File,
    /// The process got another mm (exec) or exited.
    left: AtomicBool,
    /// Its helper.
    pub(super) parking: Mutex<Parking>,
    /// Pages that the kernel counts in the mm's `VmPin` for pins of ours.
    pub(super) counted: Arc<AtomicU64>,
}

impl Mm {
    pub(super) fn open(pid: u32, thread: u32) -> Result<Self, Errno> {
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
            parking: Mutex::default(),
            counted: Arc::default(),
        })
    }

    /// `thread` is now calling with this mm, and the calling thread of this process answers it.
    pub(super) fn called_by(&self, thread: u32) {
        self.thread.store(thread, Ordering::Relaxed);
        WAITING.set((self.pid, thread));
    }

    /// Whether nobody can run in it now: its only thread waits in the call that this thread answers.
    pub(super) fn rests(&self) -> bool {
        let (pid, waiting) = WAITING.get();
        let helper = self.parking.lock().tid();
        // Who was answered for may be gone, and its number another's.
        let waits = pid == self.pid && copying::still_there().is_ok();
        waits && rest::only_user(waiting, helper)
    }

    /// What most pages of a range seem to be.
    pub(super) fn grain(&self, host: &Host, address: u64, length: u64) -> Grain {
        host.pfns.grain(&self.pagemap, address, length)
    }

    /// Appends the frames behind `pages` pages from `address`.
    pub(super) fn add_frames(
        &self,
        host: &Host,
        frames: &mut Frames,
        address: u64,
        pages: u64,
    ) -> Result<(), Errno> {
        let place = Place::memory(self.id.0, address);
        host.pfns.add(frames, &self.pagemap, address, pages, place)
    }

    /// The real frame at `address` now, if there is one. `EOPNOTSUPP` where it cannot be seen.
    pub(super) fn frame_at(&self, host: &Host, address: u64) -> Result<Option<u64>, Errno> {
        host.pfns.now(&self.pagemap, address)
    }

    /// What happens to the mapping is told from now on, where that can be had; [`Uffd::watch`] says
    /// what `kept` is.
    ///
    /// [`Uffd::watch`]: super::uffd::Uffd::watch
    pub(super) fn watch(&self, vma: &Vma, kept: bool) {
        let Ok(helper) = self.helper() else { return };
        let Some(uffd) = helper.uffd() else { return };
        if let Err(error) = uffd.watch(vma.start..vma.end, kept) {
            // EBUSY: the program watches it itself. EINVAL: no kind of memory that can be.
            tracing::debug!(pid = self.pid, start = vma.start, %error, "a mapping is not watched");
        }
    }

    /// The process has this mm no more. Its helper, if any, ends; its pins stay.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.parking.lock().end();
    }

    /// Whether the process left it, as far as is known.
    pub(super) fn left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether the process left it, asked now: who is told of that hears it late.
    pub(super) fn gone(&self) -> bool {
        self.left() || !sys::alive(self.pidfd.as_fd()) || self.was_replaced()
    }

    /// Whether the process has executed another program since its helper was made.
    pub(crate) fn was_replaced(&self) -> bool {
        let helper = self.parking.lock().tid();
        helper.is_some_and(|helper| sys::same_memory(helper, self.pid) == Ok(false))
    }

    /// Whether the living thread `thread` has this mm.
    pub(super) fn belongs_to(&self, thread: u32) -> bool {
        if self.left() {
            return false;
        }
        let helper = self.parking.lock().tid();
        if let Some(same) = helper.and_then(|tid| sys::same_memory(tid, thread).ok()) {
            return same;
        }
        // A mm that nobody has reads as empty. Address 0 is never mapped: EIO while it lives.
        !matches!(self.mem.read_at(&mut [0], 0), Ok(0))
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

    /// A thread that has this mm. `EFAULT` when there is none.
    pub(super) fn thread(&self) -> Result<Pid, Errno> {
        if self.left() {
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
    pub(super) fn unshare(&self, address: u64, pages: u64) -> Result<(), Errno> {
        let thread = self.thread()?;
        // Address 0 is never mapped here.
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
        for page in 0..pages {
            let base = (address + page * PAGE_SIZE) as usize as *mut libc::c_void;
            let remote = libc::iovec { iov_base: base, iov_len: 1 };
            let _copying = copying::enter()?;
            // SAFETY: both vectors outlive the call. It reads no memory of ours, as `nothing` is
            // none, and writes none of the caller's for the same reason.
            unsafe { libc::process_vm_writev(thread.as_raw(), &nothing, 1, &remote, 1, 0) };
        }
        Ok(())
    }

    /// Whether each page of the range can be read as the caller could. Maps what is missing.
    pub(super) fn probe(&self, address: u64, pages: u64) -> Result<(), Errno> {
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
            let _copying = copying::enter()?;
            match process_vm_readv(thread, &mut local, &remote) {
                Ok(read) if read == count => page += count as u64,
                _ => return Err(Errno::EFAULT),
            }
        }
        Ok(())
    }
}
