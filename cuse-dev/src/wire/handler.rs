//! What a device, or a file system of device-like files, answers.

use std::sync::Arc;

use super::channel::Channel;
use super::proto;
use super::reply::{Opened, Reply};
use super::request::{Header, Ioctl, Op, Poll, Read};
use crate::wire::Errno;

/// How long a request may keep the thread that reads requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Microseconds: it is answered by the reader. A handler that errs here is found out after
    /// a few milliseconds, and another thread reads on.
    Quick,
    /// Perhaps longer: another thread reads on meanwhile.
    Slow,
}

/// What `stat` shows of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The node.
    pub node: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
}

impl Attributes {
    /// A regular file of root, with these permission bits.
    pub fn file(node: u64, mode: u32) -> Self {
        Self { node, mode: libc::S_IFREG | mode & 0o7777, uid: 0, gid: 0, size: 0 }
    }

    /// A directory of root, with these permission bits.
    pub fn directory(node: u64, mode: u32) -> Self {
        Self { node, mode: libc::S_IFDIR | mode & 0o7777, uid: 0, gid: 0, size: 0 }
    }

    pub(super) fn raw(&self) -> proto::Attr {
        proto::Attr {
            ino: self.node,
            size: self.size,
            mode: self.mode,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            blksize: 4096,
            ..Default::default()
        }
    }
}

/// The other side of a session.
///
/// Methods run on the server's threads, at the same time. A RELEASE is answered before any
/// request that the kernel queued after it, as long as it is [`Pace::Quick`]. What answers by a
/// [`Reply`] may keep it and answer later.
pub trait Handler: Send + Sync + 'static {
    /// Whether `op` may take long. Asked of every request but RELEASE and the session's own.
    fn pace(&self, header: &Header, op: &Op<'_>) -> Pace {
        let _ = (header, op);
        Pace::Quick
    }

    /// The node called `name` in directory `header.node`. Only for a mount with a directory.
    fn lookup(&self, header: &Header, name: &[u8]) -> Result<Attributes, Errno> {
        let _ = (header, name);
        Err(Errno::ENOENT)
    }

    /// The kernel let `lookups` references to `node` go.
    fn forget(&self, node: u64, lookups: u64) {
        let _ = (node, lookups);
    }

    /// What `stat` shows. Never asked by CUSE.
    fn attributes(&self, node: u64) -> Result<Attributes, Errno>;

    /// Opens `header.node` with the `O_*` flags (without `O_CREAT`, `O_EXCL`, `O_NOCTTY`).
    fn open(&self, header: &Header, flags: u32) -> Result<Opened, Errno>;

    /// Reads.
    fn read(&self, header: &Header, read: &Read, reply: Reply) {
        let _ = (header, read);
        reply.error(Errno::EINVAL);
    }

    /// Writes. `flags` are the open file's.
    fn write(&self, header: &Header, fh: u64, flags: u32, data: &[u8], reply: Reply) {
        let _ = (header, fh, flags, data);
        reply.error(Errno::EINVAL);
    }

    /// Answers with [`Reply::ioctl`], so that no error is taken for the file system's own.
    fn ioctl(&self, header: &Header, ioctl: &Ioctl<'_>, reply: Reply) {
        let _ = (header, ioctl);
        reply.ioctl(Err(Errno::ENOTTY));
    }

    /// What is ready now, as `EPOLL*` bits. Where `poll.schedule` is set, the kernel wants a
    /// [`Channel::notify_poll`] of `poll.kh` on `channel` when that grows.
    fn poll(&self, header: &Header, poll: &Poll, channel: &Arc<Channel>) -> Result<u32, Errno> {
        let _ = (header, poll, channel);
        Err(Errno::ENOSYS)
    }

    /// A descriptor is being closed, not always the last.
    fn flush(&self, header: &Header, fh: u64) -> Result<(), Errno> {
        let _ = (header, fh);
        Ok(())
    }

    /// The last descriptor of `fh` is closed.
    fn release(&self, fh: u64) {
        let _ = fh;
    }

    /// The caller of request `unique` got a signal. A handler that keeps that request's
    /// [`Reply`] answers it with `EINTR`; for others there is nothing to do.
    fn interrupt(&self, unique: u64) {
        let _ = unique;
    }

    /// The request of `header`, which our thread `by` works on, has kept the reader too long.
    /// Another thread reads on.
    fn stalled(&self, header: &Header, by: i32) {
        let _ = by;
        tracing::debug!(tid = header.tid, "a request holds its thread");
    }

    /// A request that was [`Handler::stalled`] came to its end.
    fn resumed(&self, header: &Header) {
        let _ = header;
    }

    /// The caller of `header` was killed while our thread `by` works on its request, and cannot
    /// die before it is answered. Whether it may be, with `EINTR`, right now: the thread must
    /// then do nothing more that takes the caller to be waiting. `by`'s own answer is ignored.
    fn abandon(&self, header: &Header, by: i32) -> bool {
        let _ = (header, by);
        false
    }

    /// The session is over: every [`Reply`] that is still kept gets its answer.
    fn shutdown(&self) {}
}
