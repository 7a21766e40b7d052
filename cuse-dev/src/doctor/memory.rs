//! How pages of callers can be held, watched and named.
#![allow(unsafe_code)] // io_uring's and userfaultfd's own calls, and mappings to try them on.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use engine::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Check, failed, setting};
use crate::caller::sys;
use crate::memory::errno;
use crate::memory::trap::Traps;
use crate::memory::vma::Mappings;

const PAGE: usize = 4096;

pub(super) fn checks() -> Vec<Check> {
    vec![
        memfd(),
        map_files(),
        io_uring(),
        userfaultfd(),
        pagemap(),
        procmap(),
        huge_pages(),
        memlock(),
        descriptors(),
    ]
}

/// Memory of our own to try things on.
struct Mapped(NonNull<libc::c_void>, usize);

impl Mapped {
    fn anonymous(bytes: usize, flags: MapFlags) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; nothing else is touched.
        let at = unsafe { mmap_anonymous(None, length, rights, MapFlags::MAP_PRIVATE | flags)? };
        Ok(Self(at, bytes))
    }

    fn shared(file: &OwnedFd) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes; nothing else is touched.
        let at = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, file, 0)? };
        Ok(Self(at, PAGE))
    }

    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn touch(&self) {
        // SAFETY: the first byte of a writable mapping of ours, which nobody else uses.
        unsafe { self.0.cast::<u8>().write_volatile(1) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing points into it any more.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

fn memfd() -> Check {
    let (name, title) = ("memfd", "memory files");
    match memfd_create("softiommu-doctor", MFdFlags::MFD_CLOEXEC).and_then(|fd| Mapped::shared(&fd))
    {
        Ok(_) => Check::ok(name, title, "one was made and mapped"),
        Err(error) => Check::ok(name, title, failed("make and map one", error))
            .missing("nothing works", "a kernel with CONFIG_MEMFD_CREATE and CONFIG_TMPFS"),
    }
}

fn map_files() -> Check {
    let (name, title) = ("map-files", "sharing a caller's pages (/proc/PID/map_files)");
    let tried = memfd_create("softiommu-doctor", MFdFlags::MFD_CLOEXEC).and_then(|fd| {
        nix::unistd::ftruncate(&fd, PAGE as i64)?;
        let mapped = Mapped::shared(&fd)?;
        let (start, end) = (mapped.address(), mapped.address() + PAGE as u64);
        let path = format!("/proc/self/map_files/{start:x}-{end:x}");
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| errno(&error))
    });
    match tried {
        Ok(_) => Check::ok(name, title, "a mapping's file was opened"),
        Err(error) => Check::ok(name, title, failed("open a mapping's file", error)).degraded(
            "shared memory is a window on the caller's addresses: it does not outlive the \
             caller's munmap, exec or exit",
            "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, both of which root has",
        ),
    }
}

/// Registers a page as a buffer, which is what pins it.
fn register_buffer() -> Result<(), (&'static str, Errno)> {
    let ring = io_uring::IoUring::new(1).map_err(|error| ("set one up", errno(&error)))?;
    let page = Mapped::anonymous(PAGE, MapFlags::empty()).map_err(|error| ("map a page", error))?;
    let buffer = libc::iovec { iov_base: page.0.as_ptr(), iov_len: PAGE };
    let fixed = |error: std::io::Error| ("register a buffer", errno(&error));
    // SAFETY: the page outlives the registration, which ends with the ring, dropped first below.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.map_err(fixed)?;
    ring.submitter().unregister_buffers().map_err(fixed)?;
    ring.submitter()
        .register_buffers_sparse(1)
        .map_err(|error| ("register empty slots", errno(&error)))?;
    drop(ring);
    Ok(())
}

fn io_uring() -> Check {
    let (name, title) = ("io-uring", "io_uring's registered buffers (real pins)");
    match register_buffer() {
        Ok(()) => Check::ok(name, title, "a page was registered, so pinned, and let go"),
        Err((what, error)) => {
            let disabled = setting("/proc/sys/kernel/io_uring_disabled");
            let remedy = match (error, disabled.as_deref()) {
                (Errno::EPERM, Some("2")) => "sysctl kernel.io_uring_disabled=0".to_owned(),
                (Errno::EPERM, Some("1")) => {
                    "sysctl kernel.io_uring_disabled=0, or membership in the group of \
                     kernel.io_uring_group"
                        .to_owned()
                }
                (Errno::EPERM, _) => "the container's filter forbids it (docker: --security-opt \
                     seccomp=unconfined)"
                    .to_owned(),
                (Errno::ENOMEM, _) => "raise RLIMIT_MEMLOCK (ulimit -l)".to_owned(),
                (Errno::ENOSYS, _) => "a kernel with CONFIG_IO_URING".to_owned(),
                _ => "Linux 5.19 or later".to_owned(),
            };
            Check::ok(name, title, failed(what, error)).degraded(
                "private memory is not pinned: it is a window on the caller's addresses, which \
                 follows the address, not the page",
                remedy,
            )
        }
    }
}

/// Asks for the events that tell what a caller does to its address space, for faults of user mode alone:
/// that needs no right.
fn userfaultfd_events() -> Result<(), Errno> {
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    /// `UFFD_USER_MODE_ONLY`.
    const USER_ONLY: libc::c_int = 1;
    /// REMAP, REMOVE, UNMAP. (A fork takes no page from a pin.)
    const EVENTS: u64 = 1 << 2 | 1 << 3 | 1 << 6;
    let flags = libc::O_CLOEXEC | USER_ONLY;
    // SAFETY: takes flags, and answers a new descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: the kernel made it for us just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [0xaa_u64, EVENTS, 0];
    // SAFETY: the command's struct is three 64-bit words.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, api.as_mut_ptr()) };
    Errno::result(done).map(drop)
}

fn userfaultfd() -> Check {
    let (name, title) = ("userfaultfd", "userfaultfd (watching memory)");
    let (events, files) = (userfaultfd_events(), Traps::new());
    match (events, files) {
        (Ok(()), Ok(_)) => {
            Check::ok(name, title, "it tells of remap, remove and unmap, and keeps pages of files")
        }
        (Err(error), _) => Check::ok(name, title, failed("have it", error)).degraded(
            "a munmap or mremap under a live mapping goes unnoticed, and DMA to shared memory goes \
             through io_uring: microseconds for each access",
            match error {
                Errno::ENOSYS => "a kernel with CONFIG_USERFAULTFD",
                _ => "a policy (seccomp) that allows userfaultfd",
            },
        ),
        (Ok(()), Err(error)) => Check::ok(name, title, failed("keep pages of files", error))
            .degraded(
                "DMA to shared memory goes through io_uring: microseconds for each access",
                "Linux 5.14 or later",
            ),
    }
}

/// The frame of a page of ours, 0 where the kernel hides it.
fn frame() -> Result<u64, Errno> {
    let page = Mapped::anonymous(PAGE, MapFlags::empty())?;
    page.touch();
    let mut entry = [0; 8];
    let file = File::open("/proc/self/pagemap").map_err(|error| errno(&error))?;
    let at = page.address() / PAGE as u64 * entry.len() as u64;
    file.read_exact_at(&mut entry, at).map_err(|error| errno(&error))?;
    Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
}

fn pagemap() -> Check {
    let (name, title) = ("pagemap", "page frame numbers (/proc/PID/pagemap)");
    let found = match frame() {
        Ok(0) => "the kernel shows them as 0".to_owned(),
        Ok(frame) => return Check::ok(name, title, format!("a page of ours is frame {frame:#x}")),
        Err(error) => failed("read it", error),
    };
    Check::ok(name, title, found).degraded(
        "IOPTEs hold made-up frame numbers, with the same contiguity",
        "CAP_SYS_ADMIN in the initial user namespace, and CONFIG_PROC_PAGE_MONITOR",
    )
}

fn procmap() -> Check {
    let (name, title) = ("procmap-query", "looking one mapping up (PROCMAP_QUERY)");
    let tried = File::open("/proc/self/maps")
        .map_err(|error| errno(&error))
        .and_then(|maps| Mappings::new(maps).query((&raw const tried_on) as u64));
    match tried {
        Ok(_) => Check::ok(name, title, "a mapping of ours was found"),
        Err(error) => Check::ok(name, title, failed("ask for a mapping", error)).degraded(
            "all mappings of a caller are read for each pin: a millisecond and more for a \
             caller with thousands of them",
            "Linux 6.11 or later",
        ),
    }
}

/// Something with an address.
#[allow(non_upper_case_globals)]
static tried_on: u8 = 0;

fn huge_pages() -> Check {
    let (name, title) = ("huge-pages", "huge pages");
    let all = setting("/proc/sys/vm/nr_hugepages").unwrap_or_else(|| "no".into());
    let tried = Mapped::anonymous(2 << 20, MapFlags::MAP_HUGETLB);
    match tried {
        Ok(page) => {
            drop(page);
            Check::ok(name, title, format!("one was mapped, of {all}"))
        }
        Err(error) => {
            Check::ok(name, title, format!("{}; there are {all}", failed("map one", error)))
                .degraded(
                    "the upstream suites' hugetlb cases fail; nothing else asks for them",
                    "sysctl vm.nr_hugepages=192",
                )
        }
    }
}

fn memlock() -> Check {
    /// What the upstream suites pin at a time, and more.
    const ENOUGH: u64 = 64 << 20;
    let (name, title) = ("memlock", "RLIMIT_MEMLOCK");
    let tid = std::process::id();
    /// `CAP_IPC_LOCK`.
    const IPC_LOCK: u32 = 14;
    if sys::effective_capability(tid, IPC_LOCK).unwrap_or(false) {
        return Check::ok(name, title, "does not count (CAP_IPC_LOCK)");
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft == RLIM_INFINITY => Check::ok(name, title, "no limit"),
        Ok((soft, _)) if soft >= ENOUGH => Check::ok(name, title, format!("{} MiB", soft >> 20)),
        Ok((soft, hard)) => {
            let hard =
                if hard == RLIM_INFINITY { "none".into() } else { format!("{} KiB", hard >> 10) };
            Check::ok(name, title, format!("{} KiB (hard limit: {hard})", soft >> 10)).degraded(
                "mappings past it fail with ENOMEM, as they do with the kernel's iommufd",
                "ulimit -l, or `memlock` in /etc/security/limits.conf",
            )
        }
        Err(error) => Check::ok(name, title, failed("ask for it", error))
            .degraded("mappings may fail with ENOMEM", "ulimit -l"),
    }
}

fn descriptors() -> Check {
    /// A context costs a descriptor or two; this is what systemd gives.
    const ENOUGH: u64 = 16_384;
    let (name, title) = ("nofile", "RLIMIT_NOFILE");
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= ENOUGH => Check::ok(name, title, format!("at most {hard}")),
        Ok((_, hard)) => Check::ok(name, title, format!("at most {hard}")).degraded(
            "so many contexts, callers and event files together, and no more",
            "ulimit -Hn, or LimitNOFILE= in the unit",
        ),
        Err(error) => Check::ok(name, title, failed("ask for it", error))
            .degraded("contexts may be refused", "ulimit -Hn"),
    }
}
