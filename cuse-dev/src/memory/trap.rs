//! A userfaultfd of this process, which keeps mappings of files from showing other pages.
//!
//! A pinned page stays when its file is truncated or a hole is punched where it was; the file gets another
//! one there. The mapping by which the pinned page is reached would show that next. In a mapping
//! that is registered here it does not: the kernel takes the old page out of the mapping when the file
//! loses it, and every touch of a page that is not in the mapping is a SIGBUS then
//! ([`super::guarded`]), whether the file has one by now or not. The mapping gets pages just when
//! they are [put](Traps::put) there.
#![allow(unsafe_code)] // ioctls and their structures

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use engine::Errno;

use super::uffd;

/// `UFFD_FEATURE_*`: no events but SIGBUS, for both kinds of pages of files.
const FEATURES: u64 = MISSING_HUGETLBFS | MISSING_SHMEM | SIGBUS | MINOR_HUGETLBFS | MINOR_SHMEM;
const MISSING_HUGETLBFS: u64 = 1 << 4;
const MISSING_SHMEM: u64 = 1 << 5;
const SIGBUS: u64 = 1 << 7;
const MINOR_HUGETLBFS: u64 = 1 << 9;
const MINOR_SHMEM: u64 = 1 << 10;

/// `UFFDIO_REGISTER_MODE_MISSING` and `_MINOR`.
const MODE: u64 = 1 | 4;
/// `_IOWR(0xaa, 0x07, struct uffdio_continue)`: 32 bytes.
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;

/// The userfaultfd.
pub(crate) struct Traps(OwnedFd);

/// What stopped [`Traps::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The file has no page there.
    Hole,
    /// The mapping has that page already.
    Present,
    /// Anything else.
    Failed(Errno),
}

impl Traps {
    /// Fails where there is none, or none that can do this (before Linux 5.14).
    pub(crate) fn new() -> Result<Self, Errno> {
        // SAFETY: takes a number.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, uffd::FLAGS) };
        let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel just made it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        uffd::api(&fd, FEATURES)?;
        Ok(Self(fd))
    }

    /// From now on pages of the mapping `address..address + length`, none of which was touched, are
    /// there when they are put there.
    pub(super) fn set(&self, address: u64, length: u64) -> Result<(), Errno> {
        uffd::register(&self.0, address, length, MODE)
    }

    /// Puts the pages that the file has now into the mapping, from `address` on. Answers how many bytes
    /// were done, and what is wrong with the page after them, if that are not all.
    pub(super) fn put(&self, address: u64, length: u64) -> (u64, Option<Stop>) {
        let mut done = 0;
        while done < length {
            // `struct uffdio_continue`: range, mode, and what was mapped.
            let mut put = [address + done, length - done, 0, 0];
            // SAFETY: the command reads and writes 32 bytes. It makes pages of a mapping of ours present.
            let put_all = Errno::result(unsafe {
                libc::ioctl(self.0.as_raw_fd(), UFFDIO_CONTINUE as _, put.as_mut_ptr())
            });
            let stop = match put_all {
                Ok(_) => return (length, None),
                // Part of it, if any: what is wrong with the rest is told next time.
                Err(Errno::EAGAIN) if put[3].cast_signed() > 0 => {
                    done += put[3];
                    continue;
                }
                Err(Errno::EFAULT) => Stop::Hole,
                Err(Errno::EEXIST) => Stop::Present,
                Err(error) => Stop::Failed(error),
            };
            return (done, Some(stop));
        }
        (length, None)
    }
}
