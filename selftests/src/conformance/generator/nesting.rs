//! What virtual machines use: nested HWPTs, vIOMMUs, vDEVICEs, event queues, hardware queues.

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use ioctl_abi::selftest::*;

use super::super::arena::{BUFFER, DEVICE, PAGE};
use super::super::rng::Rng;
use super::super::step::{Call, Patch, Range, Source, Value};
use super::draft::{Draft, half_words};
use super::state::{Kind, State, out};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] = &[
    (6, nested),
    (6, viommu),
    (7, vdevice),
    (6, event_queue),
    (8, hw_queue),
    (7, attach),
    (8, event),
    (8, read_events),
    (12, invalidate),
    (4, check_iotlb),
    (4, check_cache),
    (5, map_offer),
    (3, unmap_offer),
    (3, super::ioas::destroy),
];

/// A nesting parent.
fn parent(state: &State, rng: &mut Rng) -> Option<Value> {
    let mut all = state.all(Kind::Hwpt);
    if rng.chance(92) {
        all.retain(|hwpt| hwpt.flags & u64::from(IOMMU_HWPT_ALLOC_NEST_PARENT) != 0);
    }
    Some(rng.any(&all)?.id)
}

fn nested(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let of = match state.any(Kind::Viommu, rng) {
        Some(viommu) if rng.chance(50) => viommu.id,
        _ => parent(state, rng)?,
    };
    let mut flags = *rng.pick(&[0, 0, 0, IOMMU_HWPT_ALLOC_PASID, 1, 2]);
    let mut draft = Draft::new(Command::HwptAlloc)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("pt_id", of)
        .set("data_type", *rng.pick(&[IOMMU_HWPT_DATA_SELFTEST, IOMMU_HWPT_DATA_SELFTEST, 0, 1]))
        .set("data_len", *rng.pick(&[4_u32, 4, 8, 8, 12, 3, 0]))
        .set("data_uptr", BUFFER)
        .poke(0, half_words([IOMMU_TEST_IOTLB_DEFAULT, 0, u32::from(rng.chance(20))]));
    if let Some(queue) = state.any(Kind::FaultQueue, rng).filter(|_| rng.chance(40)) {
        flags |= IOMMU_HWPT_FAULT_ID_VALID;
        draft = draft.set("fault_id", queue.id);
    }
    let draft = draft.set("flags", flags);
    let id = draft.out("out_hwpt_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Nested, reply, number, id, Some(of), flags.into());
    }))
}

pub(super) fn viommu(state: &mut State, rng: &mut Rng) -> Option<Made> {
    // Few, so that what belongs to one comes together.
    if state.all(Kind::Viommu).len() > 1 && rng.chance(80) {
        return None;
    }
    let length = *rng.pick(&[0_u32, 24, 24, 24, 8, 16, 32]);
    let kind = if rng.chance(90) { IOMMU_VIOMMU_TYPE_SELFTEST } else { rng.below(3) as u32 };
    let draft = Draft::new(Command::ViommuAlloc)
        .set("type", kind)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("hwpt_id", parent(state, rng)?)
        .set("data_len", length)
        .set("data_uptr", if length == 0 { 0 } else { BUFFER })
        .poke(0, half_words([0x600d_da7a, 0, 0, 0, 0, 0, u32::from(rng.chance(15)), 0]))
        .watch(0, 32);
    let id = draft.out("out_viommu_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Viommu, reply, number, id, None, 0);
        if length >= 24 {
            let offset = Source::Seen { offset: 8, width: 8 };
            let literal = reply.value(offset);
            let size = reply.value(Source::Seen { offset: 16, width: 8 });
            // Where the program did not spoil what was said.
            if size == 0 {
                return;
            }
            state.offers.push((Value { literal, from: Some((number, offset)) }, size));
        }
    }))
}

pub(super) fn vdevice(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let device = state.any(Kind::Device, rng)?.id;
    let virt = *rng.pick(&[0x99, 0x99, 0x1, 0x100, 0, 0xffff_ffff, 1 << 32, u64::MAX]);
    let draft = Draft::new(Command::VdeviceAlloc)
        .set("viommu_id", state.any(Kind::Viommu, rng)?.id)
        .set("dev_id", device)
        .set("virt_id", virt);
    let id = draft.out("out_vdevice_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Vdevice, reply, number, id, Some(device), virt);
    }))
}

pub(super) fn event_queue(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let kind = if rng.chance(85) { IOMMU_VEVENTQ_TYPE_SELFTEST } else { rng.below(4) as u32 };
    let draft = Draft::new(Command::VeventqAlloc)
        .set("viommu_id", state.any(Kind::Viommu, rng)?.id)
        .set("type", kind)
        .set("veventq_depth", *rng.pick(&[1_u32, 2, 2, 3, 0, u32::MAX]));
    let (id, fd) = (draft.out("out_veventq_id"), draft.out("out_veventq_fd"));
    Some(draft.call(state).then(move |state, reply, number| {
        let fd = out(reply, number, fd);
        state.made(Kind::Veventq, reply, number, id, Some(fd), 0);
    }))
}

fn hw_queue(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let area = state.area(rng)?;
    let (iova, length, _) = state.part(&area, rng);
    let kind = if rng.chance(92) { IOMMU_HW_QUEUE_TYPE_SELFTEST } else { rng.below(3) as u32 };
    let draft = Draft::new(Command::HwQueueAlloc)
        .set("viommu_id", state.any(Kind::Viommu, rng)?.id)
        .set("type", kind)
        .set("index", *rng.pick(&[0_u32, 0, 0, 1, 1, 2, u32::MAX]))
        .set("nesting_parent_iova", iova)
        .set("length", length);
    let id = draft.out("out_hw_queue_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::HwQueue, reply, number, id, None, 0);
    }))
}

/// Puts a mock device behind a first stage that a vIOMMU made: from there its events reach the guest.
pub(super) fn attach(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let viommus: Vec<u64> =
        state.all(Kind::Viommu).iter().map(|viommu| viommu.id.literal).collect();
    let mut all = state.all(Kind::Nested);
    all.retain(|nested| nested.other.is_some_and(|of| viommus.contains(&of.literal)));
    let nested = rng.any(&all)?.id;
    Some(
        Draft::test(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, state.any(Kind::MockDevice, rng)?.id)
            .set("pt_id", nested)
            .call(state)
            .into(),
    )
}

/// A first stage on a vIOMMU that nothing is wrong with.
pub(super) fn nested_by_viommu(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let of = state.any(Kind::Viommu, rng)?.id;
    let draft = Draft::new(Command::HwptAlloc)
        .set("dev_id", state.any(Kind::Device, rng)?.id)
        .set("pt_id", of)
        .set("data_type", IOMMU_HWPT_DATA_SELFTEST)
        .set("data_len", 4_u64)
        .set("data_uptr", BUFFER)
        .poke(0, half_words([IOMMU_TEST_IOTLB_DEFAULT]));
    let id = draft.out("out_hwpt_id");
    Some(draft.call(state).then(move |state, reply, number| {
        state.made(Kind::Nested, reply, number, id, Some(of), 0);
    }))
}

fn event(state: &mut State, rng: &mut Rng) -> Option<Made> {
    // Only what a guest sees has events.
    let seen = state.any(Kind::Vdevice, rng).and_then(|vdevice| vdevice.other);
    let device = match seen.filter(|_| rng.chance(90)) {
        Some(device) => device,
        None => state.any(Kind::Device, rng)?.id,
    };
    Some(Draft::test(IOMMU_TEST_OP_TRIGGER_VEVENT, 0_u64).set("dev_id", device).call(state).into())
}

fn read_events(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let fd = state.any(Kind::Veventq, rng)?.other?;
    if rng.chance(25) {
        return Some(Call::Poll { fd, events: libc::POLLIN | libc::POLLOUT }.into());
    }
    let len = *rng.pick(&[12_u64, 12, 12, 24, 64, 8, 20, 0, 7, 16]);
    Some(Call::Read { fd, at: BUFFER, len }.into())
}

fn invalidate(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let viommu = rng.chance(50);
    let number = *rng.pick(&[0_u32, 1, 1, 2, 3]);
    let (object, entry, kind) = if viommu {
        (state.any(Kind::Viommu, rng)?, 12, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST)
    } else {
        (state.any(Kind::Nested, rng)?, 8, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST)
    };
    let kind = if rng.chance(90) {
        kind
    } else {
        *rng.pick(&[IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID, 0, 1, 2])
    };
    let mut bytes = Vec::new();
    let mut patches = Vec::<Patch>::new();
    let entry_len =
        if rng.chance(85) { entry } else { *rng.pick(&[0_u32, 4, entry - 1, entry + 4, 4096]) };
    for _ in 0..number {
        let flags = *rng.pick(&[0_u32, 0, 0, 1, 2]);
        let index = if rng.chance(92) { rng.below(4) as u32 } else { 4 };
        bytes.extend(flags.to_le_bytes());
        if viommu {
            let known = state.any(Kind::Vdevice, rng).map_or(0x99, |vdevice| vdevice.flags as u32);
            bytes.extend(if rng.chance(90) { known } else { 7 }.to_le_bytes());
        }
        bytes.extend(index.to_le_bytes());
        if entry_len > entry {
            bytes.extend([u8::from(rng.chance(30)); 4]);
        }
    }
    patches.clear();
    Some(
        Draft::new(Command::HwptInvalidate)
            .set("hwpt_id", object.id)
            .set("data_uptr", if number == 0 && rng.chance(70) { 0 } else { BUFFER })
            .set("data_type", kind)
            .set("entry_len", entry_len)
            .set("entry_num", number)
            .poke_patched(0, bytes, patches)
            .call(state)
            .into(),
    )
}

fn check_iotlb(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::test(IOMMU_TEST_OP_MD_CHECK_IOTLB, state.any(Kind::Nested, rng)?.id)
            .set("iotlb", *rng.pick(&[IOMMU_TEST_IOTLB_DEFAULT, 0, 0x1234]))
            .call_with_index(state, rng),
    )
}

fn check_cache(state: &mut State, rng: &mut Rng) -> Option<Made> {
    Some(
        Draft::test(IOMMU_TEST_OP_DEV_CHECK_CACHE, state.any(Kind::Device, rng)?.id)
            .set("cache", *rng.pick(&[IOMMU_TEST_DEV_CACHE_DEFAULT, 0]))
            .call_with_index(state, rng),
    )
}

impl Draft {
    /// The body's `id`, which is the index of an entry. The struct's has the same name.
    fn call_with_index(self, state: &State, rng: &mut Rng) -> Made {
        let index = if rng.chance(95) { rng.below(4) } else { *rng.pick(&[4, 5, 0xffff_ffff]) };
        self.set("id", index).call(state).into()
    }
}

fn map_offer(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let (offset, length) = *rng.any(&state.offers)?;
    let protection = *rng.pick(&[3, 3, 1, 2, 7]);
    let offset = if rng.chance(85) { offset } else { (offset.literal + PAGE).into() };
    let call = Call::Mmap {
        fd: state.context(),
        at: DEVICE,
        // What it says may be another thread's data.
        len: if rng.chance(80) {
            length.min(4 * PAGE)
        } else {
            *rng.pick(&[PAGE, 4 * PAGE, 3 * PAGE])
        },
        prot: protection,
        flags: if rng.chance(90) { libc::MAP_SHARED } else { libc::MAP_PRIVATE },
        offset,
    };
    Some(call.into())
}

fn unmap_offer(_: &mut State, rng: &mut Rng) -> Option<Made> {
    let range = Range { at: DEVICE, len: *rng.pick(&[PAGE, 2 * PAGE]) };
    Some(if rng.chance(50) {
        Call::Munmap(range).into()
    } else {
        Call::Look(Range { at: DEVICE, len: 64 }).into()
    })
}
