//! Replies. A request that its handler forgets is answered with `EIO`, so no caller hangs.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::channel::Channel;
use super::proto::{self, IoctlFlags, IoctlIovec, OpenFlags};
use crate::wire::Errno;

/// The right, and the duty, to answer one request, now or later and from any thread.
#[derive(Debug)]
pub struct Reply {
    channel: Option<Arc<Channel>>,
    unique: u64,
}

/// An open file, as the handler answers an OPEN.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handler's number for it; later requests carry it.
    pub fh: u64,
    /// How the kernel treats it.
    pub flags: OpenFlags,
}

impl Reply {
    pub(super) fn new(channel: Arc<Channel>, unique: u64) -> Self {
        Self { channel: Some(channel), unique }
    }

    /// The request's number, which an INTERRUPT names.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// Answers with success and nothing else.
    pub fn ok(self) {
        self.send(0, &[]);
    }

    /// Answers with an error.
    pub fn error(self, error: Errno) {
        self.send(-(error as i32), &[]);
    }

    /// Answers a READ.
    pub fn data(self, data: &[u8]) {
        self.send(0, &[data]);
    }

    /// Answers a WRITE with the number of bytes taken.
    pub fn written(self, size: u32) {
        self.message(&proto::WriteOut { size, padding: 0 });
    }

    /// Answers an OPEN.
    pub fn opened(self, opened: Opened) {
        let Opened { fh, flags } = opened;
        self.message(&proto::OpenOut { fh, open_flags: flags.bits(), backing_id: 0 });
    }

    /// Answers an IOCTL: the value that `ioctl` returns, or its errno.
    pub fn ioctl(self, result: Result<i32, Errno>) {
        self.ioctl_data(result, &[]);
    }

    /// Answers an IOCTL with any number, one of the kernel's own among them, for a caller that is
    /// going to be stopped before it sees that. `ENOENT` when nobody waits for the answer.
    pub fn ioctl_raw(mut self, result: i32) -> Result<(), Errno> {
        let channel = self.channel.take().ok_or(Errno::ENOENT)?;
        let head = proto::IoctlOut { result, ..Default::default() };
        channel.send(self.unique, 0, &[head.as_bytes()])
    }

    /// Answers an IOCTL whose output the kernel copies to the caller. At most `out_size` bytes;
    /// none at all where the request allows none (else the caller gets `EIO`).
    pub fn ioctl_data(self, result: Result<i32, Errno>, output: &[u8]) {
        let result = result.unwrap_or_else(|error| -(error as i32));
        let head = proto::IoctlOut { result, ..Default::default() };
        self.send(0, &[head.as_bytes(), output]);
    }

    /// Asks the kernel to copy `input` from the caller, leave room for `output`, and to send the
    /// IOCTL again. Only for [`IoctlFlags::UNRESTRICTED`]. Each copy is a new one: what an
    /// earlier one held must not be relied on. `E2BIG` past [`proto::IOCTL_MAX_IOV`] iovecs.
    pub fn ioctl_retry(self, input: &[IoctlIovec], output: &[IoctlIovec]) -> Result<(), Errno> {
        if input.len() + output.len() > proto::IOCTL_MAX_IOV {
            self.ioctl(Err(Errno::E2BIG));
            return Err(Errno::E2BIG);
        }
        let head = proto::IoctlOut {
            result: 0,
            flags: IoctlFlags::RETRY.bits(),
            in_iovs: input.len() as u32,
            out_iovs: output.len() as u32,
        };
        self.send(0, &[head.as_bytes(), input.as_bytes(), output.as_bytes()]);
        Ok(())
    }

    /// Answers a POLL with `EPOLL*` bits.
    pub fn poll(self, revents: u32) {
        self.message(&proto::PollOut { revents, padding: 0 });
    }

    /// Answers with one message.
    pub(super) fn message<T: IntoBytes + zerocopy::Immutable>(self, message: &T) {
        self.send(0, &[message.as_bytes()]);
    }

    /// The request takes no reply.
    pub(super) fn none(mut self) {
        self.channel = None;
    }

    fn send(mut self, error: i32, parts: &[&[u8]]) {
        if let Some(channel) = self.channel.take() {
            answer(&channel, self.unique, error, parts);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            tracing::warn!(unique = self.unique, "a request was left without an answer");
            answer(&channel, self.unique, -libc::EIO, &[]);
        }
    }
}

/// Sends a reply. That the caller, or the session, is gone is no error.
fn answer(channel: &Channel, unique: u64, error: i32, parts: &[&[u8]]) {
    match channel.send(unique, error, parts) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV | Errno::ECONNABORTED) => {}
        Err(refused) => {
            tracing::warn!(unique, %refused, "the kernel refused a reply");
            if error == 0 {
                // The request still waits: an answer without a body is always well formed.
                let _ = channel.send(unique, -libc::EIO, &[]);
            }
        }
    }
}
