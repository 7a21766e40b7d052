//! Memfds that are given to callers, and whether a caller still has one open.
#![allow(unsafe_code)] // Leases are raw fcntls.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use engine::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use crate::event_files::FileId;

/// A memfd of which callers get open files of their own.
#[derive(Debug)]
pub(crate) struct SharedMemfd {
    file: File,
    id: FileId,
}

impl SharedMemfd {
    /// An empty one. The name shows in callers' `/proc/PID/fd` and `maps`.
    pub(crate) fn new(name: &CStr) -> Result<Self, Errno> {
        // What memfd_create opens is not counted among the inode's writers, which would confuse
        // `is_open`. A second open is.
        Self::of(&memfd_create(name, MFdFlags::MFD_CLOEXEC)?)
    }

    /// One that stays empty.
    pub(crate) fn sealed(name: &CStr) -> Result<Self, Errno> {
        let first = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&first, FcntlArg::F_ADD_SEALS(seals))?;
        Self::of(&first)
    }

    fn of(first: &OwnedFd) -> Result<Self, Errno> {
        let file = File::from(reopen(first, OFlag::O_RDWR)?);
        let id = FileId::of(file.as_fd())?;
        Ok(Self { file, id })
    }

    /// Its inode's number, which no other memfd of this machine has meanwhile.
    pub(crate) fn inode(&self) -> u64 {
        self.id.inode
    }

    /// The device that all memfds are on.
    pub(crate) fn device(&self) -> (u32, u32) {
        self.id.device
    }

    /// Our own open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// An open file for a caller, with the access mode and `O_NONBLOCK` of `flags`.
    pub(crate) fn open(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        reopen(&self.file, flags & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK))
    }

    /// Whether there is any open file of it but our own: only then the kernel refuses a write
    /// lease.
    pub(crate) fn is_open(&self) -> bool {
        // SAFETY: no pointers.
        let lease =
            |kind: i32| unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) };
        if lease(libc::F_WRLCK) != 0 {
            return true;
        }
        lease(libc::F_UNLCK);
        false
    }
}

fn reopen(fd: &impl AsFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_open_as_long_as_somebody_has_it() {
        let memfd = SharedMemfd::new(c"test").unwrap();
        assert!(!memfd.is_open());
        for flags in [OFlag::O_RDONLY, OFlag::O_WRONLY, OFlag::O_RDWR] {
            let given = memfd.open(flags).unwrap();
            let dup = given.try_clone().unwrap();
            assert!(memfd.is_open());
            drop(given);
            assert!(memfd.is_open());
            drop(dup);
            assert!(!memfd.is_open());
        }
    }

    #[test]
    fn a_sealed_one_takes_nothing() {
        let memfd = SharedMemfd::sealed(c"test").unwrap();
        let given = memfd.open(OFlag::O_RDWR).unwrap();
        assert_eq!(nix::unistd::write(&given, b"x"), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&given, 4096), Err(Errno::EPERM));
        assert!(memfd.is_open());
        drop(given);
        assert!(!memfd.is_open());
    }
}
