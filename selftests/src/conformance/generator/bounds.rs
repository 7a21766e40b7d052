//! What programs keep away from: calls whose answer is chance, or a fault of Linux that nobody should
//! answer like.

use std::mem::offset_of;

use ioctl_abi::Command;
use ioctl_abi::iommufd::{IOMMU_HW_QUEUE_ALLOC, iommu_hw_queue_alloc};
use ioctl_abi::selftest::{
    IOMMU_TEST_OP_PASID_ATTACH, IOMMU_TEST_OP_PASID_DETACH, iommu_test_cmd, iommu_test_pasid_attach,
};

use super::super::arena::PAGE;
use super::super::reply::number;
use super::super::rules;
use super::super::step::{Argument, Call};
use super::state::State;

/// An id that no program has.
const NOBODY: u32 = 0x7fff_fff0;

/// Makes `call` one that can be compared.
pub(super) fn keep(call: &mut Call, state: &State) {
    if let Call::Child(calls) = call {
        // What a child attaches the generator would not know.
        calls.retain(|call| {
            rules::command(call) != Some((Command::Test, Some(IOMMU_TEST_OP_PASID_ATTACH)))
        });
        calls.iter_mut().for_each(|call| keep(call, state));
    }
    within_a_page(call, state);
    without_pasids(call, state);
}

/// Remembers the PASIDs that a call which succeeded attached or detached: what it was made from does
/// not tell, as it may have been spoiled into another.
pub(super) fn learn(call: &Call, state: &mut State) {
    let Some((Command::Test, Some(op))) = rules::command(call) else { return };
    let pasid = offset_of!(iommu_test_cmd, body) + offset_of!(iommu_test_pasid_attach, pasid);
    let device = call.number(offset_of!(iommu_test_cmd, id), 4);
    let attachment = (state.context, device, call.number(pasid, 4) as u32);
    match op {
        IOMMU_TEST_OP_PASID_ATTACH => state.pasids.push(attachment),
        IOMMU_TEST_OP_PASID_DETACH => state.pasids.retain(|attached| *attached != attachment),
        _ => {}
    }
}

/// Whether a queue of several pages can be made depends on whether their frames are contiguous, which
/// is up to each machine. One that could be made keeps to a page.
fn within_a_page(call: &mut Call, state: &State) {
    const UNMAPPABLE: u64 = 1 << 24;
    let Call::Ioctl { request, argument: Argument::Struct { bytes, patches, .. }, .. } = call
    else {
        return;
    };
    let (at, end) = (offset_of!(iommu_hw_queue_alloc, length), size_of::<iommu_hw_queue_alloc>());
    if *request != IOMMU_HW_QUEUE_ALLOC || bytes.len() < end {
        return;
    }
    let iova = number(bytes, offset_of!(iommu_hw_queue_alloc, nesting_parent_iova), 8);
    let area = state.areas.iter().find(|area| {
        area.context == state.context
            && (0..area.length).contains(&iova.wrapping_sub(area.iova.literal))
    });
    let room = match area {
        Some(area) => PAGE - area.from.wrapping_add(iova.wrapping_sub(area.iova.literal)) % PAGE,
        // Where it may lie in a page after all.
        None => 512 - iova % 512,
    };
    let length = number(bytes, at, 8);
    if length > room && length < UNMAPPABLE {
        bytes[at..end].copy_from_slice(&room.to_le_bytes());
        patches.retain(|patch| usize::from(patch.offset) != at);
    }
}

/// A mock device that is destroyed with a PASID attached leaves objects behind in Linux
/// (docs/differences.md).
fn without_pasids(call: &mut Call, state: &State) {
    if rules::command(call) != Some((Command::Destroy, None)) {
        return;
    }
    let id = call.number(4, 4);
    let Call::Ioctl { argument: Argument::Struct { bytes, patches, .. }, .. } = call else {
        return;
    };
    // In whichever context: a call may be spoiled into another one's.
    if bytes.len() >= 8 && state.pasids.iter().any(|(_, device, _)| *device == id) {
        bytes[4..8].copy_from_slice(&NOBODY.to_le_bytes());
        patches.retain(|patch| patch.offset != 4);
    }
}
