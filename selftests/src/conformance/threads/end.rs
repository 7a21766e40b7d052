//! Takes a program down, and looks at what it leaves.

use std::mem::offset_of;

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;
use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::super::arena::{DEVICE, FILE, PAGE, PAGES, PRIVATE, SHARED};
use super::super::machine::{FIRST_DESCRIPTOR, Machine, OWN_DESCRIPTORS};
use super::super::reply::{Reply, number};
use super::super::step::{Argument, Call, Place, Range, Step, Value};
use super::balance;
use super::pasids::Pasids;

/// Ids that are tried at the end; programs make fewer objects.
const IDS: u32 = 1000;

/// A command on a descriptor, by itself.
pub(super) fn command(fd: u64, command: Command, bytes: &[u8]) -> Call {
    Call::Ioctl {
        fd: Value::from(fd),
        request: command.info().ioctl,
        argument: Argument::Struct {
            bytes: bytes.to_vec(),
            patches: Vec::new(),
            place: Place::Guarded,
        },
        pokes: Vec::new(),
        watch: Vec::new(),
    }
}

/// Makes calls on one context after another, to see what the program left of it.
struct Undertaker<'a> {
    machine: &'a mut Machine,
    number: u32,
}

impl Undertaker<'_> {
    fn call(&mut self, call: Call) -> Reply {
        self.number += 1;
        self.machine.play(&Step { number: self.number, call })
    }

    /// Destroys what can be destroyed of `ids`, which are those that are left afterwards; whether any was.
    fn destroy(&mut self, fd: u64, ids: &mut Vec<u32>) -> bool {
        let mut any = false;
        ids.retain(|&id| {
            let destroy = iommu_destroy { size: 8, id };
            let reply = self.call(command(fd, Command::Destroy, destroy.as_bytes()));
            any |= reply.ok();
            reply.errno().is_some_and(|errno| !matches!(errno, Errno::ENOENT | Errno::EBADF))
        });
        any
    }

    /// Unmaps all of an IOAS: how many bytes that were.
    fn unmap(&mut self, fd: u64, ioas_id: u32) -> Result<u64, Errno> {
        let all = iommu_ioas_unmap { size: 24, ioas_id, iova: 0, length: u64::MAX };
        let reply = self.call(command(fd, Command::IoasUnmap, all.as_bytes()));
        match reply.errno() {
            None => Ok(reply.out(offset_of!(iommu_ioas_unmap, length), 8)),
            Some(Errno::ENOENT) => Ok(0),
            Some(errno) => Err(errno),
        }
    }
}

/// Takes everything down and looks at what is left. Where devices with attached PASIDs are not to be
/// destroyed, `pasids` are detached first.
pub(super) fn end(
    machine: &mut Machine,
    played: &[(Step, Reply)],
    pasids: Option<&Pasids>,
) -> Result<(), String> {
    let mut undertaker = Undertaker { machine, number: 1_000_000 };
    let mut contexts: Vec<u64> = played
        .iter()
        .filter(|(step, reply)| matches!(step.call, Call::Open { .. }) && reply.ok())
        .map(|(_, reply)| reply.result as u64)
        .collect();
    // A thread may have closed one, and its number be another file's.
    contexts.retain(|&fd| {
        let nothing = iommu_destroy { size: 8, id: 0 };
        let reply = undertaker.call(command(fd, Command::Destroy, nothing.as_bytes()));
        reply.errno() == Some(Errno::ENOENT)
    });
    // What is mapped of an iommufd holds objects, too.
    undertaker.call(Call::Munmap(Range { at: DEVICE, len: 16 * PAGE }));
    // Accesses and event queues hold objects: their descriptors go first, whoever has them.
    for fd in FIRST_DESCRIPTOR..OWN_DESCRIPTORS {
        if !contexts.contains(&fd.into()) {
            undertaker.call(Call::Close { fd: Value::from(fd) });
        }
    }
    let mapped = balance::mapped(played);
    for &fd in &contexts {
        for (id, pasid) in pasids.map_or(Vec::new(), Pasids::all) {
            let mut detach = iommu_test_cmd { size: 72, id, ..Default::default() };
            detach.op = IOMMU_TEST_OP_PASID_DETACH;
            detach.set_body(&iommu_test_pasid_detach { pasid });
            undertaker.call(command(fd, Command::Test, detach.as_bytes()));
        }
        // What cannot be destroyed yet is tried again, as long as anything else goes.
        let mut others: Vec<u32> = (1..IDS).filter(|id| !mapped.contains_key(id)).collect();
        while undertaker.destroy(fd, &mut others) {}
        for (&id, bytes) in &mapped {
            match undertaker.unmap(fd, id) {
                Ok(found) if bytes.contains(&found.into()) => {}
                found => {
                    let why =
                        format!("{bytes:x?} bytes should be mapped in IOAS {id}, not {found:x?}");
                    return Err(why);
                }
            }
        }
        // An area keeps the file that it maps: that of an access, perhaps, which is attached to this
        // very IOAS.
        for &id in &others {
            let _ = undertaker.unmap(fd, id);
        }
        let mut busy: Vec<u32> = (1..IDS).collect();
        while undertaker.destroy(fd, &mut busy) {}
        if !busy.is_empty() {
            return Err(format!("objects that nothing uses cannot be destroyed: {busy:?}"));
        }
        let alloc = iommu_ioas_alloc { size: 12, ..Default::default() };
        let reply = undertaker.call(command(fd, Command::IoasAlloc, alloc.as_bytes()));
        if reply.ok() && number(&reply.after, 8, 4) != 1 {
            return Err(format!("the first id after all is {}", number(&reply.after, 8, 4)));
        }
        undertaker.call(Call::Close { fd: Value::from(fd) });
    }
    pins(&mut undertaker)
}

/// No page of the program is pinned.
fn pins(undertaker: &mut Undertaker<'_>) -> Result<(), String> {
    let fd = undertaker.call(Call::Open { flags: libc::O_RDWR });
    for region in [PRIVATE, SHARED, FILE] {
        for page in 0..PAGES {
            let mut check = iommu_test_cmd { size: 72, ..Default::default() };
            check.op = IOMMU_TEST_OP_MD_CHECK_REFS;
            let uptr = region + page * PAGE;
            check.set_body(&iommu_test_check_refs { length: PAGE, uptr, refs: 0, __pad: 0 });
            let reply = undertaker.call(command(fd.result as u64, Command::Test, check.as_bytes()));
            // What the program unmapped or forbade cannot be looked at.
            if reply.errno() == Some(Errno::EIO) {
                return Err(format!("the page at {uptr:#x} is still pinned"));
            }
        }
    }
    Ok(())
}
