//! IOASes: maps, copies, unmaps, ranges, options.

use std::mem::offset_of;

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;

use super::super::arena::{BUFFER, PAGE};
use super::super::rng::Rng;
use super::super::step::Value;
use super::draft::Draft;
use super::state::{Area, Kind, State, out};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (3, alloc),
    (24, map),
    (10, map_file),
    (10, copy),
    (12, unmap),
    (3, unmap_many),
    (4, ranges),
    (3, allow),
    (3, reserve),
    (4, option),
    (2, physical),
    (3, destroy),
    (1, memory_limit),
    (1, change_process),
];

pub(super) fn alloc(state: &mut State, _: &mut Rng) -> Option<Made> {
    let draft = Draft::new(Command::IoasAlloc);
    let id = draft.out("out_ioas_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Ioas, reply, number, id, None, 0);
    }))
}

/// An IOAS; sometimes what a call takes in its place.
pub(super) fn ioas(state: &State, rng: &mut Rng) -> Option<Value> {
    Some(state.any(Kind::Ioas, rng)?.id)
}

fn map_flags(rng: &mut Rng) -> u32 {
    let rights = *rng.pick(&[
        IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        IOMMU_IOAS_MAP_READABLE,
        IOMMU_IOAS_MAP_WRITEABLE,
        0,
    ]);
    let rights = if rights == 0 && rng.chance(60) { IOMMU_IOAS_MAP_READABLE } else { rights };
    if rng.chance(55) { rights | IOMMU_IOAS_MAP_FIXED_IOVA } else { rights }
}

fn map(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = ioas(state, rng)?;
    let (mut from, most) = state.memory(rng);
    let length = state.length(most, rng);
    if !state.tidy && rng.chance(30) {
        from += *rng.pick(&[1, 2048, 512, 4095]);
    }
    let draft = Draft::new(Command::IoasMap)
        .set("flags", map_flags(rng))
        .set("ioas_id", ioas)
        .set("user_va", from)
        .set("length", length)
        .set("iova", state.iova(rng));
    let at = draft.out("iova");
    Some(draft.call(state).then(move |state, reply, number| {
        let (iova, context) = (out(reply, number, at), state.context);
        state.areas.push(Area { context, ioas, iova, length, from });
    }))
}

fn map_file(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = ioas(state, rng)?;
    let dmabuf = rng.any(&state.dmabufs).copied().filter(|_| rng.chance(30));
    let (fd, size) = match dmabuf {
        Some(fd) => (fd, 4 * PAGE),
        None => *rng.any(&state.files)?,
    };
    let start = rng.below((size / PAGE).max(1)) * PAGE;
    let length = state.length(size.saturating_sub(start).max(PAGE), rng);
    let start = if state.tidy { start } else { start + *rng.pick(&[0, 0, 1, 2048]) };
    let length = if rng.chance(5) { size + PAGE } else { length };
    let draft = Draft::new(Command::IoasMapFile)
        .set("flags", map_flags(rng))
        .set("ioas_id", ioas)
        .set("fd", fd)
        .set("start", start)
        .set("length", length)
        .set("iova", state.iova(rng));
    let at = draft.out("iova");
    let from = super::super::arena::FILE.wrapping_add(start);
    Some(draft.call(state).then(move |state, reply, number| {
        let (iova, context) = (out(reply, number, at), state.context);
        state.areas.push(Area { context, ioas, iova, length, from });
    }))
}

fn copy(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let ioas = ioas(state, rng)?;
    let (src, length, from) = state.part(&area, rng);
    let draft = Draft::new(Command::IoasCopy)
        .set("flags", map_flags(rng))
        .set("dst_ioas_id", ioas)
        .set("src_ioas_id", area.ioas)
        .set("length", length)
        .set("dst_iova", state.iova(rng))
        .set("src_iova", src);
    let at = draft.out("dst_iova");
    Some(draft.call(state).then(move |state, reply, number| {
        let (iova, context) = (out(reply, number, at), state.context);
        state.areas.push(Area { context, ioas, iova, length, from });
    }))
}

/// Forgets the areas that a range covers.
fn forget(state: &mut State, ioas: u64, iova: u64, length: u64) {
    let (context, last) = (state.context, iova.saturating_add(length.wrapping_sub(1)));
    state.areas.retain(|area| {
        let inside = area.iova.literal >= iova
            && area.iova.literal.saturating_add(area.length.wrapping_sub(1)) <= last;
        area.context != context || area.ioas.literal != ioas || !inside
    });
}

fn unmap(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let (iova, length, _) =
        if rng.chance(75) { (area.iova, area.length, 0) } else { state.part(&area, rng) };
    let draft = Draft::new(Command::IoasUnmap)
        .set("ioas_id", area.ioas)
        .set("iova", iova)
        .set("length", length);
    Some(draft.call(state).then(move |state, _, _| {
        forget(state, area.ioas.literal, iova.literal, length);
    }))
}

fn unmap_many(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = ioas(state, rng)?;
    let (iova, length) = match rng.below(5) {
        0 => (0, u64::MAX),
        1 => (0, rng.next()),
        2 => (0x100_0000, 0x10_0000),
        3 => (state.iova(rng), state.length(u64::MAX, rng)),
        _ => (0x102_0000, PAGE * (1 + rng.below(40))),
    };
    let draft =
        Draft::new(Command::IoasUnmap).set("ioas_id", ioas).set("iova", iova).set("length", length);
    Some(draft.call(state).then(move |state, _, _| forget(state, ioas.literal, iova, length)))
}

fn ranges(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let number = *rng.pick(&[0_u32, 1, 2, 3, 8, 8, 16]);
    Some(
        Draft::new(Command::IoasIovaRanges)
            .set("ioas_id", ioas(state, rng)?)
            .set("num_iovas", number)
            .set("allowed_iovas", BUFFER)
            .poke(0, vec![0; 128])
            .watch(0, 128)
            .call(state)
            .into(),
    )
}

fn allow(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let number = rng.below(4);
    let mut bytes = Vec::new();
    let mut start = *rng.pick(&[0_u64, 0x100_0000, 0x100_0000, 0x101_0000]);
    for _ in 0..number {
        let last = start + *rng.pick(&[0xffff, 0xf_ffff, 0x7fff, 0x6f00_0000 - 1]);
        bytes.extend(start.to_le_bytes());
        bytes.extend(last.to_le_bytes());
        start = if rng.chance(85) { last + 1 + PAGE * rng.below(16) } else { start };
    }
    if rng.chance(8) {
        bytes.reverse();
    }
    Some(
        Draft::new(Command::IoasAllowIovas)
            .set("ioas_id", ioas(state, rng)?)
            .set("num_iovas", number)
            .set("allowed_iovas", BUFFER)
            .poke(0, bytes)
            .call(state)
            .into(),
    )
}

fn reserve(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = ioas(state, rng)?;
    let length = if rng.chance(85) { PAGE * (1 + rng.below(8)) } else { state.length(PAGE, rng) };
    Some(
        Draft::test(IOMMU_TEST_OP_ADD_RESERVED, ioas)
            .set("start", state.iova(rng))
            .set("length", length)
            .call(state)
            .into(),
    )
}

fn option(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let whole = rng.chance(35);
    let object = if whole { Value::from(0_u64) } else { ioas(state, rng)? };
    let id = if whole { IOMMU_OPTION_RLIMIT_MODE } else { IOMMU_OPTION_HUGE_PAGES };
    let id = if rng.chance(4) { 2 } else { id };
    let draft = Draft::new(Command::Option)
        .set("option_id", id)
        .set("op", *rng.pick(&[0_u64, 0, 1, 1, 1, 2]))
        .set("object_id", object)
        .set("val64", *rng.pick(&[0_u64, 0, 1, 1, 2, u64::MAX]));
    Some(draft.call(state).then(move |state, reply, _| {
        state.maps_page_by_page(object.literal, false);
        // Whose it was in the end, if the call was spoiled.
        state.maps_page_by_page(reply.out(offset_of!(iommu_option, object_id), 4), false);
    }))
}

fn physical(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let (iova, length, _) = state.part(&area, rng);
    Some(
        Draft::new(Command::IoasNoiommuGetPa)
            .set("ioas_id", area.ioas)
            .set("iova", iova)
            .set("length", length)
            .call(state)
            .into(),
    )
}

/// Destroys any object.
pub(super) fn destroy(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let here: Vec<_> =
        state.objects.iter().filter(|object| object.context == state.context).copied().collect();
    let object = rng.any(&here).copied()?;
    let draft = Draft::new(Command::Destroy).set("id", object.id);
    Some(draft.call(state).then(move |state, _, _| state.gone(object.id.literal)))
}

fn memory_limit(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::test(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0_u64)
            .set("limit", *rng.pick(&[65536_u32, 65536, 16384, 8192, 1 << 20]))
            .call(state)
            .into(),
    )
}

fn change_process(state: &mut State, _: &mut Rng) -> Option<Made> {
    Some(Draft::new(Command::IoasChangeProcess).call(state).into())
}
