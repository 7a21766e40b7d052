//! Reads, writes and polls of event files, as FUSE brings them.
//!
//! Nobody is blocked here: a read that finds nothing keeps its [`Reply`], and is tried again when
//! the engine says that the file changed. The engine says so with its locks held, so one thread
//! of ours does the rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender, unbounded};
use engine::Errno;
use engine::file::{EngineFile, PollEvents, ReadBuffer, Wake};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::order::Order;
use crate::assist::{READ_NOTHING, WRITE_NOTHING};
use crate::wire::proto::OpenFlags;
use crate::wire::{Attributes, Channel, Handler, Header, Ioctl, Opened, Poll, Read, Reply};

/// The mount's root directory.
const ROOT: u64 = 1;

/// All files, by their node.
pub(super) struct Files {
    table: RwLock<FxHashMap<u64, Arc<Node>>>,
    next: AtomicU64,
    wakes: Sender<Weak<Node>>,
    /// Who may open the files: we, by user and group.
    owner: (u32, u32),
    pub(super) order: Order,
}

/// One file.
struct Node {
    file: Arc<dyn EngineFile>,
    waiting: Mutex<Waiting>,
}

/// Who waits for a file.
#[derive(Default)]
struct Waiting {
    /// Reads, and how much each wants.
    reads: Vec<(Reply, u32)>,
    /// Polls, by the kernel's handle.
    polls: Vec<u64>,
    /// It was opened: we did, and nobody else may.
    opened: bool,
    /// The last descriptor is closed.
    released: bool,
}

/// A file that was added and not opened yet. Dropping it releases the file.
pub(super) struct Added<'a> {
    files: &'a Files,
    node: u64,
    opened: bool,
}

impl Added<'_> {
    pub(super) fn node(&self) -> u64 {
        self.node
    }

    /// From now on its last close releases it.
    pub(super) fn opened(mut self) {
        self.opened = true;
    }
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        if !self.opened {
            self.files.release_node(self.node);
        }
    }
}

/// Passes the engine's word on.
struct Notice {
    node: Weak<Node>,
    wakes: Sender<Weak<Node>>,
}

impl Wake for Notice {
    fn wake(&self) {
        let _ = self.wakes.send(self.node.clone());
    }
}

impl Files {
    pub(super) fn new(channel: Arc<Channel>) -> Result<Arc<Self>, Errno> {
        let (wakes, woken) = unbounded();
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let (table, next) = (RwLock::default(), AtomicU64::new(ROOT + 1));
        let files = Arc::new(Self { table, next, wakes, owner, order: Order::new()? });
        std::thread::Builder::new()
            .name("event-wakes".into())
            .spawn(move || pass_on(&woken, &channel))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        Ok(files)
    }

    pub(super) fn add(&self, file: Arc<dyn EngineFile>) -> Added<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(Node { file, waiting: Mutex::default() });
        let notice = Notice { node: Arc::downgrade(&node), wakes: self.wakes.clone() };
        self.table.write().insert(number, node.clone());
        node.file.watch(Arc::new(notice));
        Added { files: self, node: number, opened: false }
    }

    pub(super) fn find(&self, node: u64) -> Option<Arc<dyn EngineFile>> {
        self.table.read().get(&node).map(|node| node.file.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.table.read().len()
    }

    fn node(&self, number: u64) -> Result<Arc<Node>, Errno> {
        self.table.read().get(&number).cloned().ok_or(Errno::ENOENT)
    }

    pub(super) fn release_node(&self, number: u64) {
        let node = self.table.write().remove(&number);
        if let Some(node) = node {
            node.waiting.lock().released = true;
            node.file.release();
        }
        self.order.released(number);
    }
}

/// Tells those who wait for files that changed.
fn pass_on(woken: &Receiver<Weak<Node>>, channel: &Channel) {
    while let Ok(node) = woken.recv() {
        if let Some(node) = node.upgrade() {
            node.changed(channel);
        }
    }
}

impl Node {
    fn changed(&self, channel: &Channel) {
        let (reads, polls) = {
            let mut waiting = self.waiting.lock();
            (std::mem::take(&mut waiting.reads), std::mem::take(&mut waiting.polls))
        };
        for (reply, size) in reads {
            self.read(reply, size, false);
        }
        for handle in polls {
            // ENOENT: nobody polls any more.
            let _ = channel.notify_poll(handle);
        }
    }

    /// Answers a read, or keeps it until there is something.
    fn read(&self, reply: Reply, size: u32, non_blocking: bool) {
        let mut buffer = Buffer { bytes: Vec::new(), size: size as usize };
        match self.file.read(&mut buffer) {
            Ok(()) => return reply.data(&buffer.bytes),
            Err(Errno::EAGAIN) if !non_blocking => {}
            Err(errno) => return reply.error(errno),
        }
        let mut waiting = self.waiting.lock();
        if waiting.released {
            return reply.error(Errno::EINTR);
        }
        waiting.reads.push((reply, size));
        // What came since the look above found nobody waiting.
        if self.file.poll().contains(PollEvents::IN)
            && let Some((reply, size)) = waiting.reads.pop()
        {
            drop(waiting);
            self.read(reply, size, non_blocking);
        }
    }
}

struct Buffer {
    bytes: Vec<u8>,
    size: usize,
}

impl ReadBuffer for Buffer {
    fn room(&self) -> usize {
        self.size - self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.room() {
            return Err(Errno::EFAULT);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Handler for Files {
    fn lookup(&self, header: &Header, name: &[u8]) -> Result<Attributes, Errno> {
        let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        match number {
            Some(number) if header.node == ROOT => self.attributes(number),
            _ => Err(Errno::ENOENT),
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        if node == ROOT {
            let mut root = Attributes::directory(ROOT, 0o700);
            (root.uid, root.gid) = self.owner;
            return Ok(root);
        }
        self.node(node)?;
        let mut file = Attributes::file(node, 0o600);
        (file.uid, file.gid) = self.owner;
        Ok(file)
    }

    fn open(&self, header: &Header, _flags: u32) -> Result<Opened, Errno> {
        let node = self.node(header.node)?;
        // As the kernel's own such files: not to be opened again through /proc/self/fd.
        if std::mem::replace(&mut node.waiting.lock().opened, true) {
            return Err(Errno::ENXIO);
        }
        Ok(Opened { fh: header.node, flags: OpenFlags::EVENT_FILE })
    }

    fn read(&self, _header: &Header, read: &Read, reply: Reply) {
        match self.node(read.fh) {
            Ok(node) => node.read(reply, read.size, read.flags & libc::O_NONBLOCK as u32 != 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(&self, _header: &Header, fh: u64, _flags: u32, data: &[u8], reply: Reply) {
        match self.node(fh).and_then(|node| node.file.write(data)) {
            Ok(taken) => reply.written(u32::try_from(taken).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    /// What a read or write of no bytes answers, which the kernel does not pass on.
    fn ioctl(&self, _header: &Header, ioctl: &Ioctl<'_>, reply: Reply) {
        let file = self.node(ioctl.fh).map(|node| node.file.clone());
        reply.ioctl(file.and_then(|file| match ioctl.cmd {
            READ_NOTHING => file.read(&mut Buffer { bytes: Vec::new(), size: 0 }).map(|()| 0),
            WRITE_NOTHING => file.write(&[]).map(|taken| taken as i32),
            _ => Err(Errno::ENOTTY),
        }));
    }

    fn poll(&self, _header: &Header, poll: &Poll, _channel: &Arc<Channel>) -> Result<u32, Errno> {
        let node = self.node(poll.fh)?;
        if poll.schedule {
            // Noted first: a change after the look below finds it.
            let mut waiting = node.waiting.lock();
            if !waiting.polls.contains(&poll.kh) {
                waiting.polls.push(poll.kh);
            }
        }
        Ok(node.file.poll().bits())
    }

    fn release(&self, fh: u64) {
        self.release_node(fh);
    }

    fn interrupt(&self, unique: u64) {
        let nodes: Vec<_> = self.table.read().values().cloned().collect();
        for node in nodes {
            let mut waiting = node.waiting.lock();
            if let Some(at) = waiting.reads.iter().position(|(reply, _)| reply.unique() == unique) {
                let (reply, _) = waiting.reads.swap_remove(at);
                drop(waiting);
                return reply.error(Errno::EINTR);
            }
        }
    }

    fn shutdown(&self) {
        for node in self.table.read().values() {
            for (reply, _) in node.waiting.lock().reads.drain(..) {
                reply.error(Errno::ENODEV);
            }
        }
    }
}
