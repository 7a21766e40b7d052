//! The engine's files as descriptors: fault queues, event queues, accesses, dma-bufs.
//!
//! They are files of a private FUSE mount that is attached nowhere. Whoever delivers descriptors
//! opens one by its number ([`EventFiles::open`]) and gives the open file away; from then on the
//! kernel brings the caller's reads, writes, polls and its last close to us ([`serve`]).
//!
//! What is closed before a call is released before it: [`order`].
#![allow(unsafe_code)] // statx has no safe wrapper that asks without a round trip.

mod namespace;
mod order;
mod serve;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use engine::Errno;
use engine::file::EngineFile;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::wire::mount::{self, Mount, Root};
use crate::wire::{Options, Server};
use serve::Files;

/// Which file a descriptor names: the device of its file system and its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    /// Asks the kernel without a round trip to whoever serves the file.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        statx(fd, libc::AT_STATX_DONT_SYNC)
    }
}

fn statx(fd: BorrowedFd<'_>, sync: libc::c_int) -> Result<FileId, Errno> {
    // SAFETY: all zeroes is a valid `statx`; the kernel fills it in. The path is empty.
    unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let flags = libc::AT_EMPTY_PATH | sync;
        let path = c"".as_ptr();
        Errno::result(libc::statx(fd.as_raw_fd(), path, flags, libc::STATX_INO, &mut stat))?;
        Ok(FileId { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino })
    }
}

const ROOT: Root = Root::Directory { mode: 0o700 };

/// Why there is no mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMount {
    /// `/dev/fuse` cannot be opened, or not be mounted.
    #[error("FUSE cannot be had: {0} (may this user open /dev/fuse?)")]
    Fuse(Errno),
    /// This process may not mount, and a user namespace in which it may cannot be had.
    #[error(
        "mounting FUSE takes CAP_SYS_ADMIN or a user namespace, and there is none: {0} (see \
         sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns)"
    )]
    Namespace(Errno),
}

/// The mount, its server and its files.
pub struct EventFiles {
    files: Arc<Files>,
    mount: Mount,
    device: (u32, u32),
    /// Ends with the mount.
    _server: Server,
}

impl EventFiles {
    /// Makes the mount; where this process may not mount, in a user namespace. To be called while
    /// this process has one thread.
    pub fn new() -> Result<Self, NoMount> {
        Self::over(Self::mount_somehow()?).map_err(NoMount::Fuse)
    }

    /// The mount alone, as [`EventFiles::new`] makes it.
    pub(crate) fn mount_somehow() -> Result<Mount, NoMount> {
        match Self::mount() {
            // EACCES is /dev/fuse's own answer: no namespace changes that.
            Err(Errno::EPERM) => namespace::mount(),
            other => other.map_err(NoMount::Fuse),
        }
    }

    /// The mount alone, which takes CAP_SYS_ADMIN, for [`EventFiles::over`].
    pub fn mount() -> Result<Mount, Errno> {
        mount::fuse(&ROOT, "softiommu")
    }

    /// Serves the files over a mount that [`EventFiles::mount`] made. Starts threads, which take
    /// over the calling thread's rights.
    pub fn over(mount: Mount) -> Result<Self, Errno> {
        let channel = mount.channel();
        let files = Files::new(channel.clone())?;
        let options = Options { name: "events", ..Options::default() };
        let server = Server::start(channel, files.clone(), options)?;
        let device = FileId::of(mount.as_fd())?.device;
        Ok(Self { files, mount, device, _server: server })
    }

    /// An open file for `file`, to be given away. Its last close releases `file`; so does an
    /// error here. [`EventFiles::settle`] knows it by its `owner`.
    pub fn open(&self, owner: u64, file: Arc<dyn EngineFile>) -> Result<OwnedFd, Errno> {
        let mode = if file.writable() { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let added = self.files.add(file);
        let (node, name) = (added.node(), added.node().to_string());
        let fd =
            nix::fcntl::openat(&self.mount, name.as_str(), mode | OFlag::O_CLOEXEC, Mode::empty())?;
        added.opened();
        self.files.order.watch(owner, node, fd.as_fd());
        Ok(fd)
    }

    /// Releases the file behind `given`, which [`EventFiles::open`] answered and nobody got,
    /// without waiting for its close to come round.
    pub fn revoke(&self, given: OwnedFd) {
        if let Ok(id) = FileId::of(given.as_fd())
            && self.owns(id)
        {
            self.files.release_node(id.inode);
        }
    }

    /// The file that `id` names, if it is one of these.
    pub fn find(&self, id: FileId) -> Option<Arc<dyn EngineFile>> {
        if id.device == self.device { self.files.find(id.inode) } else { None }
    }

    /// The device of the mount.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Whether `id` names one of these.
    pub fn owns(&self, id: FileId) -> bool {
        id.device == self.device
    }

    /// What was closed for the last time of `owner`'s files before now is released when this
    /// returns. A front end calls it before it answers an ioctl.
    pub fn settle(&self, owner: u64) {
        self.files.order.settle(owner);
    }

    /// How many files callers have open.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether no caller has one open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
