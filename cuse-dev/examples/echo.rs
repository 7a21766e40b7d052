//! A small device over the wire module: what is written comes back by reads, which block while
//! there is nothing, and `ioctl` counts.
//!
//! `echo PATH` puts it on top of the file PATH (FUSE); `echo --cuse NAME` makes it /dev/NAME.
//! Then: `cat PATH & echo hello > PATH`.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use cuse_dev::wire::proto::OpenFlags;
use cuse_dev::wire::{Attributes, Channel, Errno, Handler, Header, Ioctl, Opened, Options};
use cuse_dev::wire::{Poll, Read, Reply, Server, mount};

#[derive(Default)]
struct Echo {
    ioctls: AtomicI32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Reads that wait for bytes.
    readers: VecDeque<(Reply, usize)>,
    /// Who polls, by the kernel's handle.
    pollers: HashMap<u64, Arc<Channel>>,
}

impl State {
    fn take(&mut self, size: usize) -> Vec<u8> {
        let size = size.min(self.bytes.len());
        self.bytes.drain(..size).collect()
    }
}

impl Handler for Echo {
    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        Ok(Attributes::file(node, 0o666))
    }

    fn open(&self, _: &Header, _: u32) -> Result<Opened, Errno> {
        Ok(Opened { fh: 0, flags: OpenFlags::EVENT_FILE })
    }

    fn read(&self, _: &Header, read: &Read, reply: Reply) {
        let mut state = self.state.lock().unwrap();
        if !state.bytes.is_empty() {
            reply.data(&state.take(read.size as usize));
        } else if read.flags & libc::O_NONBLOCK as u32 != 0 {
            reply.error(Errno::EAGAIN);
        } else {
            state.readers.push_back((reply, read.size as usize));
        }
    }

    fn write(&self, _: &Header, _: u64, _: u32, data: &[u8], reply: Reply) {
        let mut state = self.state.lock().unwrap();
        state.bytes.extend(data);
        reply.written(data.len() as u32);
        while !state.bytes.is_empty() {
            let Some((reader, size)) = state.readers.pop_front() else { break };
            reader.data(&state.take(size));
        }
        for (kh, channel) in state.pollers.drain() {
            // Whoever polled may have left.
            let _ = channel.notify_poll(kh);
        }
    }

    fn poll(&self, _: &Header, poll: &Poll, channel: &Arc<Channel>) -> Result<u32, Errno> {
        let mut state = self.state.lock().unwrap();
        if poll.schedule {
            state.pollers.insert(poll.kh, channel.clone());
        }
        let readable = if state.bytes.is_empty() { 0 } else { libc::EPOLLIN | libc::EPOLLRDNORM };
        Ok((readable | libc::EPOLLOUT | libc::EPOLLWRNORM) as u32)
    }

    fn ioctl(&self, _: &Header, _: &Ioctl<'_>, reply: Reply) {
        reply.ioctl(Ok(self.ioctls.fetch_add(1, Ordering::Relaxed) & i32::MAX));
    }

    fn interrupt(&self, unique: u64) {
        let mut state = self.state.lock().unwrap();
        let index = state.readers.iter().position(|(reply, _)| reply.unique() == unique);
        if let Some((reply, _)) = index.and_then(|index| state.readers.remove(index)) {
            reply.error(Errno::EINTR);
        }
    }

    fn shutdown(&self) {
        for (reply, _) in self.state.lock().unwrap().readers.drain(..) {
            reply.error(Errno::ENODEV);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--cuse", name] => {
            let channel = Arc::new(mount::cuse(name)?);
            Server::start(channel, Arc::new(Echo::default()), Options::default())?.wait();
        }
        [path] => {
            let mount = mount::fuse(&mount::Root::File { mode: 0o666 }, "echo")?;
            mount.attach(&CString::new(path)?)?;
            Server::start(mount.channel(), Arc::new(Echo::default()), Options::default())?.wait();
        }
        _ => return Err("usage: echo PATH | echo --cuse NAME".into()),
    }
    Ok(())
}
