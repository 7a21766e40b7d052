//! Takes a program down, and looks at what it leaves.

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;
use zerocopy::IntoBytes;

use super::super::arena::{DEVICE, FILE, PAGE, PAGES, PRIVATE, SHARED};
use super::super::machine::{FIRST_DESCRIPTOR, Machine, OWN_DESCRIPTORS};
use super::super::reply::{Reply, number};
use super::super::step::{Argument, Call, Place, Range, Step, Value};
use super::pasids::Pasids;

/// Ids that are tried at the end; programs make fewer objects.
const IDS: u32 = 1000;

/// A command on a descriptor, by itself.
fn command(fd: u64, command: Command, bytes: &[u8]) -> Call {
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

/// Takes everything down and looks at what is left. Where devices with attached PASIDs are not to be
/// destroyed, `pasids` are detached first.
pub(super) fn end(
    machine: &mut Machine,
    played: &[(Step, Reply)],
    pasids: Option<&Pasids>,
) -> Result<(), String> {
    let mut number_of = 1_000_000;
    let mut call = |machine: &mut Machine, call: Call| {
        number_of += 1;
        machine.play(&Step { number: number_of, call })
    };
    let mut contexts: Vec<u64> = played
        .iter()
        .filter(|(step, reply)| matches!(step.call, Call::Open { .. }) && reply.ok())
        .map(|(_, reply)| reply.result as u64)
        .collect();
    // A thread may have closed one, and its number be another file's.
    contexts.retain(|&fd| {
        let nothing = iommu_destroy { size: 8, id: 0 };
        let reply = call(machine, command(fd, Command::Destroy, nothing.as_bytes()));
        reply.errno() == Some(nix::errno::Errno::ENOENT)
    });
    // What is mapped of an iommufd holds objects, too.
    call(machine, Call::Munmap(Range { at: DEVICE, len: 16 * PAGE }));
    // Accesses and event queues hold objects: their descriptors go first, whoever has them.
    for fd in FIRST_DESCRIPTOR..OWN_DESCRIPTORS {
        if !contexts.contains(&fd.into()) {
            call(machine, Call::Close { fd: Value::from(fd) });
        }
    }
    for &fd in &contexts {
        for (id, pasid) in pasids.map_or(Vec::new(), Pasids::all) {
            let mut detach = iommu_test_cmd { size: 72, id, ..Default::default() };
            detach.op = IOMMU_TEST_OP_PASID_DETACH;
            detach.set_body(&iommu_test_pasid_detach { pasid });
            call(machine, command(fd, Command::Test, detach.as_bytes()));
        }
        // What cannot be destroyed yet is tried again, as long as anything else goes.
        let mut busy: Vec<u32> = (1..IDS).collect();
        let mut unmapped = false;
        loop {
            let mut destroyed = false;
            busy.retain(|&id| {
                let destroy = iommu_destroy { size: 8, id };
                let reply = call(machine, command(fd, Command::Destroy, destroy.as_bytes()));
                destroyed |= reply.ok();
                let gone = [nix::errno::Errno::ENOENT, nix::errno::Errno::EBADF];
                reply.errno().is_some_and(|errno| !gone.contains(&errno))
            });
            if !destroyed && unmapped {
                break;
            }
            if !destroyed {
                // An area keeps the file that it maps: that of an access, perhaps, which is attached to
                // this very IOAS.
                unmapped = true;
                for &ioas_id in &busy {
                    let all = iommu_ioas_unmap { size: 24, ioas_id, iova: 0, length: u64::MAX };
                    call(machine, command(fd, Command::IoasUnmap, all.as_bytes()));
                }
            }
        }
        if !busy.is_empty() {
            return Err(format!("objects that nothing uses cannot be destroyed: {busy:?}"));
        }
        let alloc = iommu_ioas_alloc { size: 12, ..Default::default() };
        let reply = call(machine, command(fd, Command::IoasAlloc, alloc.as_bytes()));
        if reply.ok() && number(&reply.after, 8, 4) != 1 {
            return Err(format!("the first id after all is {}", number(&reply.after, 8, 4)));
        }
        call(machine, Call::Close { fd: Value::from(fd) });
    }
    pins(machine, &mut call)
}

/// No page of the program is pinned.
fn pins(
    machine: &mut Machine,
    call: &mut dyn FnMut(&mut Machine, Call) -> Reply,
) -> Result<(), String> {
    let fd = call(machine, Call::Open { flags: libc::O_RDWR });
    for region in [PRIVATE, SHARED, FILE] {
        for page in 0..PAGES {
            let mut check = iommu_test_cmd { size: 72, ..Default::default() };
            check.op = IOMMU_TEST_OP_MD_CHECK_REFS;
            let uptr = region + page * PAGE;
            check.set_body(&iommu_test_check_refs { length: PAGE, uptr, refs: 0, __pad: 0 });
            let reply = call(machine, command(fd.result as u64, Command::Test, check.as_bytes()));
            // What the program unmapped or forbade cannot be looked at.
            if reply.errno() == Some(nix::errno::Errno::EIO) {
                return Err(format!("the page at {uptr:#x} is still pinned"));
            }
        }
    }
    Ok(())
}
