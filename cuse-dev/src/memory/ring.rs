//! An io_uring of a caller's mm, whose registered buffers are pins of the caller's pages.
//!
//! The caller's helper made the ring and registers ranges with it; that needs the mm. All else
//! any holder of the ring's descriptor can do: copy between a registered buffer and a file of
//! its own, and let a buffer go. So this process copies through a memfd that it has mapped.
#![allow(unsafe_code)] // the ring is memory shared with the kernel

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use engine::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;

/// Most slots for buffers of one ring: `IORING_MAX_REG_BUFFERS`.
pub(super) const MOST_SLOTS: u32 = 1 << 14;
/// Bytes that one copy moves at most.
const BOUNCE: usize = 256 << 10;
const ENTRIES: u32 = 1;

const IORING_OFF_SQES: libc::off_t = 0x1000_0000;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OP_READ_FIXED: u8 = 4;
const IORING_OP_WRITE_FIXED: u8 = 5;
const IORING_REGISTER_BUFFERS2: u32 = 15;
/// Registers buffers in slots: the command that needs the mm.
pub(super) const IORING_REGISTER_BUFFERS_UPDATE: u32 = 16;
const IORING_RSRC_REGISTER_SPARSE: u32 = 1;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets`, which agree in what is used here
/// except for the last two.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    /// `overflow` in the completion queue.
    flags: u32,
    /// `cqes` in the completion queue.
    dropped: u32,
    array: u32,
    reserved: u32,
    address: u64,
}

/// `struct io_uring_params` of `<linux/io_uring.h>`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}
const _: () = assert!(size_of::<Params>() == 120);

impl Params {
    /// How many entries to ask `io_uring_setup` for.
    pub(super) const ENTRIES: u64 = ENTRIES as u64;
    /// Bytes of the structure.
    pub(super) const SIZE: usize = size_of::<Self>();

    /// From what `io_uring_setup` stored.
    pub(super) fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        // SAFETY: `bytes` has the structure's length, all of whose fields are integers; the read
        // is unaligned.
        unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
    }
}

/// `struct io_uring_rsrc_update2`: an update of `count` slots from `first` by the iovecs at `iovecs`.
pub(super) fn update_bytes(first: u32, iovecs: u64, count: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[8..16].copy_from_slice(&iovecs.to_ne_bytes());
    bytes[24..28].copy_from_slice(&count.to_ne_bytes());
    bytes
}

/// `struct io_uring_sqe`, as reads and writes use it.
#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    rw_flags: u32,
    user_data: u64,
    buffer: u16,
    personality: u16,
    file_index: u32,
    padding: [u64; 2],
}
const _: () = assert!(size_of::<Submission>() == 64);

/// `struct io_uring_cqe`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// A range of memory of this process, until drop.
struct Mapping {
    base: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(fd: &OwnedFd, length: usize, offset: libc::off_t) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { base: base.cast(), length })
    }

    /// A counter at byte `offset`.
    fn word(&self, offset: u32) -> &AtomicU32 {
        let offset = offset as usize;
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length);
        // SAFETY: inside the mapping, aligned, and an integer that the kernel also accesses
        // atomically; it lives as long as `self`.
        unsafe { &*self.base.add(offset).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

struct Queues {
    rings: Mapping,
    submissions: Mapping,
    bounce: Mapping,
    file: OwnedFd,
}

// SAFETY: the mappings belong to the process and are used only under the ring's lock.
unsafe impl Send for Queues {}

/// One ring with its slots.
pub(crate) struct Ring {
    fd: OwnedFd,
    /// The descriptor's number in the helper.
    number: u64,
    params: Params,
    queues: Mutex<Queues>,
    free: Mutex<Free>,
}

struct Free {
    /// Slots that were used and are free.
    used: Vec<u32>,
    /// No slot from here on was used.
    next: u32,
    slots: u32,
}

/// Which way a copy goes.
enum Way<'a> {
    /// From the registered buffer.
    Out(&'a mut [u8]),
    /// To the registered buffer.
    In(&'a [u8]),
}

impl Ring {
    /// The ring behind `fd`, which the helper knows as `number` and made with `params`. It gets as
    /// many as `slots`, or fewer.
    pub(super) fn new(
        fd: OwnedFd,
        number: u64,
        params: Params,
        mut slots: u32,
    ) -> Result<Self, Errno> {
        let submissions = params.sq.array as usize + params.sq_entries as usize * 4;
        let completions =
            params.cq.dropped as usize + params.cq_entries as usize * size_of::<Completion>();
        let rings = Mapping::new(&fd, submissions.max(completions), 0)?;
        let length = params.sq_entries as usize * size_of::<Submission>();
        let submissions = Mapping::new(&fd, length, IORING_OFF_SQES)?;
        let file = memfd_create(c"softiommu-bounce", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, BOUNCE as i64)?;
        let bounce = Mapping::new(&file, BOUNCE, 0)?;
        for index in 0..params.sq_entries {
            rings.word(params.sq.array + index * 4).store(index, Ordering::Relaxed);
        }
        // `struct io_uring_rsrc_register`: count, flags, and nothing else for empty slots.
        loop {
            let register =
                [u64::from(slots) | u64::from(IORING_RSRC_REGISTER_SPARSE) << 32, 0, 0, 0];
            match enroll(&fd, IORING_REGISTER_BUFFERS2, register.as_ptr().cast(), 32) {
                Ok(_) => break,
                Err(Errno::ENOMEM) if slots > 64 => slots /= 4,
                Err(error) => return Err(error),
            }
        }
        let queues = Mutex::new(Queues { rings, submissions, bounce, file });
        let free = Mutex::new(Free { used: Vec::new(), next: 0, slots });
        Ok(Self { fd, number, params, queues, free })
    }

    /// A ring of this process with as many as `slots`.
    pub(super) fn own(slots: u32) -> Result<Self, Errno> {
        let mut params = Params::default();
        // SAFETY: the kernel reads and writes `params`, which has the structure's layout.
        let made =
            unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) as i32 };
        if made < 0 {
            return Err(Errno::last());
        }
        // SAFETY: the kernel just returned it as a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(made) };
        Self::new(fd, 0, params, slots)
    }

    /// Pins `length` bytes of this process from `address` in `slot`. Only for [`Ring::own`].
    pub(super) fn register(&self, slot: u32, address: u64, length: u64) -> Result<(), Errno> {
        let iovec = [address, length];
        self.update(slot, &iovec)
    }

    fn update(&self, slot: u32, iovec: &[u64; 2]) -> Result<(), Errno> {
        let update = update_bytes(slot, iovec.as_ptr() as u64, 1);
        match enroll(&self.fd, IORING_REGISTER_BUFFERS_UPDATE, update.as_ptr(), 32)? {
            1 => Ok(()),
            _ => Err(Errno::EFAULT),
        }
    }

    /// The ring's descriptor in the helper.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// A free slot.
    pub(super) fn take_slot(&self) -> Option<u32> {
        let mut free = self.free.lock();
        free.used.pop().or_else(|| {
            let slot = free.next;
            (slot < free.slots).then(|| {
                free.next += 1;
                slot
            })
        })
    }

    /// Takes back a slot that holds nothing.
    pub(super) fn give_back(&self, slot: u32) {
        self.free.lock().used.push(slot);
    }

    /// Unpins what the slot holds, and frees it.
    pub(super) fn clear(&self, slot: u32) {
        match self.update(slot, &[0; 2]) {
            Ok(()) => self.give_back(slot),
            Err(error) => tracing::error!(slot, %error, "cannot unpin a registered buffer"),
        }
    }

    /// Copies from `address`, which lies in the range registered in `slot`.
    pub(super) fn read(&self, slot: u32, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let queues = self.queues.lock();
        for (index, piece) in into.chunks_mut(BOUNCE).enumerate() {
            let address = address + (index * BOUNCE) as u64;
            self.copy(&queues, slot, address, Way::Out(piece))?;
        }
        Ok(())
    }

    /// Copies to `address`, which lies in the range registered in `slot`.
    pub(super) fn write(&self, slot: u32, address: u64, from: &[u8]) -> Result<(), Errno> {
        let queues = self.queues.lock();
        for (index, piece) in from.chunks(BOUNCE).enumerate() {
            let address = address + (index * BOUNCE) as u64;
            self.copy(&queues, slot, address, Way::In(piece))?;
        }
        Ok(())
    }

    fn copy(&self, queues: &Queues, slot: u32, address: u64, way: Way<'_>) -> Result<(), Errno> {
        let (opcode, length) = match &way {
            Way::Out(into) => (IORING_OP_WRITE_FIXED, into.len()),
            Way::In(from) => {
                // SAFETY: a piece has at most BOUNCE bytes, which the mapping has, too.
                unsafe { ptr::copy_nonoverlapping(from.as_ptr(), queues.bounce.base, from.len()) };
                (IORING_OP_READ_FIXED, from.len())
            }
        };
        let mut done = 0;
        while done < length {
            let moved = self.submit(
                queues,
                Submission {
                    opcode,
                    fd: queues.file.as_raw_fd(),
                    offset: done as u64,
                    address: address + done as u64,
                    length: (length - done) as u32,
                    buffer: slot as u16,
                    ..Submission::default()
                },
            )?;
            if moved == 0 {
                return Err(Errno::EFAULT);
            }
            done += moved as usize;
        }
        if let Way::Out(into) = way {
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(queues.bounce.base, into.as_mut_ptr(), into.len()) };
        }
        Ok(())
    }

    /// Runs one request to its end: how many bytes it moved.
    fn submit(&self, queues: &Queues, request: Submission) -> Result<u32, Errno> {
        let (sq, cq) = (&self.params.sq, &self.params.cq);
        let tail = queues.rings.word(sq.tail);
        let position = tail.load(Ordering::Relaxed);
        let index = (position & (self.params.sq_entries - 1)) as usize;
        // SAFETY: `index` is below the number of entries that the mapping was made for, and the
        // kernel reads the entry only after the tail says so.
        unsafe { queues.submissions.base.cast::<Submission>().add(index).write(request) };
        tail.store(position.wrapping_add(1), Ordering::Release);
        let (head, end) = (queues.rings.word(cq.head), queues.rings.word(cq.tail));
        let mut submit = 1_u32;
        loop {
            // SAFETY: passes integers and no signal mask.
            let entered = unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    self.fd.as_raw_fd(),
                    submit,
                    1,
                    IORING_ENTER_GETEVENTS,
                    ptr::null::<libc::sigset_t>(),
                    0,
                )
            };
            if entered < 0 {
                match Errno::last() {
                    Errno::EINTR | Errno::EAGAIN => {}
                    error => return Err(error),
                }
            } else {
                submit -= (entered as u32).min(submit);
            }
            fence(Ordering::Acquire);
            let at = head.load(Ordering::Relaxed);
            if at == end.load(Ordering::Acquire) {
                continue;
            }
            let index = (at & (self.params.cq_entries - 1)) as usize;
            let offset = cq.dropped as usize + index * size_of::<Completion>();
            // SAFETY: inside the ring mapping, whose length counts all completions; the kernel
            // has written the entry, since the tail is past it.
            let completion: Completion =
                unsafe { ptr::read_unaligned(queues.rings.base.add(offset).cast()) };
            head.store(at.wrapping_add(1), Ordering::Release);
            return u32::try_from(completion.result)
                .map_err(|_| Errno::from_raw(-completion.result));
        }
    }
}

/// `io_uring_register`.
fn enroll(fd: &OwnedFd, opcode: u32, argument: *const u8, count: u32) -> Result<u32, Errno> {
    // SAFETY: callers give the structure that the opcode reads.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, fd.as_raw_fd(), opcode, argument, count)
    };
    u32::try_from(result).map_err(|_| Errno::last())
}
