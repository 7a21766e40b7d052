//! Programs that call on several threads at once.
//!
//! What each call answers then depends on the order, so that two sides cannot be compared. What
//! must hold in any order is checked instead: the program ends; an id is given out again only after
//! its object was destroyed; at the end each IOAS has as many bytes mapped as were mapped and not
//! unmapped, every object can be destroyed, the next one gets the first id again, and no page of the
//! program is pinned any more.

mod balance;
mod end;
mod pasids;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ioctl_abi::Command;

use super::generator::Generator;
use super::machine::{Device, Machine};
use super::reply::Reply;
use super::rules;
use super::serve::Line;
use super::step::{Call, Step};
use pasids::Pasids;

/// Threads that call at once.
const THREADS: u32 = 3;
/// Calls before they begin, which make something to work on.
const BEFORE: u32 = 24;

/// What programs are like, beside their seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Calls of each thread.
    pub(super) calls: u32,
    /// Whether mock devices are destroyed while PASIDs of theirs are attached, which leaves objects
    /// behind in Linux 7.3.
    pub(super) attached_pasids: bool,
}

/// What the threads of a program share.
struct Shared {
    /// Calls that began.
    begun: AtomicU64,
    /// `None` where devices are destroyed all the same.
    pasids: Option<Pasids>,
}

/// A call as it was played: when it began, among all of its program, and what it answered.
type Played = (u64, Step, Reply);

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
pub(super) fn play(device: Device, seed: u64, plan: Plan) -> Result<Line, String> {
    let mut machine =
        Machine::new(device).map_err(|errno| format!("the program's memory: {errno}"))?;
    let mut generator = Generator::new(seed, BEFORE);
    let pasids = (!plan.attached_pasids).then(Pasids::default);
    let shared = Shared { begun: AtomicU64::new(0), pasids };
    let mut played = run(&mut machine, &mut generator, &shared);
    let logs: Vec<Vec<Played>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS)
            .map(|thread| {
                let mut generator = generator.branch(u64::from(thread), plan.calls);
                let (mut machine, shared) = (machine.branch(thread.into()), &shared);
                scope.spawn(move || run(&mut machine, &mut generator, shared))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let complete = logs.iter().all(|log| !log.is_empty());
    played.extend(logs.into_iter().flatten());
    played.sort_by_key(|(begun, ..)| *begun);
    let played: Vec<(Step, Reply)> =
        played.into_iter().map(|(_, step, reply)| (step, reply)).collect();
    let wrong = if complete {
        ids(&played).err().or_else(|| end::end(&mut machine, &played, shared.pasids.as_ref()).err())
    } else {
        Some("a thread panicked".to_owned())
    };
    // What led to a bad end; of a good one nobody wants to know.
    let played = if wrong.is_some() { played } else { Vec::new() };
    Ok(Line::Threads { seed, wrong, played })
}

fn run(machine: &mut Machine, generator: &mut Generator, shared: &Shared) -> Vec<Played> {
    let mut played = Vec::new();
    while let Some(step) = generator.step() {
        if !is_shared(&step.call) && step.number > 0 {
            generator.learn(&Reply::of(-1));
            continue;
        }
        let begun = || shared.begun.fetch_add(1, Ordering::Relaxed);
        let reply = match &shared.pasids {
            Some(pasids) => pasids.around(&step.call, || (begun(), machine.play(&step))),
            None => Some((begun(), machine.play(&step))),
        };
        match reply {
            Some((begun, reply)) => {
                generator.learn(&reply);
                played.push((begun, step, reply));
            }
            None => generator.learn(&Reply::of(-1)),
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
