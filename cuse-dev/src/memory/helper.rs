//! The parked helper: a child of the caller that shares its memory and does nothing by itself.
//!
//! Pinning private memory needs a system call by somebody who has the mm. To stop the caller for
//! each would be slow and, while it waits for its own ioctl, impossible. So the caller is made to
//! clone a child once, whose descriptors, signals and session are its own, and which stays
//! stopped. Calls run in it while the caller goes on. It is the child of a child that has ended,
//! so that the caller never sees it as its own. It ends with this process, and is ended when the
//! process that it came from exits or executes another program ([`super::watch`]).

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::Errno;
use parking_lot::Mutex;

use super::errno;
use super::mm::Mm;
use super::ring::{IORING_REGISTER_BUFFERS_UPDATE, Params, Ring, update_bytes};
use super::rings::{Grain, Rings, Wanted};
use super::uffd::{self, Uffd};
use crate::caller::sys;
use crate::inject::{EXIT_KILL, Tracee, Tracer};

/// Bytes of the mm that hold the arguments of injected calls.
const SCRATCH: u64 = 4096;
/// Where in them the iovecs begin.
const IOVECS: u64 = 64;
/// `CLOSE_RANGE_UNSHARE`.
const CLOSE_RANGE_UNSHARE: u64 = 2;

/// A helper of one mm.
pub(crate) struct Helper {
    tid: u32,
    pidfd: OwnedFd,
    tracer: Tracer,
    tracee: Arc<Mutex<Option<Tracee>>>,
    /// Address of the scratch page in the mm.
    scratch: u64,
    rings: Rings,
    ended: AtomicBool,
    /// The kernel counts what it pins against a limit.
    limited: bool,
    /// Tells what happens to the mm, where that can be had.
    uffd: Option<Arc<Uffd>>,
}

impl Helper {
    /// Makes a helper by way of `parent`, a stopped thread of the mm that has
    /// [begun](Tracee::begin). Runs on the tracer.
    pub(super) fn make(tracer: &Tracer, parent: &mut Tracee) -> Result<Self, Errno> {
        let (mut middle, number) = parent.clone_child(EXIT_KILL)?;
        let made = middle.begin().and_then(|()| middle.clone_child(EXIT_KILL));
        middle.kill();
        // The one in the middle was the caller's child; nobody else would wait for it. Should the
        // caller be killed before that, the kernel gives it to who waits for orphans.
        let _ = parent.call(libc::SYS_wait4, [number, 0, libc::__WALL as u64, 0, 0, 0]);
        let (mut tracee, _) = made?;
        match Self::set_up(&mut tracee) {
            Ok((pidfd, scratch)) => Ok(Self {
                uffd: uffd(&mut tracee, &pidfd),
                limited: limited(&mut tracee, scratch),
                tid: tracee.tid(),
                pidfd,
                tracer: tracer.clone(),
                tracee: Arc::new(Mutex::new(Some(tracee))),
                scratch,
                rings: Rings::default(),
                ended: AtomicBool::new(false),
            }),
            Err(error) => {
                tracee.kill();
                Err(error)
            }
        }
    }

    fn set_up(tracee: &mut Tracee) -> Result<(OwnedFd, u64), Errno> {
        sys::short_turns(tracee.tid());
        tracee.begin()?;
        // First of all: a copy of the descriptors would keep pipes and sockets open.
        let all = [0, u32::MAX.into(), CLOSE_RANGE_UNSHARE, 0, 0, 0];
        tracee.call(libc::SYS_close_range, all)?;
        tracee.call(libc::SYS_setsid, [0; 6])?;
        let rights = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let scratch = scratch(|at, more| {
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more) as u64;
            tracee.call(libc::SYS_mmap, [at, SCRATCH, rights, flags, u64::MAX, 0])
        })?;
        tracee.call(libc::SYS_madvise, [scratch, SCRATCH, libc::MADV_DONTFORK as u64, 0, 0, 0])?;
        Ok((sys::pidfd_open(tracee.tid())?, scratch))
    }

    /// The mm's userfaultfd.
    pub(super) fn uffd(&self) -> Option<&Arc<Uffd>> {
        self.uffd.as_ref()
    }

    /// Its process id.
    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    /// Ends it, whatever it is at. What is pinned stays pinned. Does not wait, for the last owner
    /// may be the tracer itself.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        // At once: it may be in a call that only that ends.
        let _ = sys::kill(self.pidfd.as_fd());
        let tracee = self.tracee.clone();
        self.tracer.send(move || {
            if let Some(tracee) = tracee.lock().take() {
                tracee.kill();
            }
        });
    }

    /// Whether it was ended, or was killed by somebody else.
    pub(super) fn gone(&self) -> bool {
        self.ended.load(Ordering::Acquire) || !sys::alive(self.pidfd.as_fd())
    }

    /// Whether the kernel may refuse it a pin for `RLIMIT_MEMLOCK`.
    pub(super) fn limited(&self) -> bool {
        self.limited
    }

    /// Free slots for `length` bytes from `address`.
    pub(super) fn slots(
        &self,
        mm: &Mm,
        address: u64,
        length: u64,
        grain: Grain,
    ) -> Result<Vec<Wanted>, Errno> {
        self.rings.slots(address, length, grain, |slots| self.new_ring(mm, slots))
    }

    fn new_ring(&self, mm: &Mm, slots: u32) -> Result<Ring, Errno> {
        mm.poke(self.scratch, &[0; Params::SIZE])?;
        let (tracee, scratch) = (self.tracee.clone(), self.scratch);
        let number = self
            .tracer
            .run(move || {
                let mut tracee = tracee.lock();
                let tracee = tracee.as_mut().ok_or(Errno::ESRCH)?;
                let arguments = [Params::ENTRIES, scratch, 0, 0, 0, 0];
                tracee.call(libc::SYS_io_uring_setup, arguments)
            })
            .ok_or(Errno::EAGAIN)??;
        let mut params = [0; Params::SIZE];
        mm.peek(self.scratch, &mut params)?;
        let fd = sys::pidfd_getfd(self.pidfd.as_fd(), number as i32)?;
        Ring::new(fd, number, Params::from_bytes(&params), slots)
    }

    /// `mprotect` of the mm.
    pub(super) fn protect(&self, addresses: Range<u64>, rights: i32) -> Result<(), Errno> {
        let tracee = self.tracee.clone();
        let job = move || {
            let mut tracee = tracee.lock();
            let tracee = tracee.as_mut().ok_or(Errno::ESRCH)?;
            let length = addresses.end - addresses.start;
            tracee.call(libc::SYS_mprotect, [addresses.start, length, rights as u64, 0, 0, 0])
        };
        self.tracer.run(job).ok_or(Errno::EAGAIN)?.map(drop)
    }

    /// Pins each of `wanted` in turn, on the tracer, and gives it to `done` when it is pinned;
    /// after a failure the rest is not tried. Returns at once.
    pub(super) fn pin(
        &self,
        mm: &Arc<Mm>,
        wanted: Vec<Wanted>,
        done: impl Fn(Result<Wanted, Errno>) + Send + 'static,
    ) {
        let (tracee, scratch, mm) = (self.tracee.clone(), self.scratch, mm.clone());
        let job = move || {
            let mut tracee = tracee.lock();
            for one in wanted {
                let pinned = match tracee.as_mut() {
                    Some(tracee) => register(tracee, &mm, scratch, &one),
                    None => Err(Errno::ESRCH),
                };
                let failed = pinned.is_err();
                done(pinned.map(|()| one));
                if failed {
                    return;
                }
            }
        };
        self.tracer.send(job);
    }
}

/// Whether the kernel may refuse the helper `tid` pins for `RLIMIT_MEMLOCK`. Raises that: the engine
/// keeps the caller's limit, and the kernel's own count has more in it (rings, and all of a huge
/// page of which a part is pinned). Not without end, for the caller can write what the helper is
/// asked to pin.
fn limited(tracee: &mut Tracee, scratch: u64) -> bool {
    const MORE: u64 = 64 << 20;
    let tid = tracee.tid();
    let limit = sys::memlock_limit(tid).unwrap_or(0);
    let wanted = limit.saturating_mul(2).saturating_add(MORE);
    sys::raise_memlock(tid, wanted);
    if sys::memlock_limit(tid).unwrap_or(0) < wanted
        && let Err(error) = raise_own_limit(tracee, scratch, wanted)
    {
        tracing::debug!(tid, %error, "a helper keeps the limit of its process");
    }
    limit != u64::MAX && sys::effective_capability(tid, sys::CAP_IPC_LOCK) != Ok(true)
}

/// Has the helper raise its `RLIMIT_MEMLOCK` itself, to `wanted` or as far as that takes no right: the
/// limit of a process with another real user than ours (a set-user-ID program) is not ours to change.
fn raise_own_limit(tracee: &mut Tracee, scratch: u64, wanted: u64) -> Result<(), Errno> {
    let path = format!("/proc/{}/mem", tracee.tid());
    let memory = File::options().read(true).write(true).open(path).map_err(|e| errno(&e))?;
    let which = u64::from(libc::RLIMIT_MEMLOCK);
    tracee.call(libc::SYS_prlimit64, [0, which, 0, scratch, 0, 0])?;
    // `struct rlimit64`: the soft limit, the hard one.
    let mut limits = [0; 16];
    memory.read_exact_at(&mut limits, scratch).map_err(|error| errno(&error))?;
    let (words, _) = limits.as_chunks::<8>();
    let [soft, hard] = [words[0], words[1]].map(u64::from_ne_bytes);
    let most = wanted.min(hard);
    if most <= soft {
        return Ok(());
    }
    memory.write_all_at(&most.to_ne_bytes(), scratch).map_err(|error| errno(&error))?;
    tracee.call(libc::SYS_prlimit64, [0, which, scratch, 0, 0, 0]).map(drop)
}

/// A userfaultfd of the mm. Without one nothing tells what happens to the mm.
fn uffd(tracee: &mut Tracee, pidfd: &OwnedFd) -> Option<Arc<Uffd>> {
    let number = tracee.call(libc::SYS_userfaultfd, [uffd::FLAGS, 0, 0, 0, 0, 0]);
    let made = number.and_then(|number| {
        let fd = sys::pidfd_getfd(pidfd.as_fd(), number as i32);
        tracee.call(libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
        Uffd::new(fd?)
    });
    made.map(Arc::new)
        .inspect_err(|error| tracing::debug!(%error, "changes of mapped memory will not be told"))
        .ok()
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.ended.load(Ordering::Acquire) {
            self.end();
        }
    }
}

fn register(tracee: &mut Tracee, mm: &Mm, scratch: u64, one: &Wanted) -> Result<(), Errno> {
    let mut bytes = [0; IOVECS as usize + 16];
    bytes[..32].copy_from_slice(&update_bytes(one.slot, scratch + IOVECS, 1));
    bytes[IOVECS as usize..][..8].copy_from_slice(&one.address.to_ne_bytes());
    bytes[IOVECS as usize + 8..].copy_from_slice(&one.length.to_ne_bytes());
    mm.poke(scratch, &bytes)?;
    let opcode = IORING_REGISTER_BUFFERS_UPDATE.into();
    let arguments = [one.ring.number(), opcode, scratch, 32, 0, 0];
    match tracee.call(libc::SYS_io_uring_register, arguments)? {
        1 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Where the scratch page may be: addresses that neither the kernel gives out nor the sanitizers
/// and Go's runtime claim. Where the kernel would put it, next to what the program has just
/// unmapped, a map of that hole would find a page.
const PLACES: [u64; 8] = [
    0x4fff_ffff_0000,
    0x4fef_ffff_0000,
    0x4fdf_ffff_0000,
    0x4fcf_ffff_0000,
    0x3f_ffff_0000,
    0x2f_ffff_0000,
    0x1f_ffff_0000,
    0xf_ffff_0000,
];

/// Maps the scratch page with `mmap` (address, more flags) in the first place that is free, or
/// where the kernel likes.
fn scratch(mut mmap: impl FnMut(u64, i32) -> Result<u64, Errno>) -> Result<u64, Errno> {
    let free = PLACES.iter().find_map(|&at| mmap(at, libc::MAP_FIXED_NOREPLACE).ok());
    free.map_or_else(|| mmap(0, 0), Ok)
}
