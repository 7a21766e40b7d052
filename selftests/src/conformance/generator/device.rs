//! Mock devices, HWPTs, PASIDs, and what the selftest checks of them.

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;

use super::super::arena::BUFFER;
use super::super::rng::Rng;
use super::super::step::Value;
use super::draft::{Draft, half_words};
use super::state::{Kind, Object, State};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (6, mock),
    (4, mock_with_flags),
    (6, hwpt),
    (2, parent),
    (3, with_queue),
    (8, replace),
    (6, info),
    (5, check_map),
    (3, check_refs),
    (6, pasid_attach),
    (4, pasid_replace),
    (4, pasid_detach),
    (4, pasid_check),
    (3, dmabuf),
    (2, dmabuf_revoke),
    (3, super::ioas::destroy),
];

/// What a device can be attached to.
fn table(state: &State, rng: &mut Rng) -> Option<Value> {
    let kind = *rng.pick(&[Kind::Ioas, Kind::Ioas, Kind::Hwpt, Kind::Hwpt, Kind::Nested]);
    let found = state.any(kind, rng).or_else(|| state.any(Kind::Ioas, rng));
    Some(found?.id)
}

fn mock_device(state: &State, draft: Draft, flags: u64) -> Made {
    let (mock, hwpt, device) =
        (draft.out("out_stdev_id"), draft.out("out_hwpt_id"), draft.out("out_idev_id"));
    draft.call(state).then(move |state, reply, number| {
        let device = state.made(Kind::Device, reply, number, device, None, flags);
        state.made(Kind::MockDevice, reply, number, mock, Some(device), flags);
        // An automatic HWPT, which one can look at, but which goes away by itself.
        let hwpt = super::state::out(reply, number, hwpt);
        if !state.objects.iter().any(|object| object.id.literal == hwpt.literal) {
            let context = state.context;
            state.objects.push(Object {
                context,
                id: hwpt,
                kind: Kind::Hwpt,
                other: None,
                flags: 0,
            });
        }
    })
}

pub(super) fn mock(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.all(Kind::MockDevice).len() > 4 {
        return None;
    }
    let table = table(state, rng)?;
    Some(mock_device(state, Draft::test(IOMMU_TEST_OP_MOCK_DOMAIN, table), 0))
}

pub(super) fn mock_with_flags(state: &mut State, rng: &mut Rng) -> Option<Made> {
    if state.all(Kind::MockDevice).len() > 4 {
        return None;
    }
    let flags = *rng.pick(&[
        MOCK_FLAGS_DEVICE_PASID,
        MOCK_FLAGS_DEVICE_PASID,
        MOCK_FLAGS_DEVICE_NO_DIRTY,
        MOCK_FLAGS_DEVICE_PASID | MOCK_FLAGS_DEVICE_NO_DIRTY,
        2,
    ]);
    let draft = Draft::test(IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, table(state, rng)?);
    Some(mock_device(state, draft.set("dev_flags", flags), flags.into()))
}

fn alloc(state: &State, draft: Draft, kind: Kind, of: Value, flags: u32) -> Made {
    let id = draft.out("out_hwpt_id");
    draft.call(state).then(move |state, reply, number| {
        state.made(kind, reply, number, id, Some(of), flags.into());
    })
}

fn hwpt(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let device = state.any(Kind::Device, rng)?;
    let ioas = state.any(Kind::Ioas, rng)?.id;
    let flags = *rng.pick(&[
        0,
        0,
        IOMMU_HWPT_ALLOC_NEST_PARENT,
        IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        IOMMU_HWPT_ALLOC_PASID,
        IOMMU_HWPT_ALLOC_PASID | IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID,
        16,
    ]);
    let mut draft = Draft::new(Command::HwptAlloc)
        .set("flags", flags)
        .set("dev_id", device.id)
        .set("pt_id", ioas);
    if rng.chance(20) {
        let format = *rng.pick(&[MOCK_IOMMUPT_DEFAULT, MOCK_IOMMUPT_HUGE, 2]);
        draft = draft
            .set("data_type", IOMMU_HWPT_DATA_SELFTEST)
            .set("data_len", *rng.pick(&[8_u32, 8, 4, 12, 0]))
            .set("data_uptr", BUFFER)
            .poke(0, half_words([0x1234, format, 0]));
    }
    Some(alloc(state, draft, Kind::Hwpt, ioas, flags))
}

pub(super) fn parent(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = state.any(Kind::Ioas, rng)?.id;
    let flags = IOMMU_HWPT_ALLOC_NEST_PARENT;
    let draft = Draft::new(Command::HwptAlloc)
        .set("flags", flags)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("pt_id", ioas);
    Some(alloc(state, draft, Kind::Hwpt, ioas, flags))
}

pub(super) fn with_queue(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let ioas = state.any(Kind::Ioas, rng)?.id;
    let other =
        [0, 0, 0, IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_ALLOC_NEST_PARENT];
    let flags = IOMMU_HWPT_FAULT_ID_VALID | *rng.pick(&other);
    let draft = Draft::new(Command::HwptAlloc)
        .set("flags", flags)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("pt_id", ioas)
        .set("fault_id", state.any(Kind::FaultQueue, rng)?.id);
    Some(alloc(state, draft, Kind::Hwpt, ioas, flags))
}

fn replace(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let device = state.any(Kind::MockDevice, rng)?.id;
    Some(
        Draft::test(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, device)
            .set("pt_id", table(state, rng)?)
            .call(state)
            .into(),
    )
}

fn info(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let length = *rng.pick(&[0_u32, 4, 8, 8, 12, 32, 7]);
    let kind = *rng.pick(&[0_u32, 0, IOMMU_HW_INFO_TYPE_SELFTEST, 1, 0xffff_ffff]);
    Some(
        Draft::new(Command::GetHwInfo)
            .set("flags", if rng.chance(60) { 0_u32 } else { *rng.pick(&[1, 1, 2]) })
            .set("dev_id", state.any(Kind::Device, rng)?.id)
            .set("data_len", length)
            .set("data_uptr", if length == 0 && rng.chance(50) { 0 } else { BUFFER })
            .set("out_data_type", kind)
            .poke(0, vec![0xaa; 40])
            .watch(0, 40)
            .call(state)
            .into(),
    )
}

fn check_map(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let (iova, length, from) = state.part(&area, rng);
    Some(
        Draft::test(IOMMU_TEST_OP_MD_CHECK_MAP, state.any(Kind::Hwpt, rng)?.id)
            .set("iova", iova)
            .set("length", length)
            .set("uptr", from)
            .call(state)
            .into(),
    )
}

fn check_refs(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let (_, length, from) = state.part(&area, rng);
    // Linux's selftest does not count the references of compound pages.
    if from >= super::super::arena::HUGE {
        return None;
    }
    Some(
        Draft::test(IOMMU_TEST_OP_MD_CHECK_REFS, 0_u64)
            .set("length", length)
            .set("uptr", from)
            .set("refs", rng.below(3))
            .call(state)
            .into(),
    )
}

/// A PASID: few, so that they meet again; one is special to the mock device.
fn pasid(rng: &mut Rng) -> u32 {
    *rng.pick(&[
        1,
        1,
        2,
        100,
        IOMMU_TEST_PASID_RESERVED,
        1024,
        0,
        (1 << MOCK_PASID_WIDTH) - 1,
        1 << MOCK_PASID_WIDTH,
        u32::MAX,
    ])
}

/// A mock device; one with PASIDs, if there is any.
fn with_pasids(state: &State, rng: &mut Rng) -> Option<Object> {
    let mut all = state.all(Kind::MockDevice);
    if rng.chance(85) {
        all.retain(|device| device.flags & u64::from(MOCK_FLAGS_DEVICE_PASID) != 0);
    }
    rng.any(&all).copied()
}

/// What a PASID can be attached to: mostly an HWPT that was made for it.
fn pasid_table(state: &State, rng: &mut Rng) -> Option<Value> {
    let mut all = state.all(Kind::Hwpt);
    all.extend(state.all(Kind::Nested));
    all.retain(|hwpt| hwpt.flags & u64::from(IOMMU_HWPT_ALLOC_PASID) != 0);
    match rng.any(&all) {
        Some(hwpt) if rng.chance(80) => Some(hwpt.id),
        _ => table(state, rng),
    }
}

fn pasid_attach(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (mock, pasid) = (with_pasids(state, rng)?, pasid(rng));
    let table = pasid_table(state, rng)?;
    let queued = state.objects.iter().any(|object| {
        object.context == state.context
            && object.id.literal == table.literal
            && object.flags & u64::from(IOMMU_HWPT_FAULT_ID_VALID) != 0
            && matches!(object.kind, Kind::Hwpt | Kind::Nested)
    });
    let call = Draft::test(IOMMU_TEST_OP_PASID_ATTACH, mock.id)
        .set("pasid", pasid)
        .set("pt_id", table)
        .call(state);
    Some(call.then(move |state, _, _| {
        if let Some(device) = mock.other.filter(|_| queued) {
            state.faulting.push((state.context, device, pasid));
        }
    }))
}

/// A mock device and a PASID of it; mostly one that is attached.
fn attached(state: &State, rng: &mut Rng) -> Option<(Value, u32)> {
    let here: Vec<_> = state.pasids.iter().filter(|(at, ..)| *at == state.context).collect();
    Some(match rng.any(&here) {
        Some(&&(_, device, pasid)) if rng.chance(60) => {
            (state.all(Kind::MockDevice).iter().find(|mock| mock.id.literal == device)?.id, pasid)
        }
        _ => (with_pasids(state, rng)?.id, pasid(rng)),
    })
}

fn pasid_replace(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (device, pasid) = attached(state, rng)?;
    Some(
        Draft::test(IOMMU_TEST_OP_PASID_REPLACE, device)
            .set("pasid", pasid)
            .set("pt_id", pasid_table(state, rng)?)
            .call(state)
            .into(),
    )
}

fn pasid_detach(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (device, pasid) = attached(state, rng)?;
    Some(Draft::test(IOMMU_TEST_OP_PASID_DETACH, device).set("pasid", pasid).call(state).into())
}

fn pasid_check(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let table = if rng.chance(20) { Value::from(0_u64) } else { pasid_table(state, rng)? };
    Some(
        Draft::test(IOMMU_TEST_OP_PASID_CHECK_HWPT, with_pasids(state, rng)?.id)
            .set("pasid", pasid(rng))
            .set("hwpt_id", table)
            .call(state)
            .into(),
    )
}

fn dmabuf(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let length = *rng.pick(&[0x1000_u32, 0x4000, 0x4000, 0, 0x800, u32::MAX]);
    let draft = Draft::test(IOMMU_TEST_OP_DMABUF_GET, 0_u64)
        .set("length", length)
        .set("open_flags", *rng.pick(&[0x80002_u32, 0x80002, 0x80002, 2, 0, u32::MAX]));
    Some(draft.call(state).then(|state, reply, number| {
        if let Some(fd) = reply.descriptor {
            let from = Some((number, super::super::step::Source::Descriptor));
            state.dmabufs.push(Value { literal: fd as u64, from });
        }
    }))
}

fn dmabuf_revoke(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let fd = rng.any(&state.dmabufs).copied()?;
    Some(
        Draft::test(IOMMU_TEST_OP_DMABUF_REVOKE, 0_u64)
            .set("dmabuf_fd", fd)
            .set("revoked", *rng.pick(&[0_u32, 1, 1]))
            .call(state)
            .into(),
    )
}
