//! Starts the program under the filter, as a child of the supervisor.
#![allow(unsafe_code)] // fork and exec.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::unistd::{ForkResult, Pid, fork};

use super::filter;

/// What the program gets from whoever called us, as we found it at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    /// The signals that were blocked.
    pub(crate) mask: SigSet,
    /// Whether `SIGPIPE` was ignored.
    pub(crate) ignores_pipe: bool,
}

/// The program as it was started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its process.
    pub(crate) pid: Pid,
    /// Where its calls come from.
    pub(crate) listener: OwnedFd,
    /// Tells whether exec worked.
    pub(crate) status: OwnedFd,
}

/// Which step of the child failed, as its first byte on the status socket.
const FILTER: u8 = 1;
const EXEC: u8 = 2;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("cannot run {0:?}: {1}")]
    Exec(OsString, io::Error),
    #[error("the program is already under `softiommu run` or another seccomp supervisor")]
    Supervised,
    #[error("cannot install the seccomp filter (Linux 5.19 or later is needed): {0}")]
    Filter(io::Error),
    #[error("cannot start the program: {0}")]
    Start(#[from] io::Error),
}

impl LaunchError {
    /// The exit status that a shell would answer.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Exec(_, error) if error.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec(..) => 126,
            _ => 125,
        }
    }
}

fn c_string(argument: &OsString) -> io::Result<CString> {
    CString::new(argument.clone().into_vec())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an argument has a zero byte"))
}

/// Forks the program and installs its filter. It waits for nobody: its calls queue up in the
/// listener until they are answered.
///
/// To be called while the process has one thread.
pub(crate) fn launch(command: &[OsString], inherited: Inherited) -> Result<Launched, LaunchError> {
    let arguments = command.iter().map(c_string).collect::<io::Result<Vec<_>>>()?;
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let program = filter::program();
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
    // SAFETY: this process has one thread, so no lock is held that the child could wait for.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => {
            drop(theirs);
            finish(child, ours, &command[0])
        }
        ForkResult::Child => {
            let step = child(&theirs, &program, &pointers, inherited);
            let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            let mut message = [step, 0, 0, 0, 0];
            message[1..].copy_from_slice(&error.to_ne_bytes());
            // SAFETY: writes five bytes of `message`, and ends the process without running
            // anything of the parent's.
            unsafe {
                libc::write(theirs.as_raw_fd(), message.as_ptr().cast(), message.len());
                libc::_exit(127)
            }
        }
    }
}

/// The child's part. Answers which step failed; errno says why.
fn child(
    socket: &OwnedFd,
    program: &[libc::sock_filter],
    arguments: &[*const libc::c_char],
    inherited: Inherited,
) -> u8 {
    let Ok(listener) = filter::install(program) else { return FILTER };
    if send_descriptor(socket, &listener).is_err() {
        return FILTER;
    }
    let pipe = if inherited.ignores_pipe { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: neither disposition is a function of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, pipe) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&inherited.mask), None);
    // SAFETY: the pointers are to strings that live in the caller's frame, and end with null.
    unsafe { libc::execvp(arguments[0], arguments.as_ptr()) };
    EXEC
}

fn send_descriptor(socket: &OwnedFd, descriptor: &OwnedFd) -> nix::Result<()> {
    let fds: [RawFd; 1] = [descriptor.as_raw_fd()];
    let payload = [io::IoSlice::new(&[0])];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &payload, &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Waits for the child's listener.
fn finish(pid: Pid, socket: OwnedFd, name: &OsString) -> Result<Launched, LaunchError> {
    match receive(&socket)? {
        Message::Listener(listener) => Ok(Launched { pid, listener, status: socket }),
        Message::Failed(step, error) => Err(failure(step, error, name)),
        Message::End => Err(io::Error::other("it ended before it began").into()),
    }
}

/// Waits until a launched program has passed exec, which takes somebody who answers its calls.
pub(crate) fn started(status: &OwnedFd, name: &OsString) -> Result<(), LaunchError> {
    match receive(status)? {
        Message::Failed(step, error) => Err(failure(step, error, name)),
        // The socket is closed by exec.
        _ => Ok(()),
    }
}

fn failure(step: u8, error: io::Error, name: &OsString) -> LaunchError {
    match (step, error.raw_os_error()) {
        (FILTER, Some(libc::EBUSY)) => LaunchError::Supervised,
        (FILTER, _) => LaunchError::Filter(error),
        _ => LaunchError::Exec(name.clone(), error),
    }
}

enum Message {
    Listener(OwnedFd),
    Failed(u8, io::Error),
    End,
}

fn receive(socket: &OwnedFd) -> io::Result<Message> {
    let mut bytes = [0; 5];
    let mut space = nix::cmsg_space!(RawFd);
    loop {
        let mut payload = [io::IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut payload,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        let received = match received {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let length = received.bytes;
        let fd = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        return Ok(match fd {
            // SAFETY: the kernel made this descriptor for us with this message.
            Some(fd) => Message::Listener(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }),
            None if length == bytes.len() => {
                let error = i32::from_ne_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
                Message::Failed(bytes[0], io::Error::from_raw_os_error(error))
            }
            None => Message::End,
        });
    }
}
