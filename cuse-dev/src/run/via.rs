//! The node of a `softiommu serve` in place of an engine of our own: `softiommu run --via NODE`.
//!
//! An open of `/dev/iommu` gets an open file of the node, and its ioctls go to the daemon without
//! us. We answer what CUSE and FUSE do not bring there: mmap, reads and writes of no bytes, faults to
//! be injected and `VmPin`; the daemon tells us how ([`crate::assist`]).
//!
//! An mmap cannot be answered in the caller's name, nor can its arguments be changed. So its thread
//! is stopped on its way out of the call and made to map the memory that the daemon gave us.
#![allow(unsafe_code)] // ioctls of the daemon's own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use engine::Errno;
use engine::account::Totals;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use parking_lot::Mutex;

use super::arch::AUDIT_ARCH;
use super::notify::{Listener, Notification};
use crate::assist::{
    FAULT, Fault, HELLO, Hello, MAP, Map, PINS, Pins, READ_NOTHING, VERSION, WRITE_NOTHING,
};
use crate::caller::sys;
use crate::inject::{Tracee, Tracer};
use crate::serve::identify::{self, Shown};

/// The daemon's node.
pub(crate) struct Node {
    path: std::path::PathBuf,
    /// An open file of it, for what is about no context.
    file: OwnedFd,
    shown: Shown,
    /// The device of the daemon's event files.
    events: (u32, u32),
}

/// Why a node cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum NoNode {
    #[error("{0}: {1}")]
    Open(std::path::PathBuf, Errno),
    #[error("{0} is not served by softiommu (`softiommu serve`)")]
    Foreign(std::path::PathBuf),
    #[error("{0} is served by another version of softiommu")]
    Version(std::path::PathBuf),
}

impl Node {
    /// Opens it, and asks who serves it.
    pub(crate) fn open(path: &Path) -> Result<Self, NoNode> {
        let failed = |error| NoNode::Open(path.into(), error);
        let file = open(path, OFlag::O_RDWR).map_err(failed)?;
        let mut hello = Hello::default();
        match ask(file.as_fd(), HELLO, &mut hello) {
            Err(Errno::ENOTTY | Errno::EINVAL | Errno::ENOSYS) => {
                return Err(NoNode::Foreign(path.into()));
            }
            other => other.map_err(failed)?,
        };
        if hello.version != VERSION {
            return Err(NoNode::Version(path.into()));
        }
        let shown = identify::of(file.as_fd()).map_err(failed)?;
        let events = (hello.event_major, hello.event_minor);
        Ok(Self { path: path.into(), file, shown, events })
    }

    /// An open file for the program.
    pub(crate) fn open_for(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        open(&self.path, flags & (OFlag::O_ACCMODE | OFlag::O_NONBLOCK))
    }

    /// Whether `file` is an open file of the node, by whatever path.
    pub(crate) fn is_open_of(&self, file: BorrowedFd<'_>) -> bool {
        identify::of(file).is_ok_and(|file| {
            file.kind == self.shown.kind
                && match file.kind {
                    // One number, in whatever directory its node is.
                    libc::S_IFCHR => file.special == self.shown.special,
                    // The mount's root is all that there is.
                    _ => file.device == self.shown.device,
                }
        })
    }

    /// Whether `file` is an event file of the daemon.
    pub(crate) fn is_event(&self, file: BorrowedFd<'_>) -> bool {
        identify::of(file).is_ok_and(|file| file.device == self.events)
    }

    /// What is pinned of the process `pid`, and whether the kernel's `VmPin` counts it, too.
    pub(crate) fn pins(&self, pid: u32) -> Result<(Totals, bool), Errno> {
        let process = sys::pidfd_open(pid)?;
        let mut pins = Pins { process: process.as_raw_fd(), ..Pins::default() };
        ask(self.file.as_fd(), PINS, &mut pins)?;
        Ok((Totals { pinned: pins.pinned, locked: pins.locked }, pins.shown != 0))
    }
}

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

fn ask<T>(file: BorrowedFd<'_>, command: u32, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the daemon reads and writes the struct that the command has.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command.into(), argument) })
}

/// The next call of the thread `tid` on `context`, an open file of the node, counts fault sites down in
/// `count`.
pub(crate) fn arm(context: BorrowedFd<'_>, tid: u32, count: &File) -> Result<(), Errno> {
    let thread = sys::pidfd_open_thread(tid).or_else(|_| sys::pidfd_open(tid))?;
    let mut fault = Fault { thread: thread.as_raw_fd(), count: count.as_raw_fd() };
    ask(context, FAULT, &mut fault).map(drop)
}

/// A read, or a write, of no bytes of an event file.
pub(crate) fn transfer_nothing(file: BorrowedFd<'_>, write: bool) -> Result<i64, Errno> {
    let command = if write { WRITE_NOTHING } else { READ_NOTHING };
    ask(file, command, &mut [0_u8; 0]).map(i64::from)
}

/// How an mmap was answered.
pub(crate) enum Mapped {
    /// It was not: this is to be its result.
    Answer(Errno),
    /// By the thread itself.
    Done,
}

/// Answers the mmap `call` of `context`, an open file of the node.
pub(crate) fn mmap(
    listener: &Arc<Listener>,
    call: &Notification,
    context: BorrowedFd<'_>,
    offset: u64,
) -> Mapped {
    let [address, length, protection, flags, ..] = call.args;
    let mut map = Map { offset, length, protection: protection as u32, flags: flags as u32 };
    let memory = match ask(context, MAP, &mut map) {
        // SAFETY: the daemon put this descriptor into our table for this call.
        Ok(number) => unsafe { OwnedFd::from_raw_fd(number) },
        Err(error) => return Mapped::Answer(error),
    };
    if call.arch != AUDIT_ARCH {
        return Mapped::Answer(Errno::ENODEV);
    }
    let Some(tracer) = Tracer::new() else { return Mapped::Answer(Errno::ENOMEM) };
    // Set once the thread has left its call, which we cannot answer from then on.
    let gone = Arc::new(Mutex::new(false));
    let (left, listener, call) = (gone.clone(), listener.clone(), *call);
    let mapped = tracer.run(move || {
        let mut number = None;
        let mut tracee = Tracee::stop_waiting(call.tid, || {
            number = Some(listener.add(&call, memory.as_fd(), true)?);
            // Or the memory would still be in use after the caller's own munmap.
            drop(memory);
            listener.let_go(&call)?;
            *left.lock() = true;
            Ok(())
        })?;
        let number = number.ok_or(Errno::ESRCH)? as u64;
        tracee.begin()?;
        let mapped = tracee.call(libc::SYS_mmap, [address, length, protection, flags, number, 0]);
        tracee.call(libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
        tracee.set_result(mapped.map_or_else(|error| -i64::from(error as i32), |at| at as i64))?;
        tracee.detach()
    });
    match mapped.unwrap_or(Err(Errno::ENOMEM)) {
        Ok(()) => Mapped::Done,
        Err(error) if *gone.lock() => {
            tracing::warn!(tid = call.tid, %error, "an mmap of the iommufd could not be made");
            Mapped::Done
        }
        Err(Errno::EPERM) => {
            super::tell(
                "cannot map the iommufd in a thread that another process traces: `softiommu run` \
                 without --via can",
            );
            Mapped::Answer(Errno::EPERM)
        }
        Err(error) => Mapped::Answer(error),
    }
}
