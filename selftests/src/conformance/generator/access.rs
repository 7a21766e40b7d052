//! Accesses: in-kernel users that pin and touch what an IOAS maps.

use ioctl_abi::selftest::*;

use super::super::arena::BUFFER;
use super::super::rng::Rng;
use super::super::step::Call;
use super::draft::Draft;
use super::state::{Access, Area, Pinned, State, out};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (5, create),
    (12, pages),
    (8, release),
    (16, read_write),
    (4, replace),
    (2, close),
    (3, super::process::look),
];

pub(super) fn create(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = super::ioas::ioas(state, rng)?;
    let flags = *rng.pick(&[1_u32, 1, 1, 0, 2]);
    let draft = Draft::test(IOMMU_TEST_OP_CREATE_ACCESS, ioas).set("flags", flags);
    let fd = draft.out("out_access_fd");
    Some(draft.call(state).then(move |state, reply, number| {
        let (fd, context) = (out(reply, number, fd), state.context);
        state.accesses.push(Access { context, fd, ioas, pins: flags & 1 != 0 });
    }))
}

/// An access and an area that it can mostly reach.
fn choose(state: &State, rng: &mut Rng) -> Option<(Access, Area)> {
    let access = state.access(rng)?;
    let areas: Vec<_> = state
        .areas
        .iter()
        .filter(|area| area.context == state.context && area.ioas.literal == access.ioas.literal)
        .copied()
        .collect();
    let area = rng.any(&areas).copied().or_else(|| state.area(rng))?;
    Some((access, area))
}

fn pages(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (access, area) = choose(state, rng)?;
    if !access.pins && rng.chance(80) {
        return None;
    }
    let (iova, length, from) = state.part(&area, rng);
    let mut flags = if rng.chance(70) { MOCK_FLAGS_ACCESS_WRITE } else { 0 };
    if rng.chance(4) {
        flags |= *rng.pick(&[2, 1 << 31]);
    }
    let draft = Draft::test(IOMMU_TEST_OP_ACCESS_PAGES, access.fd)
        .set("flags", flags)
        .set("iova", iova)
        .set("length", length)
        .set("uptr", from);
    let id = draft.out("out_access_pages_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.pinned.push(Pinned { access: access.fd, id: out(reply, number, id) });
    }))
}

fn release(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let pinned = *rng.any(&state.pinned)?;
    let draft = Draft::test(IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, pinned.access)
        .set("access_pages_id", pinned.id);
    Some(draft.call(state).then(move |state, _, _| {
        state.pinned.retain(|other| {
            (other.access.literal, other.id.literal) != (pinned.access.literal, pinned.id.literal)
        });
    }))
}

fn read_write(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (access, area) = choose(state, rng)?;
    let (iova, length, from) = state.part(&area, rng);
    let iova =
        if rng.chance(40) { (iova.literal.wrapping_add(rng.below(0x1800))).into() } else { iova };
    let length = if rng.chance(70) { 1 + rng.below(300) } else { length };
    let mut flags = if rng.chance(50) { MOCK_ACCESS_RW_WRITE } else { 0 };
    if rng.chance(40) {
        flags |= MOCK_ACCESS_RW_SLOW_PATH;
    }
    if rng.chance(3) {
        flags |= *rng.pick(&[2, 8, 1 << 16]);
    }
    let at = 64 * rng.below(8);
    let bytes: Vec<u8> = (0..8).map(|_| rng.next() as u8).collect();
    let shown = length.min(320);
    let call = Draft::test(IOMMU_TEST_OP_ACCESS_RW, access.fd)
        .set("iova", iova)
        .set("length", length)
        .set("uptr", BUFFER + at)
        .set("flags", flags)
        .poke(at, bytes.repeat(40))
        .watch(at, shown)
        .call(state);
    // What a device wrote is looked at where the caller has it, too.
    Some(match call {
        Call::Ioctl { fd, request, argument, pokes, mut watch } => {
            if flags & MOCK_ACCESS_RW_WRITE != 0 && from != 0 {
                watch.push(super::super::step::Range { at: from, len: 256 });
            }
            Call::Ioctl { fd, request, argument, pokes, watch }.into()
        }
        other => other.into(),
    })
}

fn replace(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let access = state.access(rng)?;
    let ioas = if rng.chance(15) { 0_u64.into() } else { super::ioas::ioas(state, rng)? };
    let draft = Draft::test(IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, access.fd).set("ioas_id", ioas);
    Some(draft.call(state).then(move |state, _, _| {
        for other in &mut state.accesses {
            if other.fd.literal == access.fd.literal {
                other.ioas = ioas;
            }
        }
    }))
}

fn close(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let access = state.access(rng)?;
    Some(Call::Close { fd: access.fd }.then(move |state, _, _| {
        state.accesses.retain(|other| other.fd.literal != access.fd.literal);
        state.pinned.retain(|pinned| pinned.access.literal != access.fd.literal);
    }))
}
