//! What `softiommu run` asks the daemon whose node its program uses: the ioctls between them.
//!
//! A program's ioctls go from its threads to the node, and the daemon answers them as it answers any
//! caller's. CUSE and FUSE bring no mmap of the node, no read of no bytes, and know nothing of the
//! kernel's fault injection and `VmPin`. `run` sees the program's calls that would need them, and
//! asks the daemon on a descriptor of the same context.
//!
//! They give nobody anything that the descriptor does not give. Who holds an iommufd can map what its
//! context offers, as with the kernel's, and can spoil calls on it by other means than faults; what
//! is pinned of a process is shown to its user, as `/proc/PID/status` would show it. All are
//! `_IO` commands: the kernel copies nothing for them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `_IO('~', number)`: neither iommufd's type nor one that the filter of `run` reports.
const fn io(number: u32) -> u32 {
    0x7e00 | number
}

/// [`Hello`]: who serves, and where its event files are.
pub(crate) const HELLO: u32 = io(1);
/// [`Map`]: answers the number of a descriptor of memory to map.
pub(crate) const MAP: u32 = io(2);
/// [`Fault`]: counts fault sites down in the next call of a thread on this open file.
pub(crate) const FAULT: u32 = io(3);
/// [`Pins`]: what is pinned of a process.
pub(crate) const PINS: u32 = io(4);
/// On an event file: what a read of no bytes answers.
pub(crate) const READ_NOTHING: u32 = io(5);
/// On an event file: what a write of no bytes answers.
pub(crate) const WRITE_NOTHING: u32 = io(6);

/// What [`Hello::version`] is today. Both sides are the same program or speak the same version.
pub(crate) const VERSION: u32 = 1;

/// The daemon's answer to [`HELLO`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Hello {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The device number of the file system of its event files.
    pub(crate) event_major: u32,
    /// See `event_major`.
    pub(crate) event_minor: u32,
}

/// An mmap of the iommufd. `ENXIO`, `EINVAL`, `EPERM`: as the mmap would answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Map {
    /// Bytes into the iommufd.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// `PROT_*`.
    pub(crate) protection: u32,
    /// `MAP_*`.
    pub(crate) flags: u32,
}

/// A thread's count of fault sites, which is in a file as in `/proc/self/fail-nth`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Fault {
    /// A pidfd of the thread. Its id in the caller's pid namespace may be another one.
    pub(crate) thread: i32,
    /// A memfd, open for reading and writing: the number in it is counted down by the call, and
    /// what is left written back before the call returns.
    pub(crate) count: i32,
}

/// What is pinned of a process of the caller's user. `EPERM` of another's.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Pins {
    /// A pidfd of the process.
    pub(crate) process: i32,
    /// Answered: the kernel's own `VmPin` counts them, too.
    pub(crate) shown: u32,
    /// Answered: pages of `VmPin`.
    pub(crate) pinned: u64,
    /// Answered: pages that `VmLck` has more.
    pub(crate) locked: u64,
}
