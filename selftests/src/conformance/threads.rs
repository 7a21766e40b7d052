//! Programs that call on several threads at once.
//!
//! What each call answers then depends on the order, so that two sides cannot be compared. What
//! must hold in any order is checked instead: the program ends; an id is given out again only after
//! its object was destroyed; at the end every object can be destroyed, the next one gets the first
//! id again, and no page of the program is pinned any more.

use std::collections::BTreeMap;

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;
use zerocopy::IntoBytes;

use super::arena::{DEVICE, FILE, PAGE, PAGES, PRIVATE, SHARED};
use super::generator::Generator;
use super::machine::{Device, Machine};
use super::reply::{Reply, number};
use super::rules;
use super::serve::Line;
use super::step::{Argument, Call, Place, Range, Step, Value};

/// Threads that call at once.
const THREADS: u32 = 3;
/// Calls before they begin, which make something to work on.
const BEFORE: u32 = 24;
/// Ids that are tried at the end; programs make fewer objects.
const IDS: u32 = 1000;

/// Calls that are about the process and not about a context, or that only one thread may make.
fn is_shared(call: &Call) -> bool {
    !matches!(
        call,
        Call::Child(_)
            | Call::Capability { .. }
            | Call::LimitLockedMemory { .. }
            | Call::Open { .. }
    )
}

/// Plays the program of a seed; what is wrong with its end, if anything.
pub(super) fn play(device: Device, seed: u64, calls: u32) -> Result<Line, String> {
    let mut machine =
        Machine::new(device).map_err(|errno| format!("the program's memory: {errno}"))?;
    let mut generator = Generator::new(seed, BEFORE);
    let mut played = run(&mut machine, &mut generator);
    let logs: Vec<Vec<(Step, Reply)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS)
            .map(|thread| {
                let mut generator = generator.branch(u64::from(thread), calls);
                let mut machine = machine.branch(thread.into());
                scope.spawn(move || run(&mut machine, &mut generator))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let complete = logs.iter().all(|log| !log.is_empty());
    played.extend(logs.into_iter().flatten());
    let wrong = if complete {
        ids(&played).err().or_else(|| end(&mut machine, &played).err())
    } else {
        Some("a thread panicked".to_owned())
    };
    Ok(Line::Threads { seed, wrong })
}

fn run(machine: &mut Machine, generator: &mut Generator) -> Vec<(Step, Reply)> {
    let mut played = Vec::new();
    while let Some(step) = generator.step() {
        if is_shared(&step.call) || step.number == 0 {
            let reply = machine.play(&step);
            generator.learn(&reply);
            played.push((step, reply));
        } else {
            generator.learn(&Reply::of(-1));
        }
    }
    played
}

/// No id of an IOAS was given out twice without having been destroyed between.
fn ids(played: &[(Step, Reply)]) -> Result<(), String> {
    let mut balance = BTreeMap::<u64, (i64, i64)>::new();
    for (step, reply) in played.iter().filter(|(_, reply)| reply.ok()) {
        match rules::command(&step.call) {
            Some((Command::IoasAlloc, _)) => {
                balance.entry(reply.out(8, 4)).or_default().0 += 1;
            }
            Some((Command::Destroy, _)) => {
                balance.entry(reply.out(4, 4)).or_default().1 += 1;
            }
            _ => {}
        }
    }
    // Programs of one context only: ids of several would be told apart by their descriptors.
    let contexts = played.iter().filter(|(step, _)| matches!(step.call, Call::Open { .. })).count();
    match balance.iter().find(|(_, (made, gone))| *made > gone + 1) {
        Some((id, (made, gone))) if contexts == 1 => {
            Err(format!("id {id} was given to {made} IOASes and destroyed {gone} times"))
        }
        _ => Ok(()),
    }
}

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

/// Takes everything down and looks at what is left.
fn end(machine: &mut Machine, played: &[(Step, Reply)]) -> Result<(), String> {
    let mut number_of = 1_000_000;
    let mut call = |machine: &mut Machine, call: Call| {
        number_of += 1;
        machine.play(&Step { number: number_of, call })
    };
    let contexts: Vec<u64> = played
        .iter()
        .filter(|(step, reply)| matches!(step.call, Call::Open { .. }) && reply.ok())
        .map(|(_, reply)| reply.result as u64)
        .collect();
    // What is mapped of an iommufd holds objects, too.
    call(machine, Call::Munmap(Range { at: DEVICE, len: 16 * PAGE }));
    // Accesses and event queues hold objects: their descriptors go first, whoever has them.
    for fd in 4..super::machine::OWN_DESCRIPTORS {
        if !contexts.contains(&fd.into()) {
            call(machine, Call::Close { fd: Value::from(fd) });
        }
    }
    for &fd in &contexts {
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
