//! Tells whoever started the daemon that the node is there: the service manager by sd_notify, a
//! shell by the end of the process that it started.
#![allow(unsafe_code)] // fork, while there is one thread.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use engine::Errno;
use nix::unistd::{ForkResult, fork, pipe2, read, setsid, write};

/// To be told when the daemon serves.
pub(super) struct Ready(Option<OwnedFd>);

impl Ready {
    /// Without `foreground`, and without a service manager that waits for word, goes to the
    /// background: the process that was started ends once the child is ready, or has failed.
    pub(super) fn new(foreground: bool) -> Result<Self, Errno> {
        if foreground || std::env::var_os("NOTIFY_SOCKET").is_some() {
            return Ok(Self(None));
        }
        let (word, ours) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => {
                drop(ours);
                let status = match read(&word, &mut [0]) {
                    Ok(1) => 0,
                    // It said why on standard error.
                    _ => 1,
                };
                std::process::exit(status)
            }
            ForkResult::Child => {
                setsid()?;
                Ok(Self(Some(ours)))
            }
        }
    }

    /// The node is there.
    pub(super) fn tell(&self) {
        notify("READY=1");
        if let Some(word) = &self.0 {
            let _ = write(word, &[1]);
        }
    }
}

/// The daemon ends.
pub(super) fn stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent: io::Result<usize> = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
