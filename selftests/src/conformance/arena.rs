//! The memory that programs work on: always at the same addresses.
//!
//! Addresses are then part of a program, and need not be told apart from other numbers when replies
//! are compared. Nothing of Rust lies in it.
#![allow(unsafe_code)] // Memory at fixed addresses, and calls that take any address.

use nix::errno::Errno;

/// A page.
pub const PAGE: u64 = 0x1000;
/// Pages of each of the first three regions.
pub const PAGES: u64 = 32;
/// Private anonymous memory.
pub const PRIVATE: u64 = BASE;
/// Shared anonymous memory.
pub const SHARED: u64 = BASE + SPACING;
/// A memfd's memory, which [`Arena::new`] opens as descriptor 3.
pub const FILE: u64 = BASE + 2 * SPACING;
/// Private memory that can only be read, [`PAGES`] of it.
pub const READ_ONLY: u64 = BASE + 3 * SPACING;
/// Memory that nobody may touch.
pub const FORBIDDEN: u64 = BASE + 4 * SPACING;
/// Where programs may map 2 MiB pages.
pub const HUGE: u64 = BASE + 5 * SPACING;
/// Where programs may map what an iommufd offers.
pub const DEVICE: u64 = BASE + 6 * SPACING;
/// Where structs lie: [`STRUCT_PAGES`], and behind them nothing.
pub const STRUCT: u64 = BASE + 7 * SPACING;
/// Pages for structs.
pub const STRUCT_PAGES: u64 = 2;
/// From one thread's structs to the next one's.
pub(super) const STRUCT_SPACING: u64 = 0x1_0000;
/// Threads that have a place for structs.
const STRUCT_PLACES: u64 = 4;
/// Where the data lie that structs point at: [`BUFFER_PAGES`], and behind them nothing.
pub const BUFFER: u64 = BASE + 8 * SPACING;
/// Pages for data.
pub const BUFFER_PAGES: u64 = 8;
/// A page of data that can only be read.
pub const READ_ONLY_BUFFER: u64 = BASE + 9 * SPACING;
/// A 2 MiB page.
pub const HUGE_PAGE: u64 = 0x20_0000;

/// Below where kernels put programs, and above where they put anything by themselves.
const BASE: u64 = 0x1000_0000_0000;
const SPACING: u64 = 0x100_0000;

/// The memory, of which there is one in a process.
#[derive(Debug)]
pub struct Arena {
    file: i32,
}

fn map(at: u64, len: u64, prot: i32, flags: i32, fd: i32) -> Result<(), Errno> {
    // SAFETY: the addresses are the arena's, where nothing else lies.
    let got =
        unsafe { libc::mmap(at as *mut _, len as usize, prot, flags | libc::MAP_FIXED, fd, 0) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

impl Arena {
    /// Maps what programs expect, all of it fresh.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: the name is a C string.
        let file = unsafe { libc::memfd_create(c"arena".as_ptr(), libc::MFD_CLOEXEC) };
        Errno::result(file)?;
        // SAFETY: a plain system call on our descriptor.
        Errno::result(unsafe { libc::ftruncate(file, (PAGES * PAGE) as i64) })?;
        let arena = Self { file };
        arena.reset()?;
        Ok(arena)
    }

    fn reset(&self) -> Result<(), Errno> {
        let anonymous = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let (rw, len) = (libc::PROT_READ | libc::PROT_WRITE, PAGES * PAGE);
        // All of it away first: programs map, unmap and protect as they like.
        map(BASE, 10 * SPACING, libc::PROT_NONE, anonymous, -1)?;
        // SAFETY: as above; behind and between the regions nothing shall be, not even memory that
        // may not be touched: the end of each is the end of a mapping.
        Errno::result(unsafe { libc::munmap(BASE as *mut _, (10 * SPACING) as usize) })?;
        map(PRIVATE, len, rw, anonymous, -1)?;
        map(SHARED, len, rw, libc::MAP_ANONYMOUS | libc::MAP_SHARED, -1)?;
        map(FILE, len, rw, libc::MAP_SHARED, self.file)?;
        map(READ_ONLY, len, rw, anonymous, -1)?;
        map(FORBIDDEN, len, libc::PROT_NONE, anonymous, -1)?;
        for place in 0..STRUCT_PLACES {
            map(STRUCT + place * STRUCT_SPACING, STRUCT_PAGES * PAGE, rw, anonymous, -1)?;
        }
        map(BUFFER, BUFFER_PAGES * PAGE, rw, anonymous, -1)?;
        map(READ_ONLY_BUFFER, PAGE, libc::PROT_READ, anonymous, -1)?;
        for region in [PRIVATE, SHARED, FILE, READ_ONLY] {
            // SAFETY: advice on the arena's memory. What is contiguous must not depend on how this
            // machine uses huge pages.
            unsafe { libc::madvise(region as *mut _, len as usize, libc::MADV_NOHUGEPAGE) };
            for chunk in 0..2 * PAGES {
                // SAFETY: just mapped, writable, aligned.
                unsafe { ((region + chunk * PAGE / 2) as *mut u64).write(region + chunk) };
            }
        }
        // SAFETY: the arena's memory.
        Errno::result(unsafe {
            libc::mprotect(READ_ONLY as *mut _, len as usize, libc::PROT_READ)
        })?;
        Ok(())
    }
}

/// Whether these bytes are in memory that programs leave as it is, so that no system call is needed
/// to look at it: where structs and their data lie.
fn is_steady(at: u64, len: usize) -> bool {
    let within = |from: u64, pages: u64| {
        at >= from && at.checked_add(len as u64).is_some_and(|end| end <= from + pages * PAGE)
    };
    let mut structs = (0..STRUCT_PLACES).map(|place| STRUCT + place * STRUCT_SPACING);
    structs.any(|from| within(from, STRUCT_PAGES)) || within(BUFFER, BUFFER_PAGES)
}

/// Copies into this process's memory by way of the kernel: false where it cannot be written.
pub(super) fn put(at: u64, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    if is_steady(at, bytes.len()) {
        // SAFETY: mapped and writable by `is_steady`, in an arena that lives while a program does;
        // nothing of Rust lies there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        return true;
    }
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() };
    // SAFETY: `local` is `bytes`; the kernel checks `remote`, which holds nothing of Rust.
    let put = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
    put == bytes.len() as isize
}

/// A device's pages are not the kernel's to lend, but it copies from them for write(2).
fn get_device(at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0_u8; len as usize];
    // SAFETY: our own descriptors; the kernel reads the address or fails; `bytes` has the length.
    unsafe {
        let file = libc::memfd_create(c"look".as_ptr(), libc::MFD_CLOEXEC);
        let got = libc::pwrite(file, at as *const _, len as usize, 0);
        bytes.truncate(usize::try_from(got).unwrap_or(0));
        libc::pread(file, bytes.as_mut_ptr().cast(), bytes.len(), 0);
        libc::close(file);
    }
    bytes
}

/// Copies out of this process's memory by way of the kernel: as much as is there.
pub(super) fn get(at: u64, len: u64) -> Vec<u8> {
    if (DEVICE..DEVICE + SPACING).contains(&at) {
        return get_device(at, len);
    }
    let mut bytes = vec![0_u8; len as usize];
    if is_steady(at, bytes.len()) {
        // SAFETY: as in `put`, of which this is the other direction.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        return bytes;
    }
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() };
    // SAFETY: `local` is `bytes`; the kernel checks `remote`.
    let got = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    bytes
}
