//! Takes a FUSE node and the control socket away after the daemon, however that ends.
//!
//! The daemon gives up the rights to unmount and to remove files. A child that keeps it does nothing but wait for the
//! daemon's end: it holds one end of a pipe whose other end only the daemon has. It reads no byte
//! that anyone else could have written.
#![allow(unsafe_code)] // fork, while there is one thread.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use engine::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, read};

use super::front::Up;
use super::identify;
use crate::control::Server;
use crate::wire::mount;

/// The child, if one is needed.
pub(super) struct Janitor(Option<(Pid, OwnedFd)>);

/// Starts it for the nodes that leave something behind and the control socket. To be called with one thread.
pub(super) fn start(fronts: &mut Vec<Up>, control: &mut Option<Server>) -> Result<Janitor, Errno> {
    let socket = control.as_ref().map(|server| server.path().to_owned());
    let socket = socket.and_then(|path| Some((inode(&path)?, path)));
    let remains: Vec<_> = fronts.iter().filter_map(Up::remains).collect();
    if remains.is_empty() && socket.is_none() {
        return Ok(Janitor(None));
    }
    let (life, ours) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child may do what it likes.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Janitor(Some((child, ours)))),
        ForkResult::Child => {
            drop(ours);
            // With them in another process the session would outlive the daemon.
            drop((std::mem::take(fronts), control.take()));
            // What ends the daemon's group must not end its janitor first.
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            close_standard_files();
            while !matches!(read(&life, &mut [0]), Ok(0)) {}
            for (path, device) in remains {
                tidy(&path, device);
            }
            if let Some((ours, path)) = socket
                && inode(&path) == Some(ours)
            {
                let _ = nix::unistd::unlink(&path);
            }
            // SAFETY: the child of a fork ends without what its parent registered for exit.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Takes our mount away, and the file under it if nobody made something of that.
fn tidy(path: &CStr, device: (u32, u32)) {
    let ours = identify::at(path).is_ok_and(|found| found.device == device);
    if ours && mount::detach(path).is_ok() {
        let empty =
            identify::at(path).is_ok_and(|found| found.kind == libc::S_IFREG && found.size == 0);
        if empty {
            let _ = nix::unistd::unlink(path);
        }
    }
}

/// Device and inode: another daemon's socket has others.
fn inode(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A pipe to whoever started the daemon must not stay open for its sake.
fn close_standard_files() {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}

impl Janitor {
    /// Lets it work, and waits until it is done. The session's channels are gone by now.
    pub(super) fn finish(self) {
        if let Some((child, life)) = self.0 {
            drop(life);
            let _ = waitpid(child, None);
        }
    }
}
