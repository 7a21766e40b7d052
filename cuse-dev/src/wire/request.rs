//! Requests: bytes from the kernel to typed messages, every size checked.
//!
//! The kernel is trusted with its own protocol, but not a line of this relies on it: a message
//! that is too short, or whose lengths disagree, is an error, so the parser can be driven with
//! hostile bytes (`fuzz/`).

use zerocopy::FromBytes;

use super::proto::{self, IoctlFlags, opcode};

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than a header has, or than the header says.
    #[error("{have} bytes, where the header says {want}")]
    Length {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// The body is shorter than the operation's message.
    #[error("operation {opcode}: the body of request {unique} is too short")]
    Body {
        /// The operation.
        opcode: u32,
        /// The request's number, for the answer.
        unique: u64,
    },
    /// A name without its zero, empty, or with a slash.
    #[error("operation {opcode}: request {unique} has a bad name")]
    Name {
        /// The operation.
        opcode: u32,
        /// The request's number, for the answer.
        unique: u64,
    },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request's number; the reply carries it.
    pub unique: u64,
    /// The inode.
    pub node: u64,
    /// The caller's user id on this file system, as the mounter's user namespace sees it.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// The calling *thread's* id in the mounter's pid namespace; 0 where it has none, and for
    /// RELEASE.
    pub tid: u32,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub header: Header,
    /// For what.
    pub op: Op<'a>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Op<'a> {
    /// The session begins; `flags` holds `flags2` in its upper half.
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    /// The CUSE session begins.
    CuseInit {
        major: u32,
        minor: u32,
        flags: u32,
    },
    /// `header.node` is the directory.
    Lookup {
        name: &'a [u8],
    },
    /// The kernel dropped `lookups` references. No reply.
    Forget {
        lookups: u64,
    },
    /// Several at once. No reply.
    BatchForget(Forgets<'a>),
    Getattr {
        fh: Option<u64>,
    },
    Setattr,
    Open {
        flags: u32,
    },
    Read(Read),
    Write {
        fh: u64,
        offset: u64,
        flags: u32,
        data: &'a [u8],
    },
    Statfs,
    /// The last descriptor is closed.
    Release {
        fh: u64,
        flags: u32,
    },
    Fsync {
        fh: u64,
    },
    /// A descriptor, not always the last, is being closed.
    Flush {
        fh: u64,
    },
    Opendir,
    Readdir {
        offset: u64,
        size: u32,
    },
    Releasedir,
    Access {
        mask: u32,
    },
    /// The caller of request `unique` got a signal. No reply is needed.
    Interrupt {
        unique: u64,
    },
    /// The session ends.
    Destroy,
    Ioctl(Ioctl<'a>),
    Poll(Poll),
    /// An operation that this module does not serve.
    Unknown {
        opcode: u32,
    },
}

/// A READ.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The open file.
    pub fh: u64,
    /// Byte offset; 0 for a stream.
    pub offset: u64,
    /// Most bytes to answer with.
    pub size: u32,
    /// The open file's flags now (`O_NONBLOCK` counts).
    pub flags: u32,
}

/// An IOCTL.
#[derive(Clone, Copy, Debug)]
pub struct Ioctl<'a> {
    /// The open file.
    pub fh: u64,
    /// How the caller calls.
    pub flags: IoctlFlags,
    /// The command.
    pub cmd: u32,
    /// The third argument, as it is.
    pub arg: u64,
    /// What the kernel copied from the caller.
    pub input: &'a [u8],
    /// Most bytes of output that the kernel copies back.
    pub out_size: u32,
}

/// A POLL.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// The open file.
    pub fh: u64,
    /// What a notification has to name.
    pub kh: u64,
    /// Whether the kernel waits for a notification.
    pub schedule: bool,
    /// Asked-for `EPOLL*` bits.
    pub events: u32,
}

/// The nodes of a BATCH_FORGET: (node, lookups).
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Each node with the number of lookups to take off.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.chunks_exact(size_of::<proto::ForgetOne>()).filter_map(|bytes| {
            let one = proto::ForgetOne::read_from_bytes(bytes).ok()?;
            Some((one.nodeid, one.nlookup))
        })
    }
}

/// What is left of a message, with the error that running out of it is.
struct Body<'a> {
    bytes: &'a [u8],
    short: ParseError,
}

impl<'a> Body<'a> {
    fn take<T: FromBytes>(&mut self) -> Result<T, ParseError> {
        let (message, rest) = T::read_from_prefix(self.bytes).map_err(|_| self.short)?;
        self.bytes = rest;
        Ok(message)
    }

    fn bytes(&mut self, length: u32) -> Result<&'a [u8], ParseError> {
        let (data, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| self.bytes.split_at_checked(length))
            .ok_or(self.short)?;
        self.bytes = rest;
        Ok(data)
    }
}

impl<'a> Request<'a> {
    /// Reads one request from the whole of what one `read` of the device gave.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let have = bytes.len();
        let length = ParseError::Length { have, want: size_of::<proto::InHeader>() };
        let (raw, rest) = proto::InHeader::read_from_prefix(bytes).map_err(|_| length)?;
        let extensions = usize::from(raw.total_extlen) * 8;
        let body = match usize::try_from(raw.len) {
            Ok(want) if want == have && extensions <= rest.len() => {
                &rest[..rest.len() - extensions]
            }
            _ => return Err(ParseError::Length { have, want: raw.len as usize }),
        };
        let header = Header {
            unique: raw.unique,
            node: raw.nodeid,
            uid: raw.uid,
            gid: raw.gid,
            tid: raw.pid,
        };
        let short = ParseError::Body { opcode: raw.opcode, unique: raw.unique };
        Ok(Self { header, op: Op::parse(&raw, Body { bytes: body, short })? })
    }
}

impl<'a> Op<'a> {
    fn parse(header: &proto::InHeader, mut body: Body<'a>) -> Result<Self, ParseError> {
        Ok(match header.opcode {
            opcode::INIT => {
                let init: proto::InitIn = body.take()?;
                let high = body.take::<u32>().unwrap_or(0);
                Self::Init {
                    major: init.major,
                    minor: init.minor,
                    max_readahead: init.max_readahead,
                    flags: u64::from(init.flags) | u64::from(high) << 32,
                }
            }
            opcode::CUSE_INIT => {
                let init: proto::CuseInitIn = body.take()?;
                Self::CuseInit { major: init.major, minor: init.minor, flags: init.flags }
            }
            opcode::LOOKUP => Self::Lookup { name: name(header, body.bytes)? },
            opcode::FORGET => Self::Forget { lookups: body.take::<proto::ForgetIn>()?.nlookup },
            opcode::BATCH_FORGET => {
                let count = body.take::<proto::BatchForgetIn>()?.count;
                let length = count.checked_mul(size_of::<proto::ForgetOne>() as u32);
                Self::BatchForget(Forgets(body.bytes(length.ok_or(body.short)?)?))
            }
            opcode::GETATTR => {
                let get: proto::GetattrIn = body.take()?;
                Self::Getattr { fh: (get.getattr_flags & 1 != 0).then_some(get.fh) }
            }
            opcode::SETATTR => Self::Setattr,
            opcode::OPEN => Self::Open { flags: body.take::<proto::OpenIn>()?.flags },
            opcode::READ => {
                let read: proto::ReadIn = body.take()?;
                let proto::ReadIn { fh, offset, size, flags, .. } = read;
                Self::Read(Read { fh, offset, size, flags })
            }
            opcode::WRITE => {
                let write: proto::WriteIn = body.take()?;
                let proto::WriteIn { fh, offset, flags, .. } = write;
                Self::Write { fh, offset, flags, data: body.bytes(write.size)? }
            }
            opcode::STATFS => Self::Statfs,
            opcode::RELEASE => {
                let release: proto::ReleaseIn = body.take()?;
                Self::Release { fh: release.fh, flags: release.flags }
            }
            opcode::FSYNC => Self::Fsync { fh: body.take()? },
            opcode::FLUSH => Self::Flush { fh: body.take::<proto::FlushIn>()?.fh },
            opcode::OPENDIR => Self::Opendir,
            opcode::READDIR => {
                let read: proto::ReadIn = body.take()?;
                Self::Readdir { offset: read.offset, size: read.size }
            }
            opcode::RELEASEDIR => Self::Releasedir,
            opcode::ACCESS => Self::Access { mask: body.take()? },
            opcode::INTERRUPT => {
                Self::Interrupt { unique: body.take::<proto::InterruptIn>()?.unique }
            }
            opcode::DESTROY => Self::Destroy,
            opcode::IOCTL => {
                let ioctl: proto::IoctlIn = body.take()?;
                Self::Ioctl(Ioctl {
                    fh: ioctl.fh,
                    flags: IoctlFlags::from_bits_retain(ioctl.flags),
                    cmd: ioctl.cmd,
                    arg: ioctl.arg,
                    input: body.bytes(ioctl.in_size)?,
                    out_size: ioctl.out_size,
                })
            }
            opcode::POLL => {
                let poll: proto::PollIn = body.take()?;
                let proto::PollIn { fh, kh, flags, events } = poll;
                let schedule = flags & proto::POLL_SCHEDULE_NOTIFY != 0;
                Self::Poll(Poll { fh, kh, schedule, events })
            }
            opcode => Self::Unknown { opcode },
        })
    }
}

/// A name with its zero, without the zero.
fn name<'a>(header: &proto::InHeader, bytes: &'a [u8]) -> Result<&'a [u8], ParseError> {
    let bad = ParseError::Name { opcode: header.opcode, unique: header.unique };
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(bad)?;
    match &bytes[..end] {
        [] => Err(bad),
        name if name.contains(&b'/') => Err(bad),
        name => Ok(name),
    }
}
