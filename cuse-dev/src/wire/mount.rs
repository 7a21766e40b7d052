//! Brings a session up: a FUSE mount, or a CUSE character device.
#![allow(unsafe_code)] // The mount system calls that nix and libc have no wrapper for.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::channel::Channel;
use super::dispatch::MAX_WRITE;
use super::proto;
use super::request::{Op, Request};
use crate::wire::Errno;

/// What a FUSE mount's root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// A single regular file, which can be attached on top of any file.
    File {
        /// Permission bits.
        mode: u32,
    },
    /// A directory, whose files the handler looks up.
    Directory {
        /// Permission bits.
        mode: u32,
    },
}

/// A FUSE file system that is mounted nowhere, or where [`Mount::attach`] put it.
///
/// Files can be opened relative to [`Mount::as_fd`] without it being attached anywhere, once a
/// [`Server`](super::Server) answers.
#[derive(Debug)]
pub struct Mount {
    channel: Arc<Channel>,
    root: OwnedFd,
}

/// `FSCONFIG_*` of `<linux/mount.h>`.
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// Whose calls a mount's files take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every user's of the mount's user namespace, within the files' permission bits.
    Namespace,
    /// The mounting user's, in whatever user namespace.
    Mounter,
}

/// Makes a FUSE file system, open to every user within its files' permission bits. `subtype` is
/// what mount tables show after `fuse.`. `EPERM` without CAP_SYS_ADMIN in the user namespace,
/// `ENOENT` or `ENODEV` without FUSE in the kernel.
pub fn fuse(root: &Root, subtype: &str) -> Result<Mount, Errno> {
    fuse_for(Audience::Namespace, root, subtype)
}

/// Like [`fuse`], for `audience`.
pub fn fuse_for(audience: Audience, root: &Root, subtype: &str) -> Result<Mount, Errno> {
    let channel = Channel::open("/dev/fuse")?;
    // SAFETY: fsopen reads a zero-terminated name and returns a new descriptor.
    let context =
        unsafe { owned(libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), libc::FSOPEN_CLOEXEC))? };
    let mode = match *root {
        Root::File { mode } => libc::S_IFREG | mode & 0o7777,
        Root::Directory { mode } => libc::S_IFDIR | mode & 0o7777,
    };
    let subtype = CString::new(subtype).map_err(|_| Errno::EINVAL)?;
    let text = |value: String| CString::new(value).map_err(|_| Errno::EINVAL);
    let fd = text(channel.as_fd().as_raw_fd().to_string())?;
    let mode = text(format!("{mode:o}"))?;
    let (uid, gid) =
        (text(nix::unistd::getuid().to_string())?, text(nix::unistd::getgid().to_string())?);
    for (key, value) in [
        (c"source", subtype.as_c_str()),
        (c"subtype", &subtype),
        (c"fd", &fd),
        (c"rootmode", &mode),
        (c"user_id", &uid),
        (c"group_id", &gid),
    ] {
        configure(context.as_fd(), FSCONFIG_SET_STRING, Some(key), Some(value))?;
    }
    let all = (audience == Audience::Namespace).then_some(c"allow_other");
    for key in all.into_iter().chain([c"default_permissions"]) {
        configure(context.as_fd(), FSCONFIG_SET_FLAG, Some(key), None)?;
    }
    configure(context.as_fd(), FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: fsmount takes a descriptor and flags and returns a new descriptor.
    let root = unsafe {
        owned(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            libc::FSMOUNT_CLOEXEC,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        ))?
    };
    Ok(Mount { channel: Arc::new(channel), root })
}

impl Mount {
    /// A mount that another process made: its channel and its root.
    pub fn from_parts(channel: Channel, root: OwnedFd) -> Self {
        Self { channel: Arc::new(channel), root }
    }

    /// The session's first channel.
    pub fn channel(&self) -> Arc<Channel> {
        self.channel.clone()
    }

    /// Puts the root on top of `path`, which has to exist and be of the root's kind.
    pub fn attach(&self, path: &CStr) -> Result<(), Errno> {
        // SAFETY: both paths are zero-terminated and live as long as the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.root.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Errno::result(done).map(drop)
    }
}

impl AsFd for Mount {
    /// The root, as an `O_PATH` descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Takes the mount on top of `path` away. Open files of it stay.
pub fn detach(path: &CStr) -> Result<(), Errno> {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
}

/// Registers the character device `name`, which appears as `/dev/NAME`. `ENOENT` without CUSE in
/// the kernel, `EACCES` or `EPERM` without the right, `EINVAL` for a bad name. A name that is
/// taken shows as the session's end: the kernel refuses it after the reply.
pub fn cuse(name: &str) -> Result<Channel, Errno> {
    if name.is_empty() || name.len() > 200 || name.contains(['\0', '\n', '/']) {
        return Err(Errno::EINVAL);
    }
    let channel = Channel::open("/dev/cuse")?;
    let mut buffer = vec![0; proto::MIN_READ_BUFFER];
    let request = Request::parse(channel.read(&mut buffer)?).map_err(|_| Errno::EPROTO)?;
    let Op::CuseInit { major, minor, flags } = request.op else { return Err(Errno::EPROTO) };
    if major != proto::KERNEL_VERSION || minor < proto::KERNEL_MINOR_MIN {
        return Err(Errno::EPROTO);
    }
    let init = proto::CuseInitOut {
        major,
        minor: minor.min(proto::KERNEL_MINOR_VERSION),
        flags: flags & proto::CUSE_UNRESTRICTED_IOCTL,
        max_read: MAX_WRITE,
        max_write: MAX_WRITE,
        ..Default::default()
    };
    let info = format!("DEVNAME={name}\0");
    channel.send(request.header.unique, 0, &[init.as_bytes(), info.as_bytes()])?;
    Ok(channel)
}

fn configure(
    context: BorrowedFd<'_>,
    command: u32,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are null or zero-terminated, and live as long as the call.
    let done = unsafe {
        let (key, value) = (pointer(key), pointer(value));
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0)
    };
    Errno::result(done).map(drop)
}

/// # Safety
/// `result` is what a system call returned that makes a new descriptor.
unsafe fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the caller promises that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
