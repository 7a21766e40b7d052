//! What a caller's descriptor names, without asking whoever serves that file.
//!
//! A caller hands us any descriptor it likes, one of a FUSE file system of its own among them. A
//! plain `fstat` of that waits for the caller's server, and would hold a thread of ours for as
//! long as it likes.
#![allow(unsafe_code)] // statx of a descriptor, and an ioctl of our own.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use engine::Errno;

use crate::event_files::FileId;

/// The ioctl by which the daemon asks its own node for the context behind a descriptor. Only the
/// daemon's own threads are answered. `_IO(';', 0x7f)`: no command of iommufd or VFIO.
pub(super) const WHICH: u32 = 0x3b7f;

/// What the kernel knows of a file without asking anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The file system's device number: major, minor.
    pub(crate) device: (u32, u32),
    /// The inode's number there.
    pub(crate) inode: u64,
    /// For a device node: the number of what it names.
    pub(crate) special: (u32, u32),
    /// The file's type, the `S_IFMT` bits.
    pub(crate) kind: u32,
    /// Bytes, as far as they are known.
    pub(crate) size: u64,
}

impl Shown {
    /// Which file it is.
    pub(super) fn id(&self) -> FileId {
        FileId { device: self.device, inode: self.inode }
    }
}

/// What `file` is.
pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Shown, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    statx(file.as_raw_fd(), c"", flags)
}

/// What is at `path`, symbolic links not followed.
pub(super) fn at(path: &CStr) -> Result<Shown, Errno> {
    statx(libc::AT_FDCWD, path, libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_DONT_SYNC)
}

/// Asks whoever serves `path` whether it is there. `ENOTCONN` for a FUSE mount whose daemon is
/// gone.
pub(super) fn answers(path: &CStr) -> Result<(), Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC;
    statx(libc::AT_FDCWD, path, flags).map(drop)
}

fn statx(directory: i32, path: &CStr, flags: i32) -> Result<Shown, Errno> {
    // SAFETY: all zeroes is a valid `statx`, which the kernel fills; the path ends in a zero.
    let shown = unsafe {
        let mut shown: libc::statx = std::mem::zeroed();
        let mask = libc::STATX_BASIC_STATS;
        Errno::result(libc::statx(directory, path.as_ptr(), flags, mask, &mut shown))?;
        shown
    };
    Ok(Shown {
        device: (shown.stx_dev_major, shown.stx_dev_minor),
        inode: shown.stx_ino,
        special: (shown.stx_rdev_major, shown.stx_rdev_minor),
        kind: u32::from(shown.stx_mode) & libc::S_IFMT,
        size: shown.stx_size,
    })
}

/// Whether `file` belongs to a file system whose server a user may be. The mount table tells
/// without asking the server. A mount that is not in it is another namespace's: FUSE answers
/// `fstatfs` of such a one itself, since we are none of its users.
pub(super) fn is_remote(file: BorrowedFd<'_>) -> bool {
    let number = file.as_raw_fd();
    let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else {
        return true;
    };
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let Some(mount) = mount else { return true };
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return true };
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount));
    match line.and_then(|line| line.split_once(" - ")) {
        Some((_, kind)) => is_remote_kind(kind.split(' ').next().unwrap_or_default()),
        // A mount of another namespace, or the kernel's own, such as memfd's.
        None => nix::sys::statfs::fstatfs(file)
            .is_ok_and(|shown| shown.filesystem_type() == nix::sys::statfs::FUSE_SUPER_MAGIC),
    }
}

fn is_remote_kind(kind: &str) -> bool {
    kind.starts_with("fuse") || ["9p", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs"].contains(&kind)
}

/// The context behind `file`, which is an open of our own node. Waits for the daemon's reader:
/// never to be called by it.
pub(super) fn context(file: BorrowedFd<'_>) -> Option<u64> {
    let mut context = 0_u64;
    // SAFETY: the node's server, this process, writes 8 bytes behind the pointer.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), WHICH as _, &raw mut context) };
    (done == 0).then_some(context)
}
