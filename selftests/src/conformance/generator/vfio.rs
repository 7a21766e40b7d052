//! The VFIO compatibility: old ioctls on an iommufd.

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;

use super::super::arena::{BUFFER, PAGE};
use super::super::rng::Rng;
use super::super::step::{Argument, Call, Value};
use super::draft::{Draft, words};
use super::state::{Area, State};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (5, choose),
    (2, version),
    (6, extension),
    (6, set_iommu),
    (6, info),
    (14, map),
    (12, unmap),
    (2, dirty),
    (1, enable),
];

/// The IOAS made first, for programs that go on with it.
pub(super) fn choose_first(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::new(Command::VfioIoas)
            .set("op", u64::from(IOMMU_VFIO_IOAS_SET))
            .set("ioas_id", super::ioas::ioas(state, rng)?)
            .call(state)
            .into(),
    )
}

fn choose(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let op = *rng.pick(&[
        IOMMU_VFIO_IOAS_SET,
        IOMMU_VFIO_IOAS_SET,
        IOMMU_VFIO_IOAS_GET,
        IOMMU_VFIO_IOAS_CLEAR,
        3,
    ]);
    Some(
        Draft::new(Command::VfioIoas)
            .set("op", u64::from(op))
            .set("ioas_id", super::ioas::ioas(state, rng).unwrap_or(Value::from(1_u64)))
            .call(state)
            .into(),
    )
}

/// A command whose argument is no struct.
fn number(state: &State, command: Command, value: u64) -> Made {
    let argument = Argument::Value(value);
    let request = command.info().ioctl;
    let (pokes, watch) = (Vec::new(), Vec::new());
    Call::Ioctl { fd: state.context(), request, argument, pokes, watch }.into()
}

fn version(state: &mut State, _: &mut Rng) -> Option<Made> {
    Some(number(state, Command::VfioGetApiVersion, 0))
}

fn extension(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(number(state, Command::VfioCheckExtension, rng.below(14)))
}

fn set_iommu(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let kind = if rng.chance(75) { *rng.pick(&[1, 3, 3, 8]) } else { rng.below(12) };
    Some(number(state, Command::VfioSetIommu, kind))
}

/// The IOAS that the compatibility works on is mostly the first.
fn area(state: &State, iova: u64, length: u64, from: u64) -> Option<Area> {
    let ioas = state.all(super::state::Kind::Ioas).first()?.id;
    Some(Area { context: state.context, ioas, iova: iova.into(), length, from })
}

fn info(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let size = *rng.pick(&[16_u64, 20, 24, 24, 64, 128, 200, 15, 8, 4, 0, 4096]);
    let extra = vec![0; (size as usize).clamp(24, 256) - 24];
    Some(Draft::new(Command::VfioIommuGetInfo).set("argsz", size).extend(&extra).call(state).into())
}

fn map(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (from, most) = state.memory(rng);
    let (iova, length) = (state.iova(rng), state.length(most, rng));
    let call = Draft::new(Command::VfioIommuMapDma)
        .set("argsz", if rng.chance(94) { 32 } else { *rng.pick(&[0_u64, 31, 33, 40, 24]) })
        .set("flags", *rng.pick(&[3_u32, 3, 3, 1, 2, 0, 4, 7, 8]))
        .set("vaddr", from)
        .set("iova", iova)
        .set("size", length)
        .call(state);
    Some(call.then(move |state, _, _| {
        if let Some(area) = area(state, iova, length, from) {
            state.areas.push(area);
        }
    }))
}

fn unmap(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (iova, length) = match state.area(rng) {
        Some(area) if rng.chance(50) => (area.iova, area.length),
        Some(area) if rng.chance(70) => {
            let (iova, length, _) = state.part(&area, rng);
            (iova, length)
        }
        _ => (Value::from(*rng.pick(&[0_u64, 0x100_0000])), *rng.pick(&[0, 1 << 20, u64::MAX])),
    };
    let flags = *rng.pick(&[0_u32, 0, 0, 0, 2, 1, 4, 3, 8]);
    let (iova, length) =
        if flags == 2 && rng.chance(70) { (Value::from(0_u64), 0) } else { (iova, length) };
    Some(
        Draft::new(Command::VfioIommuUnmapDma)
            .set("argsz", if rng.chance(94) { 24 } else { *rng.pick(&[0_u64, 23, 25, 48]) })
            .set("flags", flags)
            .set("iova", iova)
            .set("size", length)
            .extend(&words([PAGE, 64, BUFFER]))
            .call(state)
            .into(),
    )
}

fn dirty(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::new(Command::VfioIommuDirtyPages)
            .set("argsz", *rng.pick(&[8_u64, 8, 48, 7]))
            .set("flags", *rng.pick(&[1_u32, 2, 4, 0, 3]))
            .extend(&words([0x100_0000, 0x10000, PAGE, 64, BUFFER]))
            .call(state)
            .into(),
    )
}

fn enable(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let command = *rng.pick(&[Command::VfioIommuEnable, Command::VfioIommuDisable]);
    Some(number(state, command, 0))
}
