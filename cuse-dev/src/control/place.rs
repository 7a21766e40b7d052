//! Where control sockets are.
//!
//! A directory of the user's own, readable by nobody else, with a socket for each daemon, named by
//! the process that was started: `$XDG_RUNTIME_DIR/softiommu/PID.sock`, or under `/run` for root, or
//! in `/tmp/softiommu-UID` for a user who has neither.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// The directory, which may not exist.
pub fn directory() -> PathBuf {
    let user = Uid::effective();
    let given = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    match given.map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(runtime) => runtime.join("softiommu"),
        None if user.is_root() => "/run/softiommu".into(),
        None => format!("/tmp/softiommu-{user}").into(),
    }
}

/// Where the daemon that was started as `pid` listens, unless it was told otherwise. Makes the
/// directory, and takes away what dead daemons left in it.
///
/// Fails where the directory cannot be had, or others may write to it.
pub fn socket_of(pid: u32) -> io::Result<PathBuf> {
    let directory = directory();
    match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In /tmp somebody else may have been there first.
    let found = std::fs::symlink_metadata(&directory)?;
    let ours = found.is_dir() && found.uid() == Uid::effective().as_raw();
    if !ours || found.mode() & 0o077 != 0 {
        let what = format!("{} is not a directory of this user alone", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    for (owner, path) in sockets(&directory) {
        if owner != pid && !Path::new(&format!("/proc/{owner}")).exists() {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(directory.join(format!("{pid}.sock")))
}

/// The sockets in `directory`, with the processes that they are named by, in their order.
pub fn sockets(directory: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let named = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let pid = name.to_str()?.strip_suffix(".sock")?.parse().ok()?;
        Some((pid, entry.path()))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(named).collect();
    found.sort();
    found
}
