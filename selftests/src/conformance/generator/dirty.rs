//! Dirty tracking.

use std::mem::offset_of;

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;

use super::super::arena::BUFFER;
use super::super::rng::Rng;
use super::super::step::Value;
use super::draft::Draft;
use super::state::{Kind, State};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] =
    &[(6, tracked), (6, track), (12, mark), (16, bitmap), (2, no_huge_pages)];

/// An HWPT that can track, made for a device that can.
pub(super) fn tracked(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = state.any(Kind::Ioas, rng)?.id;
    let flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
    let draft = Draft::new(Command::HwptAlloc)
        .set("flags", flags)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("pt_id", ioas);
    let id = draft.out("out_hwpt_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Hwpt, reply, number, id, Some(ioas), flags.into());
    }))
}

/// An HWPT and an area of its IOAS, mostly ones that can track.
fn choose(state: &State, rng: &mut Rng) -> Option<(Value, Value, u64)> {
    let mut all = state.all(Kind::Hwpt);
    if rng.chance(92) {
        all.retain(|hwpt| hwpt.flags & u64::from(IOMMU_HWPT_ALLOC_DIRTY_TRACKING) != 0);
    }
    all.retain(|hwpt| hwpt.other.is_none_or(|ioas| state.page_by_page(ioas)));
    let hwpt = *rng.any(&all)?;
    let areas: Vec<_> = state
        .areas
        .iter()
        .filter(|area| hwpt.other.is_some_and(|ioas| ioas.literal == area.ioas.literal))
        .copied()
        .collect();
    let (iova, length) = match rng.any(&areas) {
        Some(area) if rng.chance(70) => {
            let (iova, length, _) = state.part(area, rng);
            (iova, length)
        }
        Some(_) if rng.chance(60) => (Value::from(0x100_0000_u64), 0x4_0000),
        _ => (Value::from(state.iova(rng)), state.length(0x4_0000, rng)),
    };
    Some((hwpt.id, iova, length))
}

fn track(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (hwpt, _, _) = choose(state, rng)?;
    Some(
        Draft::new(Command::HwptSetDirtyTracking)
            .set("hwpt_id", hwpt)
            .set("flags", *rng.pick(&[1_u32, 1, 1, 0, 2]))
            .call(state)
            .into(),
    )
}

fn page_size(rng: &mut Rng) -> u64 {
    *rng.pick(&[2048, 2048, 2048, 4096, 4096, 8192, 1 << 20, 0, 1024, 3000])
}

fn mark(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (hwpt, iova, length) = choose(state, rng)?;
    let bits: Vec<u8> = (0..64).map(|_| rng.next() as u8).collect();
    Some(
        Draft::test(IOMMU_TEST_OP_DIRTY, hwpt)
            .set("iova", iova)
            .set("length", length.min(0x40_0000))
            .set("page_size", if rng.chance(70) { 2048 } else { page_size(rng) })
            .set("uptr", BUFFER)
            .set("flags", if rng.chance(95) { 0_u32 } else { 1 })
            .poke(0, bits)
            .call(state)
            .into(),
    )
}

fn bitmap(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (hwpt, iova, length) = choose(state, rng)?;
    let at = *rng.pick(&[0, 0, 0, 8, 1, 0xff8]);
    Some(
        Draft::new(Command::HwptGetDirtyBitmap)
            .set("hwpt_id", hwpt)
            .set("flags", *rng.pick(&[0_u32, 0, 1, 2]))
            .set("iova", iova)
            .set("length", length)
            .set("page_size", page_size(rng))
            .set("data", BUFFER + at)
            .poke(at, vec![0; 96])
            .watch(at, 96)
            .call(state)
            .into(),
    )
}

/// See [`super::state::PAGE_BY_PAGE`].
pub(super) fn no_huge_pages(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = state.any(Kind::Ioas, rng)?.id;
    // What is mapped already stays as it is.
    let fresh = !state.areas.iter().any(|area| area.ioas.literal == ioas.literal);
    let draft = Draft::new(Command::Option)
        .set("option_id", IOMMU_OPTION_HUGE_PAGES)
        .set("object_id", ioas)
        .set("op", IOMMU_OPTION_OP_SET as u64)
        .set("val64", 0_u64);
    Some(draft.call(state).then(move |state, reply, _| {
        // A call that was spoiled may have succeeded otherwise: it asked, or set something else.
        let done = reply.out(offset_of!(iommu_option, option_id), 4)
            == u64::from(IOMMU_OPTION_HUGE_PAGES)
            && reply.out(offset_of!(iommu_option, op), 2) == IOMMU_OPTION_OP_SET as u64
            && reply.out(offset_of!(iommu_option, object_id), 4) == ioas.literal
            && reply.out(offset_of!(iommu_option, val64), 8) == 0;
        if fresh && done {
            state.maps_page_by_page(ioas.literal, true);
        }
    }))
}
