//! Brings the nodes up: a CUSE character device, or a FUSE file on top of a plain one.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{Errno, Node};

use super::daemon::Daemon;
use super::{Options, identify};
use crate::wire::Channel;
use crate::wire::mount::{self, Mount, Root};

/// By what a node is brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Front {
    /// A character device, through `/dev/cuse`.
    Cuse,
    /// A regular file, through `/dev/fuse`.
    Fuse,
    /// CUSE where the kernel has it, else FUSE.
    #[default]
    Auto,
}

/// Who has the node already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The kernel's iommufd, or another driver's device.
    Device,
    /// Another FUSE daemon, most likely softiommu.
    Served,
    /// Another CUSE daemon, most likely softiommu.
    ServedByCuse,
    /// A file that somebody keeps data in, or a directory.
    File,
}

/// Why a node does not come up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FrontError {
    #[error("{} {}", path.display(), taken.explain(path))]
    Taken { path: PathBuf, taken: Taken },
    #[error("the kernel has no CUSE (/dev/cuse: {0}): load the module `cuse`, or use --front fuse")]
    NoCuse(#[source] Errno),
    #[error(
        "the kernel has no FUSE, or keeps us from it (/dev/fuse: {0}): load the module `fuse`, and run as root"
    )]
    NoFuse(#[source] Errno),
    #[error("{}: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
}

impl Taken {
    fn explain(self, path: &Path) -> String {
        match self {
            Self::Device => {
                "is a device of the kernel (a real iommufd?). Unload its module, serve \
                             under another name (--name softiommu), or start single programs with \
                             `softiommu run`, which needs no node"
                    .into()
            }
            Self::Served => format!(
                "is served already by a FUSE daemon. Stop it, or take its mount away with \
                 `umount -l {}`",
                path.display()
            ),
            Self::ServedByCuse => "is served already by a CUSE daemon. Stop it, or serve under \
                                   another name (--name)"
                .into(),
            Self::File => "is no empty file; move it away".into(),
        }
    }
}

/// A node that is there.
pub(super) struct Up {
    pub(super) node: Node,
    path: PathBuf,
    by: By,
}

enum By {
    Cuse { channel: Arc<Channel>, number: (u32, u32) },
    Fuse { mount: Mount },
}

/// Brings every node up, or none.
pub(super) fn bring_up(options: &Options) -> Result<Vec<Up>, FrontError> {
    Front::nodes(options).into_iter().map(|(node, name)| up(options, node, &name)).collect()
}

fn up(options: &Options, node: Node, name: &str) -> Result<Up, FrontError> {
    let path = Path::new("/dev").join(name);
    let by = match options.front {
        Front::Cuse => cuse(options, name, &path)?,
        Front::Fuse => fuse(options, &path)?,
        Front::Auto => match cuse(options, name, &path) {
            Err(FrontError::NoCuse(error)) => {
                tracing::info!(%error, "no CUSE here: the node will be a FUSE file");
                fuse(options, &path)?
            }
            other => other?,
        },
    };
    Ok(Up { node, path, by })
}

/// What is at `path` already, once the remains of a killed daemon are gone. Nothing at all, or a
/// plain empty file, is free: answers whether a file is there.
fn clear(path: &Path) -> Result<bool, FrontError> {
    let taken = |taken| FrontError::Taken { path: path.into(), taken };
    let c_path = c_path(path)?;
    loop {
        match identify::answers(&c_path) {
            Err(Errno::ENOTCONN) => {
                // A FUSE mount whose daemon is gone.
                tracing::info!(path = %path.display(), "taking a dead daemon's mount away");
                mount::detach(&c_path).map_err(|error| failed(path, error.into()))?;
            }
            Err(Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(failed(path, error.into())),
            Ok(()) => break,
        }
    }
    let found = identify::at(&c_path).map_err(|error| failed(path, error.into()))?;
    match found.kind {
        libc::S_IFCHR if is_cuse(found.special) => Err(taken(Taken::ServedByCuse)),
        libc::S_IFCHR => Err(taken(Taken::Device)),
        libc::S_IFREG if is_fuse(path) => Err(taken(Taken::Served)),
        libc::S_IFREG if found.size == 0 => Ok(true),
        _ => Err(taken(Taken::File)),
    }
}

/// Whether a process serves the character device of this number.
fn is_cuse((major, minor): (u32, u32)) -> bool {
    fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"))
        .is_ok_and(|class| class.ends_with("cuse"))
}

fn is_fuse(path: &Path) -> bool {
    use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
    statfs(path).is_ok_and(|found| found.filesystem_type() == FUSE_SUPER_MAGIC)
}

fn cuse(options: &Options, name: &str, path: &Path) -> Result<By, FrontError> {
    // The kernel says nothing to a device that does not exist: ask first whether it can.
    Channel::open("/dev/cuse").map_err(FrontError::NoCuse)?;
    if clear(path)? {
        // An empty file that a FUSE front left would hide the device.
        fs::remove_file(path).map_err(|error| failed(path, error))?;
    }
    // The device model keeps a path's slash as an exclamation mark.
    let device = name.replace('/', "!");
    let channel = mount::cuse(&device).map_err(FrontError::NoCuse)?;
    let number = device_number(&device).map_err(|error| failed(path, error))?;
    if fs::symlink_metadata(path).is_ok() {
        let mode = fs::Permissions::from_mode(options.mode);
        fs::set_permissions(path, mode).map_err(|error| failed(path, error))?;
        std::os::unix::fs::chown(path, Some(0), Some(options.group))
            .map_err(|error| failed(path, error))?;
    }
    Ok(By::Cuse { channel: Arc::new(channel), number })
}

/// The number that the kernel gave to the CUSE device.
fn device_number(name: &str) -> io::Result<(u32, u32)> {
    let text = fs::read_to_string(format!("/sys/class/cuse/{name}/dev"))?;
    let numbers = text.trim().split_once(':');
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn fuse(options: &Options, path: &Path) -> Result<By, FrontError> {
    /// How often the remains of a killed daemon may go, by the hand of whoever minds them, between
    /// our look at them and our use of them.
    const TURNS: usize = 5;
    let mount =
        mount::fuse(&Root::File { mode: options.mode }, "softiommu").map_err(FrontError::NoFuse)?;
    let mut turn = 0;
    loop {
        match attach(&mount, path) {
            Ok(()) => return Ok(By::Fuse { mount }),
            Err(FrontError::Path { source, .. }) if is_raced(&source) && turn < TURNS => turn += 1,
            Err(error) => return Err(error),
        }
    }
}

fn is_raced(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST | libc::EINVAL))
}

/// Puts the mount on the file at `path`, which is made unless it is there.
fn attach(mount: &Mount, path: &Path) -> Result<(), FrontError> {
    let there = clear(path)?;
    if !there {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(path, error))?;
        }
        // Nobody opens it while nothing is on top of it.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(path)
            .map_err(|error| failed(path, error))?;
    }
    let attached = c_path(path)
        .and_then(|name| mount.attach(&name).map_err(|error| failed(path, error.into())));
    if attached.is_err() && !there {
        let _ = fs::remove_file(path);
    }
    attached
}

fn failed(path: &Path, source: io::Error) -> FrontError {
    FrontError::Path { path: path.into(), source }
}

fn c_path(path: &Path) -> Result<CString, FrontError> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| failed(path, io::ErrorKind::InvalidInput.into()))
}

impl Up {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn channel(&self) -> Arc<Channel> {
        match &self.by {
            By::Cuse { channel, .. } => channel.clone(),
            By::Fuse { mount } => mount.channel(),
        }
    }

    /// Tells the daemon how to recognise descriptors of this node.
    pub(super) fn announce(&self, daemon: &Daemon) -> Result<(), Errno> {
        match &self.by {
            By::Cuse { number, .. } => daemon.add_device(*number),
            By::Fuse { mount } => daemon.add_mount(mount.as_fd())?,
        }
        Ok(())
    }

    /// What is to be taken away when the daemon is gone, a path and the device number of what is
    /// mounted there: nothing for CUSE, whose device the kernel removes.
    pub(super) fn remains(&self) -> Option<(CString, (u32, u32))> {
        match &self.by {
            By::Cuse { .. } => None,
            By::Fuse { mount } => {
                Some((c_path(&self.path).ok()?, identify::of(mount.as_fd()).ok()?.device))
            }
        }
    }
}
