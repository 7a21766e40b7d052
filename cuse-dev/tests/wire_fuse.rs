//! The wire module against the kernel's FUSE: a device whose reads block and whose ioctl answers.
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(unsafe_code)] // Raw ioctls.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use cuse_dev::wire::mount::{self, Mount, Root};
use cuse_dev::wire::proto::OpenFlags;
use cuse_dev::wire::{Attributes, Channel, Errno, Handler, Header, Ioctl, Op, Opened, Options};
use cuse_dev::wire::{Pace, Poll, Read, Reply, Server};
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// An ioctl that waits until the test opens the gate, and says it is slow or lies.
const WAIT_SLOW: u32 = 0x3b80;
const WAIT_LYING: u32 = 0x3b81;
/// Answers with the number of files that are open.
const COUNT: u32 = 0x3b82;

#[derive(Default)]
struct Device {
    bytes: Mutex<Vec<u8>>,
    waiting: Mutex<HashMap<u64, Reply>>,
    blocked: Condvar,
    pollers: Mutex<Vec<(u64, Arc<Channel>)>>,
    gate: Mutex<bool>,
    opened: Condvar,
    open: AtomicUsize,
    stalled: AtomicBool,
    directory: bool,
}

impl Device {
    fn open_gate(&self) {
        *self.gate.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Until a read waits.
    fn wait_for_reader(&self) {
        let waiting = self.waiting.lock().unwrap();
        let (waiting, _) = self
            .blocked
            .wait_timeout_while(waiting, Duration::from_secs(60), |waiting| waiting.is_empty())
            .unwrap();
        assert!(!waiting.is_empty(), "no read arrived");
    }
}

impl Handler for Device {
    fn pace(&self, _: &Header, op: &Op<'_>) -> Pace {
        match op {
            Op::Ioctl(ioctl) if ioctl.cmd == WAIT_SLOW => Pace::Slow,
            _ => Pace::Quick,
        }
    }

    fn lookup(&self, _: &Header, name: &[u8]) -> Result<Attributes, Errno> {
        match name {
            b"a" => Ok(Attributes::file(2, 0o600)),
            b"b" => Ok(Attributes::file(3, 0o600)),
            _ => Err(Errno::ENOENT),
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        match node {
            1 if self.directory => Ok(Attributes::directory(node, 0o755)),
            _ => Ok(Attributes::file(node, 0o666)),
        }
    }

    fn open(&self, header: &Header, _: u32) -> Result<Opened, Errno> {
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Opened { fh: header.node, flags: OpenFlags::EVENT_FILE })
    }

    fn release(&self, _: u64) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn read(&self, _: &Header, read: &Read, reply: Reply) {
        let mut bytes = self.bytes.lock().unwrap();
        if !bytes.is_empty() {
            reply.data(&std::mem::take(&mut *bytes));
        } else if read.flags & libc::O_NONBLOCK as u32 != 0 {
            reply.error(Errno::EAGAIN);
        } else {
            self.waiting.lock().unwrap().insert(reply.unique(), reply);
            self.blocked.notify_all();
        }
    }

    fn write(&self, _: &Header, _: u64, _: u32, data: &[u8], reply: Reply) {
        let reader = self.waiting.lock().unwrap().drain().next();
        match reader {
            Some((_, reader)) => reader.data(data),
            None => self.bytes.lock().unwrap().extend(data),
        }
        reply.written(data.len() as u32);
        for (kh, channel) in self.pollers.lock().unwrap().drain(..) {
            let _ = channel.notify_poll(kh);
        }
    }

    fn poll(&self, _: &Header, poll: &Poll, channel: &Arc<Channel>) -> Result<u32, Errno> {
        if poll.schedule {
            self.pollers.lock().unwrap().push((poll.kh, channel.clone()));
        }
        let empty = self.bytes.lock().unwrap().is_empty();
        Ok(if empty { libc::EPOLLOUT } else { libc::EPOLLOUT | libc::EPOLLIN } as u32)
    }

    fn ioctl(&self, header: &Header, ioctl: &Ioctl<'_>, reply: Reply) {
        match ioctl.cmd {
            WAIT_SLOW | WAIT_LYING => {
                let gate = self.gate.lock().unwrap();
                let (gate, _) = self
                    .opened
                    .wait_timeout_while(gate, Duration::from_secs(60), |open| !*open)
                    .unwrap();
                reply.ioctl(if *gate { Ok(7) } else { Err(Errno::ETIMEDOUT) });
            }
            COUNT => reply.ioctl(Ok(self.open.load(Ordering::SeqCst) as i32)),
            0x3bff => reply.ioctl(Ok((header.tid == tid()) as i32)),
            0x3bfe => reply.ioctl(Ok((ioctl.arg == 0xdead_beef_0000_0001) as i32)),
            _ => reply.ioctl(Err(Errno::EOPNOTSUPP)),
        }
    }

    fn interrupt(&self, unique: u64) {
        if let Some(reply) = self.waiting.lock().unwrap().remove(&unique) {
            reply.error(Errno::EINTR);
        }
    }

    fn stalled(&self, _: &Header, _: i32) {
        self.stalled.store(true, Ordering::SeqCst);
    }

    fn shutdown(&self) {
        for (_, reply) in self.waiting.lock().unwrap().drain() {
            reply.error(Errno::ENODEV);
        }
    }
}

fn tid() -> u32 {
    EXPECTED_TID.load(Ordering::SeqCst) as u32
}
static EXPECTED_TID: AtomicUsize = AtomicUsize::new(0);

/// A served device, mounted nowhere; nothing where the machine cannot.
fn serve(root: Root) -> Option<(Arc<Device>, Mount, Server)> {
    let mount = match mount::fuse(&root, "softiommu-test") {
        Ok(mount) => mount,
        Err(error) => {
            eprintln!("SKIPPED: no FUSE mount here: {error}");
            return None;
        }
    };
    let directory = matches!(root, Root::Directory { .. });
    let device = Arc::new(Device { directory, ..Device::default() });
    let server = Server::start(mount.channel(), device.clone(), Options::default()).unwrap();
    Some((device, mount, server))
}

fn open(mount: &Mount, name: &str, nonblocking: bool) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = if nonblocking { libc::O_NONBLOCK } else { 0 };
    let path = format!("/proc/self/fd/{}/{name}", mount.as_fd().as_raw_fd());
    let path = path.trim_end_matches('/');
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

fn ioctl(file: &File, cmd: u32, arg: u64) -> Result<i32, Errno> {
    // SAFETY: the device never touches the argument.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), cmd as _, arg) })
}

#[test]
fn a_file_answers_ioctls_with_the_raw_argument() {
    let Some((_, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
    let file = open(&mount, "", false).unwrap();
    EXPECTED_TID.store(nix::unistd::gettid().as_raw() as usize, Ordering::SeqCst);
    assert_eq!(ioctl(&file, 0x3bff, 0), Ok(1));
    assert_eq!(ioctl(&file, 0x3bfe, 0xdead_beef_0000_0001), Ok(1));
    assert_eq!(ioctl(&file, 0x3b00, 0), Err(Errno::EOPNOTSUPP));
}

#[test]
fn files_of_a_directory_are_looked_up() {
    let Some((_, mount, _server)) = serve(Root::Directory { mode: 0o755 }) else { return };
    assert!(open(&mount, "a", false).is_ok());
    assert!(open(&mount, "b", false).is_ok());
    assert_eq!(open(&mount, "c", false).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_event_file_reads_writes_polls_and_refuses_seeks() {
    let Some((device, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
    let file = open(&mount, "", true).unwrap();
    let mut buffer = [0; 16];
    assert_eq!((&file).read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    let ready = |timeout: u16| {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::from(timeout)).unwrap()
    };
    assert_eq!(ready(0), 0);
    let (other, pollers) = (file.try_clone().unwrap(), device.clone());
    let writer = std::thread::spawn(move || {
        // Once the poll below waits, or at once: both have to end it.
        while pollers.pollers.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        (&other).write_all(b"event").unwrap();
    });
    assert_eq!(ready(60_000), 1);
    writer.join().unwrap();
    assert_eq!((&file).read(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"event");
    assert_eq!(
        nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet).unwrap_err(),
        Errno::ESPIPE
    );
}

#[test]
fn a_blocked_read_is_answered_later() {
    let Some((device, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
    let file = open(&mount, "", false).unwrap();
    let reader = {
        let file = file.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 8];
            let length = (&file).read(&mut buffer).unwrap();
            buffer[..length].to_vec()
        })
    };
    device.wait_for_reader();
    (&file).write_all(b"late").unwrap();
    assert_eq!(reader.join().unwrap(), b"late");
}

#[test]
fn a_signal_ends_a_blocked_read() {
    use nix::sys::{pthread, signal};
    extern "C" fn nothing(_: libc::c_int) {}
    let Some((device, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
    let action = signal::SigAction::new(
        signal::SigHandler::Handler(nothing),
        signal::SaFlags::empty(),
        signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { signal::sigaction(signal::Signal::SIGUSR2, &action) }.unwrap();
    let file = open(&mount, "", false).unwrap();
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let own = signal::SigSet::from(signal::Signal::SIGUSR2);
        own.thread_unblock().unwrap();
        send.send(pthread::pthread_self()).unwrap();
        nix::unistd::read(&file, &mut [0; 8])
    });
    let thread = receive.recv().unwrap();
    device.wait_for_reader();
    pthread::pthread_kill(thread, signal::Signal::SIGUSR2).unwrap();
    assert_eq!(reader.join().unwrap(), Err(Errno::EINTR));
}

#[test]
fn neither_slow_nor_lying_requests_hold_others() {
    for cmd in [WAIT_SLOW, WAIT_LYING] {
        let Some((device, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
        let file = Arc::new(open(&mount, "", false).unwrap());
        let held: Vec<_> = (0..4)
            .map(|_| {
                let file = file.clone();
                std::thread::spawn(move || ioctl(&file, cmd, 0))
            })
            .collect();
        for _ in 0..100 {
            assert_eq!(ioctl(&file, COUNT, 0), Ok(1));
        }
        if cmd == WAIT_LYING {
            while !device.stalled.load(Ordering::SeqCst) {
                assert_eq!(ioctl(&file, COUNT, 0), Ok(1));
            }
        }
        device.open_gate();
        for thread in held {
            assert_eq!(thread.join().unwrap(), Ok(7));
        }
    }
}

#[test]
fn each_thread_answers_where_it_read() {
    let Some((device, mount, _server)) = serve(Root::File { mode: 0o666 }) else { return };
    let file = Arc::new(open(&mount, "", false).unwrap());
    let held = {
        let file = file.clone();
        std::thread::spawn(move || ioctl(&file, WAIT_SLOW, 0))
    };
    // Once the first thread is held, another one sees a poll.
    let begin = Instant::now();
    let other = loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "one descriptor for all threads");
        let mut asked = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut asked, PollTimeout::from(1_u8)).unwrap();
        let last = device.pollers.lock().unwrap().pop();
        if let Some((_, channel)) = last.filter(|(_, seen)| !Arc::ptr_eq(seen, &mount.channel())) {
            break channel;
        }
    };
    // A request that was read from one cannot be answered from another.
    assert_eq!(ioctl(&file, COUNT, 0), Ok(1));
    device.open_gate();
    assert_eq!(held.join().unwrap(), Ok(7));
    assert_ne!(other.as_fd().as_raw_fd(), mount.channel().as_fd().as_raw_fd());
}

#[test]
fn a_close_is_seen_before_the_next_request() {
    let Some((_, mount, _server)) = serve(Root::Directory { mode: 0o755 }) else { return };
    let file = open(&mount, "a", false).unwrap();
    for _ in 0..3_000 {
        drop(open(&mount, "b", false).unwrap());
        assert_eq!(ioctl(&file, COUNT, 0), Ok(1));
    }
}

#[test]
fn stopping_answers_everyone() {
    let Some((device, mount, server)) = serve(Root::File { mode: 0o666 }) else { return };
    let file = open(&mount, "", false).unwrap();
    let reader = {
        let file = file.try_clone().unwrap();
        std::thread::spawn(move || nix::unistd::read(&file, &mut [0; 8]))
    };
    device.wait_for_reader();
    server.stop();
    assert_eq!(reader.join().unwrap(), Err(Errno::ENODEV));
    drop((server, mount));
    // The session ends with the last thread that holds its descriptor, which may be a moment later:
    // what is asked until then is aborted.
    let answer = ioctl(&file, COUNT, 0);
    assert!(matches!(answer, Err(Errno::ENOTCONN | Errno::ECONNABORTED)), "{answer:?}");
    if answer != Err(Errno::ENOTCONN) {
        assert_eq!(ioctl(&file, COUNT, 0), Err(Errno::ENOTCONN));
    }
}
