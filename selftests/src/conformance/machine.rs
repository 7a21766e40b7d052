//! Carries out calls with real system calls.
#![allow(unsafe_code)] // The system calls under test take raw pointers, bad ones on purpose.

use std::collections::HashMap;
use std::ffi::CStr;

use nix::errno::Errno;

use super::arena::{self, Arena, PAGE, STRUCT, STRUCT_PAGES, STRUCT_SPACING};
use super::reply::Reply;
use super::step::{Argument, Call, Patch, Place, Poke, Step, Value};
use super::{process, rules};

/// The first descriptor that a program may have: those below are the same in every worker.
pub(super) const FIRST_DESCRIPTOR: u32 = 3;
/// From here on descriptors belong to the worker.
pub(super) const OWN_DESCRIPTORS: u32 = 200;

/// What programs are played on.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The iommufd.
    pub node: &'static CStr,
    /// Whether programs may have huge pages. Where the other side's kernel has none, they may not.
    pub huge_pages: bool,
}

/// A program that runs.
#[derive(Debug)]
pub struct Machine {
    device: Device,
    replies: HashMap<u32, Reply>,
    /// Where its structs lie.
    structs: u64,
    _arena: Option<Arena>,
}

fn result(value: i64) -> i64 {
    if value == -1 { -i64::from(Errno::last() as i32) } else { value }
}

/// Closes what programs of this process have open.
pub(super) fn close_all() {
    // SAFETY: descriptors from FIRST_DESCRIPTOR to OWN_DESCRIPTORS are programs'; nothing of Rust owns
    // any.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST_DESCRIPTOR, OWN_DESCRIPTORS - 1, 0_u32) };
}

impl Machine {
    /// A fresh program on `device`. What an earlier one left in this process goes away.
    pub fn new(device: Device) -> Result<Self, Errno> {
        close_all();
        process::restore();
        Ok(Self { device, replies: HashMap::new(), structs: STRUCT, _arena: Some(Arena::new()?) })
    }

    /// A machine for another thread of the same program: what it is to do at the same time must
    /// not put its structs into the same place.
    pub(super) fn branch(&self, thread: u64) -> Self {
        let (device, replies) = (self.device, self.replies.clone());
        let structs = STRUCT + thread * STRUCT_SPACING;
        Self { device, replies, structs, _arena: None }
    }

    /// Carries out a step; what it answered by the rules of what can be compared.
    pub fn play(&mut self, step: &Step) -> Reply {
        let mut reply = self.call(&step.call);
        rules::apply(&step.call, &mut reply);
        self.replies.insert(step.number, reply.clone());
        reply
    }

    fn value(&self, value: &Value) -> u64 {
        value
            .from
            .and_then(|(step, source)| {
                let reply = self.replies.get(&step)?;
                reply.ok().then(|| reply.value(source))
            })
            .unwrap_or(value.literal)
    }

    fn patched(&self, bytes: &[u8], patches: &[Patch]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for patch in patches {
            let (at, width) = (patch.offset as usize, patch.width as usize);
            let word = self.value(&patch.value).to_le_bytes();
            if let Some(field) = bytes.get_mut(at..at + width) {
                field.copy_from_slice(&word[..width]);
            }
        }
        bytes
    }

    fn poke(&self, poke: &Poke) {
        arena::put(poke.at, &self.patched(&poke.bytes, &poke.patches));
    }

    fn call(&mut self, call: &Call) -> Reply {
        match call {
            Call::Ioctl { fd, request, argument, pokes, watch } => {
                pokes.iter().for_each(|poke| self.poke(poke));
                let mut reply = self.ioctl(self.value(fd) as i32, *request, argument);
                reply.seen = watch.iter().map(|range| arena::get(range.at, range.len)).collect();
                reply
            }
            Call::Look(range) => {
                Reply { seen: vec![arena::get(range.at, range.len)], ..Reply::default() }
            }
            Call::Child(calls) => process::in_child(|| {
                calls
                    .iter()
                    .map(|call| {
                        let mut reply = self.call(call);
                        rules::apply(call, &mut reply);
                        reply
                    })
                    .collect()
            }),
            Call::Capability { number, raised } => process::capability(*number, *raised),
            Call::LimitLockedMemory { bytes } => process::limit_locked_memory(*bytes),
            Call::Read { fd, at, len } => {
                arena::put(*at, &vec![0; *len as usize]);
                // SAFETY: the kernel writes to the arena or fails.
                let got = result(unsafe {
                    libc::read(self.value(fd) as i32, *at as *mut _, *len as usize)
                } as i64);
                Reply { seen: vec![arena::get(*at, *len)], ..Reply::of(got) }
            }
            Call::Write { fd, poke, len } => {
                self.poke(poke);
                // SAFETY: the kernel reads the arena or fails.
                Reply::of(result(unsafe {
                    libc::write(self.value(fd) as i32, poke.at as *const _, *len as usize)
                } as i64))
            }
            Call::Mmap { at, len, flags, .. } => {
                // Else a call that fails may or may not have unmapped what was there: kernels may
                // look at the file before or after that.
                // SAFETY: the program's memory, in which nothing of Rust lies.
                unsafe { libc::munmap(*at as *mut _, *len as usize) };
                if flags & libc::MAP_HUGETLB != 0 && !self.device.huge_pages {
                    return Reply::of(-i64::from(libc::ENOMEM));
                }
                Reply::of(result(self.plain(call)))
            }
            Call::Poll { fd, events } => {
                let fd = self.value(fd) as i32;
                let mut poll = libc::pollfd { fd, events: *events, revents: 0 };
                // SAFETY: one pollfd.
                let ready = result(unsafe { libc::poll(&mut poll, 1, 0) }.into());
                Reply { seen: vec![poll.revents.to_le_bytes().to_vec()], ..Reply::of(ready) }
            }
            plain => Reply::of(result(self.plain(plain))),
        }
    }

    /// Calls that are one system call of numbers.
    fn plain(&self, call: &Call) -> i64 {
        // SAFETY: all descriptors, and all memory at these addresses, are the program's: nothing of
        // Rust uses them.
        unsafe {
            match call {
                Call::Open { flags } => {
                    libc::open(self.device.node.as_ptr(), flags | libc::O_CLOEXEC).into()
                }
                Call::Close { fd } => match self.value(fd) as i32 {
                    fd if (FIRST_DESCRIPTOR as i32..OWN_DESCRIPTORS as i32).contains(&fd) => {
                        libc::close(fd).into()
                    }
                    _ => 0,
                },
                Call::Dup { fd } => libc::dup(self.value(fd) as i32).into(),
                Call::Mmap { fd, at, len, prot, flags, offset } => libc::mmap(
                    *at as *mut _,
                    *len as usize,
                    *prot,
                    flags | libc::MAP_FIXED,
                    self.value(fd) as i32,
                    self.value(offset) as i64,
                ) as i64,
                Call::Munmap(range) => libc::munmap(range.at as *mut _, range.len as usize).into(),
                Call::Protect { range, prot } => {
                    libc::mprotect(range.at as *mut _, range.len as usize, *prot).into()
                }
                Call::Memfd { len, flags } => {
                    let fd = libc::memfd_create(c"program".as_ptr(), flags | libc::MFD_CLOEXEC);
                    if fd >= 0 {
                        libc::ftruncate(fd, *len as i64);
                    }
                    fd.into()
                }
                Call::Truncate { fd, len } => {
                    libc::ftruncate(self.value(fd) as i32, *len as i64).into()
                }
                _ => 0,
            }
        }
    }

    fn ioctl(&self, fd: i32, request: u32, argument: &Argument) -> Reply {
        let (at, bytes, place) = match argument {
            Argument::Value(value) => (*value, Vec::new(), Place::Guarded),
            Argument::Struct { bytes, patches, place } => {
                let bytes = self.patched(bytes, patches);
                let cut = if let Place::Cut(cut) = place { u64::from(*cut) } else { 0 };
                let end = self.structs + STRUCT_PAGES * PAGE + cut.min(bytes.len() as u64);
                (end - bytes.len() as u64, bytes, *place)
            }
        };
        let there = match place {
            Place::Cut(cut) => bytes.len().saturating_sub(cut.into()),
            Place::Guarded | Place::ReadOnly => bytes.len(),
        };
        arena::put(at, &bytes[..there]);
        let protect = |prot| {
            if place == Place::ReadOnly {
                // SAFETY: the arena's memory.
                unsafe {
                    libc::mprotect(self.structs as *mut _, (STRUCT_PAGES * PAGE) as usize, prot)
                };
            }
        };
        protect(libc::PROT_READ);
        let before = rules::opens_quietly(request, &bytes).then(process::lowest_free_descriptor);
        // SAFETY: the kernel works on the arena, where nothing of Rust lies, or fails.
        let value = result(unsafe { libc::ioctl(fd, request.into(), at) }.into());
        let descriptor = before.filter(|&fd| process::is_open(fd));
        protect(libc::PROT_READ | libc::PROT_WRITE);
        let after = if there == 0 { Vec::new() } else { arena::get(at, there as u64) };
        Reply { result: value, after, descriptor, ..Reply::default() }
    }
}
