//! One descriptor of a session: reads requests, writes replies.
#![allow(unsafe_code)] // One ioctl that nix has no wrapper for.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::IntoBytes;

use super::proto;
use super::reply::Reply;
use crate::wire::Errno;

/// The descriptor of `/dev/fuse` or `/dev/cuse`.
#[derive(Debug)]
pub struct Channel {
    device: File,
}

impl Channel {
    /// Opens `/dev/fuse` or `/dev/cuse`. It speaks once it is mounted, or registered.
    pub fn open(path: &str) -> Result<Self, Errno> {
        let device = OpenOptions::new().read(true).write(true).open(path).map_err(errno)?;
        Ok(Self { device })
    }

    /// A descriptor that is a channel already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { device: fd.into() }
    }

    /// Another descriptor of the same session, with a queue of its own for requests that were
    /// read and not yet answered. `EINVAL` before the session is mounted, and for CUSE.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        let clone = Self::open("/dev/fuse")?;
        let this = self.device.as_raw_fd() as u32;
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32 behind the pointer, which lives that long.
        let done =
            unsafe { libc::ioctl(clone.device.as_raw_fd(), proto::DEV_IOC_CLONE, &raw const this) };
        Errno::result(done)?;
        Ok(clone)
    }

    /// The next request's bytes; waits for one. `ENODEV` when the session is over.
    /// `EINTR`, `EAGAIN` and `ENOENT` (the request went away as it was read) mean: ask again.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let length = (&self.device).read(buffer).map_err(errno)?;
        Ok(&buffer[..length])
    }

    /// Whether [`Channel::read`] would return at once.
    pub(super) fn has_request(&self) -> bool {
        let mut asked = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut asked, PollTimeout::ZERO) != Ok(0)
    }

    /// The right to answer request `unique`, which was read from this channel.
    pub fn reply(self: &Arc<Self>, unique: u64) -> Reply {
        Reply::new(self.clone(), unique)
    }

    /// Tells the kernel that a polled file may be ready: `kh` from the POLL request.
    /// `ENOENT` when nobody polls it any more.
    pub fn notify_poll(&self, kh: u64) -> Result<(), Errno> {
        let body = proto::NotifyPollOut { kh };
        self.send(0, proto::NOTIFY_POLL, &[body.as_bytes()])
    }

    /// Writes one message. `ENOENT` when the request is not there any more.
    pub(super) fn send(&self, unique: u64, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        /// The kernel takes hold of the pages of each part by itself, which costs more than to copy so
        /// many bytes once.
        const SMALL: usize = 128;
        let body: usize = parts.iter().map(|part| part.len()).sum();
        let length = size_of::<proto::OutHeader>() + body;
        let len = u32::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
        let header = proto::OutHeader { len, error, unique };
        if length <= SMALL {
            let mut message = [0; SMALL];
            let mut at = 0;
            for part in std::iter::once(&header.as_bytes()).chain(parts) {
                message[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            (&self.device).write(&message[..length]).map_err(errno)?;
            return Ok(());
        }
        let mut slices = [IoSlice::new(&[]); 4];
        slices[0] = IoSlice::new(header.as_bytes());
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        debug_assert!(parts.len() < slices.len());
        (&self.device).write_vectored(&slices[..=parts.len()]).map_err(errno)?;
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// The number behind an I/O error; `EIO` where there is none.
pub(super) fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
