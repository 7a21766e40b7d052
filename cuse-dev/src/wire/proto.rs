//! The messages of `<linux/fuse.h>` (protocol 7.x, 64-bit layout), in the header's own names.
//!
//! Nothing but layouts and values. A message is copied out of, or into, a buffer whole, so no
//! alignment is asked of the buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's major version.
pub const KERNEL_VERSION: u32 = 7;
/// The minor version whose messages are here. A kernel with a lower one is served as it asks,
/// from [`KERNEL_MINOR_MIN`] on.
pub const KERNEL_MINOR_VERSION: u32 = 46;
/// Linux 3.15's: from it on every message below has today's size.
pub const KERNEL_MINOR_MIN: u32 = 23;
/// The root's node id.
pub const ROOT_ID: u64 = 1;
/// The least a reader's buffer may hold.
pub const MIN_READ_BUFFER: usize = 8192;
/// Most iovecs that an ioctl may ask for by `FUSE_IOCTL_RETRY`, both directions together.
pub const IOCTL_MAX_IOV: usize = 256;
/// `_IOR(229, 0, uint32_t)`: makes this descriptor another channel of the named one's session.
pub const DEV_IOC_CLONE: u64 = 0x8004_e500;

/// Operation codes, `enum fuse_opcode`.
#[allow(missing_docs)]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const ACCESS: u32 = 34;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const CUSE_INIT: u32 = 4096;
}

/// `FUSE_NOTIFY_POLL`, sent in the place of an error with unique 0.
pub const NOTIFY_POLL: i32 = 1;

bitflags::bitflags! {
    /// `FUSE_*` flags of INIT; the upper half travels in `flags2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InitFlags: u64 {
        /// The handler sees `O_TRUNC`; no SETATTR precedes the open.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// Writes may be larger than a page.
        const BIG_WRITES = 1 << 5;
        /// Lookups of one directory may run at the same time.
        const PARALLEL_DIROPS = 1 << 18;
        /// `max_pages` of the reply counts.
        const MAX_PAGES = 1 << 22;
        /// `flags2` counts.
        const INIT_EXT = 1 << 30;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// `FOPEN_*`: how the kernel treats one open file.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// Every read and write reaches the handler.
        const DIRECT_IO = 1 << 0;
        /// Seeks give `ESPIPE`.
        const NONSEEKABLE = 1 << 2;
        /// No file position at all.
        const STREAM = 1 << 4;
        /// Nothing to write back at close (FLUSH still comes).
        const NOFLUSH = 1 << 5;
        /// Writes of one file may run at the same time.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

impl OpenFlags {
    /// A file that behaves as an anonymous inode with `read`, `write` and `poll` does.
    pub const EVENT_FILE: Self =
        Self::DIRECT_IO.union(Self::NONSEEKABLE).union(Self::STREAM).union(Self::NOFLUSH);
}

bitflags::bitflags! {
    /// `FUSE_IOCTL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IoctlFlags: u32 {
        /// The caller is a 32-bit program on a 64-bit kernel.
        const COMPAT = 1 << 0;
        /// Any command may ask for copies by RETRY (CUSE).
        const UNRESTRICTED = 1 << 1;
        /// In a reply: ask again, with these iovecs copied.
        const RETRY = 1 << 2;
        /// The caller's words are 32 bits.
        const IS_32BIT = 1 << 3;
        /// The file is a directory.
        const DIR = 1 << 4;
        /// An x32 caller.
        const COMPAT_X32 = 1 << 5;
        const _ = !0;
    }
}

/// `CUSE_UNRESTRICTED_IOCTL`.
pub const CUSE_UNRESTRICTED_IOCTL: u32 = 1;
/// `FUSE_POLL_SCHEDULE_NOTIFY`: the kernel wants a notification for this poll.
pub const POLL_SCHEDULE_NOTIFY: u32 = 1;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident [$size:literal] { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

messages! {
    /// `struct fuse_in_header`: opens every request. `pid` is the calling thread's id in the
    /// mounter's pid namespace, 0 where there is none.
    InHeader [40] {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// `struct fuse_out_header`: opens every reply.
    OutHeader [16] { len: u32, error: i32, unique: u64, }
    /// `struct fuse_attr`.
    Attr [88] {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// `struct fuse_entry_out`.
    EntryOut [128] {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// `struct fuse_attr_out`.
    AttrOut [104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// `struct fuse_forget_in`.
    ForgetIn [8] { nlookup: u64, }
    /// `struct fuse_batch_forget_in`.
    BatchForgetIn [8] { count: u32, dummy: u32, }
    /// `struct fuse_forget_one`.
    ForgetOne [16] { nodeid: u64, nlookup: u64, }
    /// `struct fuse_open_in`.
    OpenIn [8] { flags: u32, open_flags: u32, }
    /// `struct fuse_open_out`.
    OpenOut [16] { fh: u64, open_flags: u32, backing_id: i32, }
    /// `struct fuse_release_in`.
    ReleaseIn [24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `struct fuse_flush_in`.
    FlushIn [24] { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// `struct fuse_read_in`.
    ReadIn [40] {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// `struct fuse_write_in`.
    WriteIn [40] {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// `struct fuse_write_out`.
    WriteOut [8] { size: u32, padding: u32, }
    /// `struct fuse_kstatfs`.
    StatfsOut [80] {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `struct fuse_init_in` up to `flags`: what a kernel before 7.36 sends.
    InitIn [16] { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// `struct fuse_init_out`.
    InitOut [64] {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16,
        unused: [u16; 11],
    }
    /// `struct cuse_init_in`.
    CuseInitIn [16] { major: u32, minor: u32, unused: u32, flags: u32, }
    /// `struct cuse_init_out`, followed by `DEVNAME=...` and its zero.
    CuseInitOut [72] {
        major: u32, minor: u32, unused: u32, flags: u32, max_read: u32, max_write: u32,
        dev_major: u32, dev_minor: u32, spare: [u32; 10],
    }
    /// `struct fuse_interrupt_in`.
    InterruptIn [8] { unique: u64, }
    /// `struct fuse_ioctl_in`.
    IoctlIn [32] { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    /// `struct fuse_ioctl_iovec`.
    IoctlIovec [16] { base: u64, len: u64, }
    /// `struct fuse_ioctl_out`.
    IoctlOut [16] { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    /// `struct fuse_poll_in`.
    PollIn [24] { fh: u64, kh: u64, flags: u32, events: u32, }
    /// `struct fuse_poll_out`.
    PollOut [8] { revents: u32, padding: u32, }
    /// `struct fuse_notify_poll_wakeup_out`.
    NotifyPollOut [8] { kh: u64, }
    /// `struct fuse_getattr_in`.
    GetattrIn [16] { getattr_flags: u32, dummy: u32, fh: u64, }
}
