//! The node's side of the wire: opens become contexts, ioctls go to the engine.
//!
//! Every request is answered on the thread that got it, which reads the next one after that: waking
//! another costs more than most requests. Whoever held the reader lately is answered apart from it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use engine::caller::Caller as _;
use engine::{Engine, Errno, Node};
use ioctl_abi::command::iommufd::IOMMU_DESTROY;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use parking_lot::{Mutex, RwLock};

use super::caller::IoctlCaller;
use super::identify::{self, Shown, WHICH};
use super::opens::{Limits, Open, Opens};
use super::{assist, task};
use crate::caller::{CallerProcess, Callers, copying};
use crate::event_files::EventFiles;
use crate::inject::CALL_AGAIN;
use crate::run::fail_nth::with_count;
use crate::trace;
use crate::wire::proto::{IoctlFlags, OpenFlags};
use crate::wire::{Attributes, Handler, Header, Ioctl, Op, Opened, Pace, Reply};

/// What all nodes of the daemon share.
pub(super) struct Daemon {
    pub(super) engine: Arc<Engine>,
    pub(super) callers: Callers,
    pub(super) files: EventFiles,
    opens: Opens,
    /// Where our nodes are, as [`Daemon::is_node`] compares.
    nodes: RwLock<Vec<Place>>,
}

/// How a node of ours is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The FUSE file system with that device number.
    Mount((u32, u32)),
    /// The character device with that number.
    Special((u32, u32)),
}

impl Daemon {
    pub(super) fn new(
        engine: Arc<Engine>,
        callers: Callers,
        files: EventFiles,
        limits: Limits,
    ) -> Arc<Self> {
        let (opens, nodes) = (Opens::new(limits), RwLock::default());
        Arc::new(Self { engine, callers, files, opens, nodes })
    }

    /// Notes that the file system mounted at `root` is a node of ours.
    pub(super) fn add_mount(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let device = identify::of(root)?.device;
        self.nodes.write().push(Place::Mount(device));
        Ok(())
    }

    /// Notes that the character device with that number is a node of ours.
    pub(super) fn add_device(&self, number: (u32, u32)) {
        self.nodes.write().push(Place::Special(number));
    }

    /// Whether a descriptor that shows this is an open of a node of ours.
    pub(super) fn is_node(&self, file: &Shown) -> bool {
        self.nodes.read().iter().any(|node| match node {
            Place::Mount(device) => file.device == *device,
            Place::Special(number) => file.kind == libc::S_IFCHR && file.special == *number,
        })
    }

    /// Ends every context that is still open: callers go on to hold descriptors that answer
    /// nothing.
    pub(super) fn close_all(&self) {
        for open in self.opens.drain() {
            open.close();
        }
    }

    fn which(&self, header: &Header, ioctl: &Ioctl<'_>) -> Result<i32, Errno> {
        if !task::is_own(header.tid) {
            return Err(Errno::ENOTTY);
        }
        let base = usize::try_from(ioctl.arg).map_err(|_| Errno::EFAULT)?;
        let bytes = ioctl.fh.to_ne_bytes();
        let remote = [RemoteIoVec { base, len: bytes.len() }];
        process_vm_writev(nix::unistd::getpid(), &[std::io::IoSlice::new(&bytes)], &remote)?;
        Ok(0)
    }
}

/// One node.
pub(super) struct NodeHandler {
    pub(super) daemon: Arc<Daemon>,
    pub(super) node: Node,
    /// The node's permission bits.
    pub(super) mode: u32,
    /// The node's group.
    pub(super) group: u32,
}

impl Handler for NodeHandler {
    fn pace(&self, _: &Header, op: &Op<'_>) -> Pace {
        let Op::Ioctl(ioctl) = op else { return Pace::Quick };
        match self.daemon.opens.get(ioctl.fh) {
            Some(open) if self.daemon.opens.is_wary(&open) => Pace::Slow,
            _ => Pace::Quick,
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        Ok(Attributes { gid: self.group, ..Attributes::file(node, self.mode) })
    }

    fn open(&self, header: &Header, _: u32) -> Result<Opened, Errno> {
        if header.tid == 0 {
            // A process outside of our pid namespace: its memory is out of reach.
            return Err(Errno::EPERM);
        }
        let open = |quota| self.daemon.engine.open_within(self.node, quota);
        let fh = self.daemon.opens.add(header.uid, open)?;
        Ok(Opened { fh, flags: OpenFlags::EVENT_FILE })
    }

    fn ioctl(&self, header: &Header, ioctl: &Ioctl<'_>, reply: Reply) {
        if ioctl.cmd == WHICH {
            return reply.ioctl(self.daemon.which(header, ioctl));
        }
        let Some(open) = self.daemon.opens.get(ioctl.fh) else {
            return reply.ioctl(Err(Errno::ENODEV));
        };
        if let Err(error) = self.daemon.opens.admit(&open) {
            return reply.ioctl(Err(error));
        }
        // A pace that was found quick may have become slow since; that only holds the reader.
        let _apart = if self.daemon.opens.is_wary(&open) {
            match self.daemon.opens.enter(&open) {
                Ok(apart) => Some(apart),
                Err(error) => return reply.ioctl(Err(error)),
            }
        } else {
            None
        };
        copying::begin();
        // A file that the caller closed before this call is released before it, also one of another
        // context: what that had pinned shows. Who makes a release slow has to wait for it alone.
        let owner = u64::from(open.uid());
        self.daemon.files.settle(owner);
        // All of iommufd's structs are the same for 32-bit callers.
        let arg = match ioctl.flags.contains(IoctlFlags::COMPAT) {
            true => ioctl.arg & 0xffff_ffff,
            false => ioctl.arg,
        };
        let process = match self.daemon.callers.resolve(header.tid) {
            Ok(process) => process,
            Err(error) => {
                tracing::warn!(tid = header.tid, %error, "cannot look at a caller");
                return reply.ioctl(Err(Errno::EPERM));
            }
        };
        let reply = if engine::call::maps_memory(ioctl.cmd) {
            match prepare_pins(&process, header.tid, reply) {
                Some(reply) => reply,
                None => return,
            }
        } else {
            reply
        };
        let caller = IoctlCaller::new(&self.daemon, owner, header.tid, process, reply);
        let result = self.command(&open, &caller, ioctl.cmd, arg, header.tid);
        caller.finish(result);
    }

    fn release(&self, fh: u64) {
        if let Some(open) = self.daemon.opens.remove(fh) {
            let left = open.close();
            if left != 0 {
                tracing::error!(left, "objects outlived their context");
            }
        }
    }

    fn abandon(&self, _: &Header, by: i32) -> bool {
        copying::abandon(by)
    }

    fn stalled(&self, header: &Header, by: i32) {
        // What else takes long is ours, or a busy machine's.
        let copies = copying::sleeps_in_copy(by);
        if copies {
            tracing::info!(
                uid = header.uid,
                tid = header.tid,
                "a copy holds its thread; its user is served apart for a while"
            );
        }
        self.daemon.opens.stalled(header.unique, header.uid, copies);
    }

    fn resumed(&self, header: &Header) {
        self.daemon.opens.resumed(header.unique);
    }
}

impl NodeHandler {
    fn command(
        &self,
        open: &Open,
        caller: &IoctlCaller<'_>,
        command: u32,
        arg: u64,
        tid: u32,
    ) -> Result<i64, Errno> {
        if assist::is_ours(command) {
            return assist::answer(&self.daemon, open, caller, command, arg);
        }
        if command == IOMMU_DESTROY {
            open.assisted.forget_unmapped();
        }
        let call = || open.context.ioctl(caller, command, arg);
        let what = trace::Call { tid, context: open.context.id().0, command, argument: arg };
        trace::around(what, &*caller.memory(), || match open.assisted.count(tid) {
            Some(count) => with_count(&count, tid, call),
            None => call(),
        })
    }
}

/// Makes ready for pins of the caller's private memory, by way of its thread. Nothing if that took
/// the reply: the thread calls again.
fn prepare_pins(process: &CallerProcess, tid: u32, reply: Reply) -> Option<Reply> {
    let reply = Arc::new(Mutex::new(Some(reply)));
    let answer = reply.clone();
    process.prepare_pins(tid, move || {
        let reply = answer.lock().take().ok_or(Errno::ENOENT)?;
        reply.ioctl_raw(-CALL_AGAIN)
    });
    reply.lock().take()
}
