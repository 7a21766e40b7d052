//! Messages that no kernel would send, to a whole server: parser, dispatch, threads, replies.
//!
//! The other end of the channel is a socket that keeps the messages apart, as `/dev/fuse` does.
//! Behind the server stands an engine with a made-up caller, so an IOCTL goes all the way. What
//! must hold is what the kernel insists on: a request that takes a reply gets one, well formed,
//! and only one, even where the handler forgot it, kept it, or was slow.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary as _, Result, Unstructured};
use cuse_dev::wire::proto::{InHeader, OpenFlags, OutHeader, opcode};
use cuse_dev::wire::{
    Attributes, Channel, Errno, Handler, Header, Ioctl, Op, Opened, Options, Pace, ParseError,
    Poll, Read, Reply, Request, Server,
};
use engine::testing::TestCaller;
use engine::{Context, Engine, Node};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

/// Messages of one input.
const MESSAGES: usize = 48;
/// Asks for an answer after all others.
const SENTINEL: u64 = u64::MAX - 1;
/// By then every request is answered, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the handler keeps unanswered, until an INTERRUPT.
const KEPT: u32 = 0x4b45;

const OPCODES: &[u32] = &[
    opcode::LOOKUP,
    opcode::FORGET,
    opcode::GETATTR,
    opcode::SETATTR,
    opcode::OPEN,
    opcode::READ,
    opcode::WRITE,
    opcode::STATFS,
    opcode::RELEASE,
    opcode::FSYNC,
    opcode::FLUSH,
    opcode::INIT,
    opcode::OPENDIR,
    opcode::READDIR,
    opcode::RELEASEDIR,
    opcode::ACCESS,
    opcode::INTERRUPT,
    opcode::DESTROY,
    opcode::IOCTL,
    opcode::IOCTL,
    opcode::IOCTL,
    opcode::POLL,
    opcode::BATCH_FORGET,
    opcode::CUSE_INIT,
];

/// Sends the messages that `bytes` are.
pub fn run(bytes: &[u8]) {
    // The parser alone, on bytes as they are.
    if let Ok(request) = Request::parse(bytes) {
        let _ = format!("{request:?}");
        if let Op::BatchForget(forgets) = request.op {
            assert!(forgets.iter().count() <= bytes.len() / 16);
        }
    }
    let session = Session::get();
    let mut input = Unstructured::new(bytes);
    let mut expected = BTreeMap::new();
    for number in 1..=MESSAGES as u64 {
        if input.is_empty() {
            break;
        }
        let Ok(message) = message(&mut input, number * 2) else { break };
        match Request::parse(&message) {
            Ok(Request {
                op: Op::Forget { .. } | Op::BatchForget(_) | Op::Interrupt { .. },
                ..
            })
            | Err(ParseError::Length { .. }) => {}
            Ok(Request { header, .. }) => drop(expected.insert(header.unique, 0)),
            Err(ParseError::Body { unique, .. } | ParseError::Name { unique, .. }) => {
                expected.insert(unique, 0);
            }
        }
        session.send(&message);
    }
    expected.insert(SENTINEL, 0);
    session.send(&plain(opcode::GETATTR, SENTINEL, &[0; 16]));
    // Those that were kept are let go once all were seen.
    session.receive(&mut expected, |expected| expected[&SENTINEL] == 1);
    session.receive(&mut expected, |expected| expected.values().all(|&count| count == 1));
    session.oracle.forget_contexts();
}

/// A message with a header that is mostly right.
fn message(input: &mut Unstructured<'_>, unique: u64) -> Result<Vec<u8>> {
    let kind = match u8::arbitrary(input)? {
        0..=247 => *input.choose(OPCODES)?,
        _ => u32::arbitrary(input)?,
    };
    let length = match u8::arbitrary(input)? {
        short @ 0..=191 => usize::from(short & 127),
        _ => usize::from(u16::arbitrary(input)?),
    };
    let mut body = vec![0; length];
    let given = input.len().min(length);
    body[..given].copy_from_slice(input.bytes(given)?);
    if kind == opcode::IOCTL && body.len() >= 32 && bool::arbitrary(input)? {
        // One that gets as far as the engine: a command, an argument, the lengths that are there.
        let command = input.choose(ioctl_abi::command::COMMANDS)?.ioctl;
        body[12..16].copy_from_slice(&command.to_ne_bytes());
        body[16..24].copy_from_slice(&TestCaller::ARGUMENT.to_ne_bytes());
        let input_size = length as u32 - 32;
        body[24..28].copy_from_slice(&input_size.to_ne_bytes());
    }
    let mut bytes = plain(kind, unique, &body);
    let head = InHeader::mut_from_prefix(&mut bytes);
    if let Ok((head, _)) = head {
        head.uid = u32::from(u8::arbitrary(input)?);
        head.nodeid = u64::from(u8::arbitrary(input)?);
        match u8::arbitrary(input)? {
            0..=239 => {}
            240..=247 => head.len = u32::arbitrary(input)?,
            _ => head.total_extlen = u16::arbitrary(input)?,
        }
    }
    if u8::arbitrary(input)? == 255 {
        bytes.truncate(input.int_in_range(1..=bytes.len())?);
    }
    Ok(bytes)
}

fn plain(kind: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let head = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode: kind,
        unique,
        ..Default::default()
    };
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// A server of this process, and the kernel's end of its channel.
struct Session {
    kernel: OwnedFd,
    oracle: Arc<Oracle>,
    _server: Server,
}

impl Session {
    fn get() -> &'static Self {
        static SESSION: OnceLock<Session> = OnceLock::new();
        SESSION.get_or_init(|| {
            let (kernel, device) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                    .expect("a socket pair");
            let oracle = Arc::new(Oracle::default());
            let channel = Arc::new(Channel::from_fd(device));
            let options = Options { threads: 8, name: "fuzzed", ..Options::default() };
            let server = Server::start(channel, oracle.clone(), options).expect("threads");
            Self { kernel, oracle, _server: server }
        })
    }

    fn send(&self, message: &[u8]) {
        let parts = [IoSlice::new(message)];
        let sent = sendmsg::<()>(self.kernel.as_raw_fd(), &parts, &[], MsgFlags::empty(), None);
        assert_eq!(sent, Ok(message.len()));
    }

    /// Takes replies until `done`.
    fn receive(
        &self,
        expected: &mut BTreeMap<u64, u32>,
        done: impl Fn(&BTreeMap<u64, u32>) -> bool,
    ) {
        use std::os::fd::AsFd as _;
        let mut buffer = vec![0; 1 << 17];
        let begin = Instant::now();
        while !done(expected) {
            if expected[&SENTINEL] == 1 {
                // A slow one may be kept only now.
                self.oracle.let_go();
            }
            let mut ready = [PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN)];
            if nix::poll::poll(&mut ready, PollTimeout::from(10_u16)) == Ok(0) {
                assert!(begin.elapsed() < PATIENCE, "no answer: {expected:?}");
                continue;
            }
            let length = recv(self.kernel.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let reply = &buffer[..length.expect("a reply")];
            let (head, _) = OutHeader::read_from_prefix(reply).expect("a whole header");
            assert_eq!(head.len as usize, reply.len(), "the length is the message's");
            if head.unique == 0 {
                // A notification: its code stands where the error does.
                assert!(head.error > 0);
                continue;
            }
            assert!((-511..=0).contains(&head.error), "the kernel refuses error {}", head.error);
            assert!(head.error == 0 || reply.len() == size_of::<OutHeader>());
            let count = expected.get_mut(&head.unique).expect("nobody asked");
            *count += 1;
            assert_eq!(*count, 1, "request {} is answered twice", head.unique);
        }
    }
}

/// A handler that does a bit of everything, as the header's bytes and the node say.
struct Oracle {
    engine: Arc<Engine>,
    caller: TestCaller,
    contexts: Mutex<BTreeMap<u64, Arc<Context>>>,
    kept: Mutex<BTreeMap<u64, Reply>>,
}

impl Default for Oracle {
    fn default() -> Self {
        let caller = TestCaller::new();
        caller.memory.map(0x10_000, 16, true);
        let (contexts, kept) = Default::default();
        Self { engine: Engine::new(), caller, contexts, kept }
    }
}

impl Oracle {
    fn let_go(&self) {
        let kept = std::mem::take(&mut *self.kept.lock());
        for (unique, reply) in kept {
            // Some are forgotten, which must do as well.
            if unique & 2 == 0 {
                reply.ioctl(Err(Errno::EINTR));
            }
        }
    }

    fn forget_contexts(&self) {
        let contexts = std::mem::take(&mut *self.contexts.lock());
        for context in contexts.into_values() {
            context.close();
        }
        for fd in 0..64 {
            self.caller.close(fd);
        }
    }
}

impl Handler for Oracle {
    fn pace(&self, header: &Header, _: &Op<'_>) -> Pace {
        if header.uid.is_multiple_of(4) { Pace::Slow } else { Pace::Quick }
    }

    fn lookup(&self, _: &Header, name: &[u8]) -> std::result::Result<Attributes, Errno> {
        assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'/'));
        if name.len() < 8 { Ok(Attributes::file(2, 0o600)) } else { Err(Errno::ENOENT) }
    }

    fn attributes(&self, node: u64) -> std::result::Result<Attributes, Errno> {
        if node < 128 { Ok(Attributes::file(node, 0o666)) } else { Err(Errno::ENOENT) }
    }

    fn open(&self, header: &Header, _: u32) -> std::result::Result<Opened, Errno> {
        let context = self.engine.open(Node::Iommu);
        let mut contexts = self.contexts.lock();
        let fh = header.node % 4;
        if let Some(before) = contexts.insert(fh, context) {
            before.close();
        }
        Ok(Opened { fh, flags: OpenFlags::EVENT_FILE })
    }

    fn read(&self, _: &Header, read: &Read, reply: Reply) {
        if read.fh & 1 == 0 {
            reply.data(&vec![0; read.size.min(4096) as usize]);
        } else {
            reply.error(Errno::EAGAIN);
        }
    }

    fn write(&self, _: &Header, _: u64, _: u32, data: &[u8], reply: Reply) {
        reply.written(data.len() as u32);
    }

    fn ioctl(&self, header: &Header, ioctl: &Ioctl<'_>, reply: Reply) {
        if ioctl.cmd & 0xffff == KEPT || header.node == 77 {
            self.kept.lock().insert(header.unique, reply);
            return;
        }
        let context = self.contexts.lock().values().next().cloned();
        let Some(context) = context else { return reply.ioctl(Err(Errno::EBADF)) };
        let page = &ioctl.input[..ioctl.input.len().min(4096)];
        use engine::memory::AddressSpace as _;
        let _ = self.caller.memory.write(TestCaller::ARGUMENT, page);
        let result = context.ioctl(&self.caller, ioctl.cmd, ioctl.arg);
        if header.uid & 2 == 0 {
            reply.ioctl(result.map(|value| value as i32));
        } else {
            let room = (ioctl.out_size as usize).min(256);
            reply.ioctl_data(result.map(|value| value as i32), &vec![0; room]);
        }
    }

    fn poll(
        &self,
        _: &Header,
        poll: &Poll,
        channel: &Arc<Channel>,
    ) -> std::result::Result<u32, Errno> {
        if poll.schedule {
            let _ = channel.notify_poll(poll.kh);
        }
        Ok(poll.events)
    }

    fn release(&self, fh: u64) {
        if let Some(context) = self.contexts.lock().remove(&fh) {
            context.close();
        }
    }

    fn interrupt(&self, unique: u64) {
        if let Some(reply) = self.kept.lock().remove(&unique) {
            reply.ioctl(Err(Errno::EINTR));
        }
    }
}
