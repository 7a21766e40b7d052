//! From a parsed request to the handler's method, and back to the reply's layout.

use std::sync::Arc;

use super::channel::Channel;
use super::handler::{Attributes, Handler, Pace};
use super::proto::{self, InitFlags};
use super::request::{Op, Request};
use crate::wire::Errno;

/// Seconds for which the kernel may keep names and attributes: they never change.
const VALID: u64 = 86_400;

/// Most bytes of one WRITE.
pub(super) const MAX_WRITE: u32 = 64 << 10;

/// How long `request` may take.
pub(super) fn pace<H: Handler>(handler: &H, request: &Request<'_>) -> Pace {
    match &request.op {
        Op::Open { .. } | Op::Read(_) | Op::Write { .. } | Op::Ioctl(_) | Op::Lookup { .. } => {
            handler.pace(&request.header, &request.op)
        }
        _ => Pace::Quick,
    }
}

/// Answers one request.
pub(super) fn dispatch<H: Handler>(handler: &H, channel: &Arc<Channel>, request: &Request<'_>) {
    let header = &request.header;
    let reply = channel.reply(header.unique);
    match request.op {
        Op::Init { major, minor, max_readahead, flags } => {
            if major != proto::KERNEL_VERSION || minor < proto::KERNEL_MINOR_MIN {
                tracing::error!(major, minor, "the kernel speaks another FUSE protocol");
                return reply.error(Errno::EPROTO);
            }
            let wanted = InitFlags::ATOMIC_O_TRUNC
                | InitFlags::BIG_WRITES
                | InitFlags::PARALLEL_DIROPS
                | InitFlags::MAX_PAGES;
            let agreed = wanted & InitFlags::from_bits_retain(flags);
            reply.message(&proto::InitOut {
                major: proto::KERNEL_VERSION,
                minor: minor.min(proto::KERNEL_MINOR_VERSION),
                max_readahead,
                flags: agreed.bits() as u32,
                max_background: 64,
                congestion_threshold: 48,
                max_write: MAX_WRITE,
                time_gran: 1,
                max_pages: (MAX_WRITE / 4096) as u16,
                ..Default::default()
            });
        }
        Op::CuseInit { .. } => reply.error(Errno::EPROTO),
        Op::Lookup { name } => match handler.lookup(header, name) {
            Ok(attributes) => reply.message(&entry(&attributes)),
            Err(error) => reply.error(error),
        },
        Op::Forget { lookups } => {
            reply.none();
            handler.forget(header.node, lookups);
        }
        Op::BatchForget(forgets) => {
            reply.none();
            for (node, lookups) in forgets.iter() {
                handler.forget(node, lookups);
            }
        }
        Op::Getattr { .. } => match handler.attributes(header.node) {
            Ok(attributes) => reply.message(&proto::AttrOut {
                attr_valid: VALID,
                attr: attributes.raw(),
                ..Default::default()
            }),
            Err(error) => reply.error(error),
        },
        Op::Setattr => reply.error(Errno::EPERM),
        Op::Open { flags } => match handler.open(header, flags) {
            Ok(opened) => reply.opened(opened),
            Err(error) => reply.error(error),
        },
        Op::Read(read) => handler.read(header, &read, reply),
        Op::Write { fh, flags, data, .. } => handler.write(header, fh, flags, data, reply),
        Op::Statfs => {
            reply.message(&proto::StatfsOut { bsize: 4096, namelen: 255, ..Default::default() });
        }
        Op::Release { fh, .. } => {
            handler.release(fh);
            reply.ok();
        }
        Op::Flush { fh } => match handler.flush(header, fh) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        },
        Op::Fsync { .. } => reply.error(Errno::EINVAL),
        Op::Readdir { .. } => reply.data(&[]),
        Op::Opendir | Op::Access { .. } | Op::Releasedir | Op::Destroy => reply.ok(),
        Op::Interrupt { unique } => {
            reply.none();
            handler.interrupt(unique);
        }
        Op::Ioctl(ioctl) => handler.ioctl(header, &ioctl, reply),
        Op::Poll(poll) => match handler.poll(header, &poll, channel) {
            Ok(revents) => reply.poll(revents),
            Err(error) => reply.error(error),
        },
        Op::Unknown { .. } => reply.error(Errno::ENOSYS),
    }
}

fn entry(attributes: &Attributes) -> proto::EntryOut {
    proto::EntryOut {
        nodeid: attributes.node,
        entry_valid: 0,
        attr_valid: VALID,
        attr: attributes.raw(),
        ..Default::default()
    }
}
