//! What programs do beside calling: memory that changes under a mapping, descriptors that go,
//! children, limits.

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;

use super::super::arena::{self, PAGE, PAGES};
use super::super::rng::Rng;
use super::super::step::{Call, Range, Source, Value};
use super::draft::Draft;
use super::state::{Kind, State};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (4, look),
    (2, unmap_memory),
    (2, remap_memory),
    (3, protect),
    (1, huge_pages),
    (3, file),
    (1, truncate),
    (2, child),
    (2, limit),
    (2, capability),
    (2, rlimit_mode),
    (1, second_context),
    (2, switch),
    (1, close_context),
    (1, duplicate),
];

/// Looks at the caller's memory, where devices may have written.
pub(super) fn look(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (at, most) = state.memory(rng);
    Some(Call::Look(Range { at, len: most.min(2 * PAGE) }).into())
}

/// A part of one of the first three regions.
fn pages(rng: &mut Rng) -> Range {
    let region = *rng.pick(&[arena::SHARED, arena::SHARED, arena::FILE, arena::PRIVATE]);
    let (page, number) = (rng.below(PAGES), 1 + rng.below(4));
    Range { at: region + page * PAGE, len: number.min(PAGES - page) * PAGE }
}

fn unmap_memory(_: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(Call::Munmap(pages(rng)).into())
}

/// Fresh memory where there was some.
fn remap_memory(_: &mut State, rng: &mut Rng) -> Option<Made> {
    let range = pages(rng);
    let private = range.at < arena::SHARED;
    let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
    Some(
        Call::Mmap {
            fd: Value::from(u64::MAX),
            at: range.at,
            len: range.len,
            prot: *rng.pick(&[3, 3, 1]),
            flags: sharing | libc::MAP_ANONYMOUS,
            offset: Value::from(0_u64),
        }
        .into(),
    )
}

fn protect(_: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(Call::Protect { range: pages(rng), prot: *rng.pick(&[0, 1, 3, 3, 3]) }.into())
}

fn huge_pages(_: &mut State, rng: &mut Rng) -> Option<Made> {
    let sharing = *rng.pick(&[libc::MAP_PRIVATE, libc::MAP_SHARED]);
    let call = Call::Mmap {
        fd: Value::from(u64::MAX),
        at: arena::HUGE,
        len: arena::HUGE_PAGE,
        prot: 3,
        flags: sharing | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
        offset: Value::from(0_u64),
    };
    Some(call.then(|state, _, _| state.huge = true))
}

fn file(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.files.len() > 4 {
        return None;
    }
    let len = PAGE * (1 + rng.below(16));
    let call = Call::Memfd { len, flags: *rng.pick(&[0, libc::MFD_ALLOW_SEALING]) };
    Some(call.then(move |state, reply, number| {
        let fd = Value { literal: reply.result as u64, from: Some((number, Source::Result)) };
        state.files.push((fd, len));
    }))
}

fn truncate(state: &mut State, rng: &mut Rng) -> Option<Made> {
    // Not the arena's: a page of it that is gone would be a signal to who looks.
    let (fd, len) = *rng.any(state.files.get(1..)?)?;
    Some(Call::Truncate { fd, len: *rng.pick(&[0, len / 2, len, len + PAGE]) }.into())
}

/// A few calls in a child, which has what its parent has.
fn child(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let mut calls = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let part = *rng.pick(&[
            super::ioas::RECIPES,
            super::ioas::RECIPES,
            super::access::RECIPES,
            super::device::RECIPES,
        ]);
        let weights: Vec<u64> = part.iter().map(|(weight, _)| *weight).collect();
        let recipe = part[super::weighted(&weights, rng)].1;
        if let Some(made) = recipe(state, rng)
            && !matches!(made.call, Call::Child(_))
        {
            calls.push(made.call);
        }
    }
    if rng.chance(30) {
        calls.push(Draft::new(Command::IoasChangeProcess).call(state));
    }
    (!calls.is_empty()).then(|| Call::Child(calls).into())
}

fn limit(_: &mut State, rng: &mut Rng) -> Option<Made> {
    let bytes = PAGE * *rng.pick(&[0, 1, 2, 4, 8, 16, 64, 2048, 2048]);
    Some(Call::LimitLockedMemory { bytes }.into())
}

fn capability(_: &mut State, rng: &mut Rng) -> Option<Made> {
    // CAP_IPC_LOCK and CAP_SYS_RESOURCE.
    Some(Call::Capability { number: *rng.pick(&[14, 14, 24]), raised: rng.chance(40) }.into())
}

fn rlimit_mode(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::new(Command::Option)
            .set("option_id", IOMMU_OPTION_RLIMIT_MODE)
            .set("op", *rng.pick(&[0_u64, 0, 1]))
            .set("val64", *rng.pick(&[0_u64, 1, 1, 2]))
            .call(state)
            .into(),
    )
}

fn second_context(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.contexts.len() > 2 {
        return None;
    }
    if rng.chance(90) {
        return Some(super::open());
    }
    Some(Call::Open { flags: *rng.pick(&[libc::O_RDONLY, libc::O_WRONLY]) }.into())
}

fn switch(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.contexts.len() < 2 {
        return None;
    }
    state.context = rng.below(state.contexts.len() as u64) as usize;
    super::ioas::alloc(state, rng)
}

/// Closes a context that is not the only one; event queues, accesses and mappings outlive it.
fn close_context(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.contexts.len() < 2 || rng.chance(50) {
        let queue = state.any(Kind::Veventq, rng)?.other?;
        return Some(Call::Close { fd: queue }.into());
    }
    let gone = rng.below(state.contexts.len() as u64) as usize;
    let fd = state.contexts.remove(gone);
    state.objects.retain(|object| object.context != gone);
    state.areas.retain(|area| area.context != gone);
    state.accesses.retain(|access| access.context != gone);
    state.pasids.retain(|(context, ..)| *context != gone);
    for object in &mut state.objects {
        object.context -= usize::from(object.context > gone);
    }
    for area in &mut state.areas {
        area.context -= usize::from(area.context > gone);
    }
    for access in &mut state.accesses {
        access.context -= usize::from(access.context > gone);
    }
    for (context, ..) in &mut state.pasids {
        *context -= usize::from(*context > gone);
    }
    state.context = 0;
    Some(Call::Close { fd }.into())
}

fn duplicate(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let fd = match rng.below(3) {
        0 => state.any(Kind::FaultQueue, rng)?.other?,
        1 => state.access(rng)?.fd,
        _ => state.context(),
    };
    Some(Call::Dup { fd }.into())
}
