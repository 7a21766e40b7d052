//! Accesses to mapped files that somebody else may truncate.
//!
//! A page of a shared mapping that the file lost, or that [`super::trap`] guards, raises SIGBUS on the
//! next touch. DMA must neither die of that nor see another page: accesses go through the functions
//! here, and the signal's handler has them fail. Every other SIGBUS goes to whoever handled it
//! before.
//!
//! The handler changes nothing but where the thread goes on, so it may come at any point, and what one
//! thread meets is nothing to others.
#![allow(unsafe_code)] // a signal handler, and accesses to whatever is mapped

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::dma::atomic::Width;

#[cfg(target_arch = "x86_64")]
#[path = "guarded_x86_64.rs"]
mod arch;

/// A page is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing;

/// The handler that was there before ours; written once, before ours is installed.
static PREVIOUS_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static PREVIOUS_TAKES_INFO: AtomicUsize = AtomicUsize::new(0);

/// Copies `length` bytes; some may have been copied when a page is missing.
///
/// # Safety
///
/// [`install`] was called. Both ranges are mapped, with the rights that the copy needs, whether or not
/// their pages are there, and do not overlap. Nobody counts on what other threads see of them.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), Missing> {
    // SAFETY: by the caller's promise; a page that is missing makes it return 1.
    match unsafe { arch::softiommu_guarded_copy(to, from, length) } {
        0 => Ok(()),
        _ => Err(Missing),
    }
}

/// Replaces the `width` bytes at `at` by `new` if they are `old`, atomically. Answers what was there.
///
/// # Safety
///
/// [`install`] was called. `at` is aligned to `width` and mapped for writing, whether or not its page
/// is there. Nobody counts on what other threads see of it.
pub(super) unsafe fn compare_exchange(
    at: *mut u8,
    width: Width,
    old: u64,
    new: u64,
) -> Result<u64, Missing> {
    let exchange = match width {
        Width::Four => arch::softiommu_guarded_exchange4,
        Width::Eight => arch::softiommu_guarded_exchange8,
    };
    let mut found = 0;
    // SAFETY: by the caller's promise; `found` lives.
    match unsafe { exchange(at, old, new, &raw mut found) } {
        0 => Ok(found),
        _ => Err(Missing),
    }
}

/// Takes SIGBUS over, once.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
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
    });
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    /// `BUS_ADRERR`: a page that is not there; `BUS_MCEERR_AR`: one that broke. A signal that a process
    /// sent is neither.
    const OURS: [libc::c_int; 2] = [2, 4];
    // SAFETY: with SA_SIGINFO the kernel gives a valid `info` and a `ucontext_t`.
    if OURS.contains(unsafe { &(*info).si_code }) && unsafe { arch::fail(context) } {
        return;
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

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    const PAGE: usize = 4096;

    /// Two pages of a file that has one.
    fn truncated(with: impl FnOnce(*mut u8)) {
        install();
        let file = memfd_create(c"guarded", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, PAGE as i64).unwrap();
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = (2 * PAGE).try_into().unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        with(at.as_ptr().cast());
        // SAFETY: the mapping just made, which nobody uses any more.
        unsafe { munmap(at, 2 * PAGE) }.unwrap();
    }

    #[test]
    fn every_length_is_copied() {
        install();
        let from: Vec<u8> = (0..5000).map(|byte| (byte % 251) as u8).collect();
        for length in (0..300).chain([2047, 2048, 2049, 4096, 4999]) {
            let mut to = vec![0xee; 5000];
            // SAFETY: inside of two vectors.
            unsafe { copy(to.as_mut_ptr(), from.as_ptr(), length) }.unwrap();
            assert_eq!(to[..length], from[..length], "{length}");
            assert!(to[length..].iter().all(|&byte| byte == 0xee), "{length}");
        }
    }

    #[test]
    fn what_is_not_there_fails_and_nothing_else() {
        truncated(|at| {
            for length in [1, 2, 4, 8, 16, 33, 64, 100, 2048, PAGE] {
                let mut bytes = vec![7_u8; length];
                let across = at.wrapping_add(PAGE - length + 1);
                for (at, end) in [(at.wrapping_add(PAGE), 0), (across, length - 1)] {
                    // SAFETY: inside of the mapping and of the vector.
                    unsafe {
                        assert_eq!(copy(bytes.as_mut_ptr(), at, length), Err(Missing));
                        assert_eq!(copy(at, bytes.as_ptr(), length), Err(Missing));
                        assert_eq!(copy(bytes.as_mut_ptr(), at, end), Ok(()));
                    }
                }
            }
            for width in [Width::Four, Width::Eight] {
                // SAFETY: aligned, in the mapping.
                unsafe {
                    assert_eq!(compare_exchange(at.wrapping_add(PAGE), width, 0, 1), Err(Missing));
                    let wide = at.wrapping_add(64).cast::<u64>();
                    wide.write(5 << 32 | 3);
                    let low = if width == Width::Four { 3 } else { 5 << 32 | 3 };
                    assert_eq!(compare_exchange(wide.cast(), width, 1, 9), Ok(low));
                    assert_eq!(compare_exchange(wide.cast(), width, low, 9), Ok(low));
                    assert_eq!(compare_exchange(wide.cast(), width, 0, 0), Ok(9));
                }
            }
        });
    }
}
