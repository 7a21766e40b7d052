//! Reading mapped files that somebody else may truncate.
//!
//! A page of a shared mapping that the file lost raises SIGBUS on the next touch. DMA must not
//! die of that: for addresses of ranges that are [watched](watch), the handler maps zeroed memory
//! over the page and the access goes on. Every other SIGBUS goes to whoever handled it before.
//!
//! The handler runs on the faulting thread at any point, so it takes no lock and allocates
//! nothing: it scans a static table of atomics and calls `mmap`. A slot's length is stored after
//! its start and cleared before it, and a slot outlives every access to its range, so the
//! handler never sees a half-written slot for the range that it was called for.
#![allow(unsafe_code)] // a signal handler

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::Errno;

struct Slot {
    start: AtomicUsize,
    /// 0 while the slot is free; 1 while it is being filled.
    length: AtomicUsize,
    /// Bytes that one page of the mapping has.
    page: AtomicUsize,
}

const SLOTS: usize = 8192;

static TABLE: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), length: AtomicUsize::new(0), page: AtomicUsize::new(0) }
}; SLOTS];
/// No slot from here on was ever used.
static HIGH: AtomicUsize = AtomicUsize::new(0);
/// How many pages were replaced since the start.
static REPLACED: AtomicUsize = AtomicUsize::new(0);

/// The handler that was there before ours; written once, before ours is installed.
static PREVIOUS_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static PREVIOUS_TAKES_INFO: AtomicUsize = AtomicUsize::new(0);

/// A range under watch, until drop.
pub(crate) struct Watched(usize);

/// How many pages were replaced by zeroes since the process started.
#[cfg(test)]
pub(crate) fn replaced() -> usize {
    REPLACED.load(Ordering::Relaxed)
}

/// Makes faults in a mapping of this process harmless. `page` is the bytes of a page of it.
/// `ENOMEM` when too many ranges are watched.
pub(crate) fn watch(start: usize, length: usize, page: usize) -> Result<Watched, Errno> {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    for (index, slot) in TABLE.iter().enumerate() {
        if slot.length.load(Ordering::Relaxed) == 0
            && slot.length.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            HIGH.fetch_max(index + 1, Ordering::AcqRel);
            slot.page.store(page, Ordering::Relaxed);
            slot.start.store(start, Ordering::Release);
            slot.length.store(length, Ordering::Release);
            return Ok(Watched(index));
        }
    }
    Err(Errno::ENOMEM)
}

impl Drop for Watched {
    fn drop(&mut self) {
        TABLE[self.0].length.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: an all-zero `sigaction` is a valid one (default handler, empty mask, no flags).
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both structures live; asking only, so that `on_sigbus` never runs without them.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) };
    PREVIOUS_HANDLER.store(before.sa_sigaction, Ordering::Relaxed);
    PREVIOUS_TAKES_INFO
        .store(usize::from(before.sa_flags & libc::SA_SIGINFO != 0), Ordering::Release);
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and is async-signal-safe.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) };
}

/// The watched page that contains `address`: its start and length.
fn find(address: usize) -> Option<(usize, usize)> {
    let high = HIGH.load(Ordering::Acquire).min(SLOTS);
    TABLE[..high].iter().find_map(|slot| {
        let length = slot.length.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Acquire);
        if length <= 1 || address < start || address - start >= length {
            return None;
        }
        let page = slot.page.load(Ordering::Relaxed);
        Some((address & !(page - 1), page))
    })
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    /// `BUS_ADRERR`: a page that is not there; `BUS_MCEERR_AR`: one that broke.
    const OURS: [libc::c_int; 2] = [2, 4];
    // SAFETY: with SA_SIGINFO the kernel gives a valid `info`, whose address is set for SIGBUS;
    // for a signal that a process sent it is some other field, which `OURS` rules out.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: the location of this thread's errno is always valid.
    let errno = unsafe { *libc::__errno_location() };
    if OURS.contains(&code)
        && let Some((page, bytes)) = find(address)
    {
        // SAFETY: the page belongs to a mapping that its owner gave to `watch` for this very
        // purpose, and it is alive, since an access to it brought us here. It has no contents.
        let mapped = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            REPLACED.fetch_add(1, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            return;
        }
    }
    let takes_info = PREVIOUS_TAKES_INFO.load(Ordering::Acquire) != 0;
    match PREVIOUS_HANDLER.load(Ordering::Relaxed) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The faulting instruction runs again and ends the process, as without us.
            // SAFETY: resetting a signal to its default is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if takes_info => {
            // SAFETY: it was installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
