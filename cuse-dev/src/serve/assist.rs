//! Answers `softiommu run` when its program uses this daemon's node: see [`crate::assist`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use engine::caller::{Caller, Process};
use engine::memory::AddressSpace;
use engine::{Errno, Mapping, MmapRequest};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use zerocopy::{FromBytes, IntoBytes};

use super::caller::IoctlCaller;
use super::daemon::Daemon;
use super::opens::Open;
use super::{identify, task};
use crate::assist::{FAULT, Fault, HELLO, Hello, MAP, Map, PINS, Pins, VERSION};
use crate::run::memfd::SharedMemfd;

/// How many threads of one open file may have a count for their next call.
const MOST_COUNTS: usize = 256;

/// What of an open file only [`crate::assist`] needs.
#[derive(Default)]
pub(super) struct Assisted {
    /// What is mapped, and may still be.
    maps: Mutex<Vec<Mapped>>,
    /// Counts of fault sites for the next call of a thread, by its id.
    counts: Mutex<FxHashMap<u32, File>>,
}

/// A region of the iommufd that somebody mapped. Its pages are the memfd's.
struct Mapped {
    offset: u64,
    memfd: SharedMemfd,
    /// Keeps the region's owner from being destroyed.
    _mapping: Mapping,
}

impl Assisted {
    /// Lets go what callers have unmapped since.
    pub(super) fn forget_unmapped(&self) {
        self.maps.lock().retain(|mapped| mapped.memfd.is_open());
    }

    /// Nobody calls any more.
    pub(super) fn close(&self) {
        self.maps.lock().clear();
        self.counts.lock().clear();
    }

    /// The count for this call of the thread `tid`, if it has one.
    pub(super) fn count(&self, tid: u32) -> Option<File> {
        self.counts.lock().remove(&tid)
    }
}

/// Whether `command` is answered here.
pub(super) fn is_ours(command: u32) -> bool {
    [HELLO, MAP, FAULT, PINS].contains(&command)
}

/// Answers `command` with its argument at `at`.
pub(super) fn answer(
    daemon: &Daemon,
    open: &Open,
    caller: &IoctlCaller<'_>,
    command: u32,
    at: u64,
) -> Result<i64, Errno> {
    let memory = caller.memory();
    match command {
        HELLO => {
            let (event_major, event_minor) = daemon.files.device();
            let hello = Hello { version: VERSION, event_major, event_minor };
            memory.write(at, hello.as_bytes())?;
        }
        MAP => map(open, caller, argument(&*memory, at)?)?,
        FAULT => {
            let fault: Fault = argument(&*memory, at)?;
            let thread = pid_of(caller.descriptor(fault.thread)?.as_fd())?;
            let count = caller.descriptor(fault.count)?;
            check_count(count.as_fd())?;
            let mut counts = open.assisted.counts.lock();
            if counts.len() >= MOST_COUNTS && !counts.contains_key(&thread) {
                return Err(Errno::EBUSY);
            }
            counts.insert(thread, count.into());
        }
        PINS => {
            let mut pins: Pins = argument(&*memory, at)?;
            let pid = pid_of(caller.descriptor(pins.process)?.as_fd())?;
            let asker = caller.process().uid();
            let may_ask = |of: Option<u32>| asker == 0 || of == Some(asker);
            if !may_ask(task::uid(pid)) {
                return Err(Errno::EPERM);
            }
            let process = daemon.callers.resolve(pid)?;
            // By now the number may be another's.
            if !may_ask(Some(process.uid())) {
                return Err(Errno::EPERM);
            }
            let totals = daemon.engine.accounts().totals(process.memory().id());
            (pins.pinned, pins.locked) = (totals.pinned, totals.locked);
            pins.shown = process.pins_show().into();
            memory.write(at, pins.as_bytes())?;
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

fn argument<T: FromBytes + IntoBytes>(memory: &dyn AddressSpace, at: u64) -> Result<T, Errno> {
    let mut argument = T::new_zeroed();
    memory.read(at, argument.as_mut_bytes())?;
    Ok(argument)
}

/// Gives the caller a descriptor of the region that it wants to map.
fn map(open: &Open, caller: &IoctlCaller<'_>, map: Map) -> Result<(), Errno> {
    let kind = map.flags as i32 & libc::MAP_TYPE;
    let mapping = open.context.mmap(MmapRequest {
        offset: map.offset,
        length: map.length,
        shared: kind == libc::MAP_SHARED || kind == libc::MAP_SHARED_VALIDATE,
        executable: map.protection as i32 & libc::PROT_EXEC != 0,
    })?;
    let given = {
        let mut maps = open.assisted.maps.lock();
        match maps.iter().find(|mapped| mapped.offset == map.offset) {
            Some(mapped) => mapped.memfd.open(OFlag::O_RDWR)?,
            None => {
                let memfd = SharedMemfd::new(c"iommufd")?;
                mapping.memory().place(memfd.file().as_fd(), 0)?;
                let given = memfd.open(OFlag::O_RDWR)?;
                maps.push(Mapped { offset: map.offset, memfd, _mapping: mapping });
                given
            }
        }
    };
    caller.hand_over(given.as_fd())
}

/// The id, as we see it, of the thread or process that a pidfd of the caller's names.
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let info = info.map_err(|_| Errno::EBADF)?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::EBADF)?;
    // -1 for one that is gone, 0 for one in a namespace that we do not see.
    pid.trim().parse().ok().filter(|&pid| pid != 0).ok_or(Errno::ESRCH)
}

/// A count is memory: no read or write of it waits for anybody, or does more than the caller could.
fn check_count(count: BorrowedFd<'_>) -> Result<(), Errno> {
    let shown = identify::of(count)?;
    let flags = OFlag::from_bits_retain(fcntl(count, FcntlArg::F_GETFL)?);
    let usable = flags & (OFlag::O_ACCMODE | OFlag::O_APPEND) == OFlag::O_RDWR;
    let in_memory = shown.kind == libc::S_IFREG
        && !identify::is_remote(count)
        && fstatfs(count)?.filesystem_type() == TMPFS_MAGIC;
    if usable && in_memory { Ok(()) } else { Err(Errno::EINVAL) }
}
