//! Keeps threads from destroying a mock device that has a PASID attached, which leaves objects behind
//! in Linux (docs/differences.md) and would hide what else does.
//!
//! A program of one thread knows what it has attached
//! ([`bounds`](super::super::generator)); of several, each knows its own part. So they share a list:
//! a device is on it from before the first attachment is tried. Calls that destroy hold the list
//! while they run, together with each other; who attaches waits for those that began.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use ioctl_abi::Command;
use ioctl_abi::selftest::{IOMMU_TEST_OP_PASID_ATTACH, iommu_test_cmd, iommu_test_pasid_attach};

use super::super::reply::Reply;
use super::super::rules;
use super::super::step::Call;

/// A mock device's id and a PASID.
type Attachment = (u32, u32);

/// What is, or may be, attached: how often that was tried and did not fail. Contexts are not told
/// apart, so that a device may be spared for another one's sake.
#[derive(Default)]
pub(super) struct Pasids(RwLock<BTreeMap<Attachment, u32>>);

impl Pasids {
    /// Makes `call`; `None` if it is one to keep away from.
    pub(super) fn around(
        &self,
        call: &Call,
        make: impl FnOnce() -> (u64, Reply),
    ) -> Option<(u64, Reply)> {
        if let Some(attachment) = attaches(call) {
            *self
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(attachment)
                .or_default() += 1;
            let made = make();
            if !made.1.ok() {
                let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(tries) = all.get_mut(&attachment) {
                    *tries -= 1;
                }
                all.retain(|_, tries| *tries > 0);
            }
            return Some(made);
        }
        let Some(id) = destroys(call) else { return Some(make()) };
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let spared = all.keys().any(|(device, _)| *device == id);
        (!spared).then(make)
    }

    /// What may be attached.
    pub(super) fn all(&self) -> Vec<Attachment> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

/// What a call attaches.
fn attaches(call: &Call) -> Option<Attachment> {
    const PASID: usize = std::mem::offset_of!(iommu_test_cmd, body)
        + std::mem::offset_of!(iommu_test_pasid_attach, pasid);
    let attach = Some((Command::Test, Some(IOMMU_TEST_OP_PASID_ATTACH)));
    let id = std::mem::offset_of!(iommu_test_cmd, id);
    (rules::command(call) == attach)
        .then(|| (call.number(id, 4) as u32, call.number(PASID, 4) as u32))
}

/// The object that a call destroys.
fn destroys(call: &Call) -> Option<u32> {
    (rules::command(call) == Some((Command::Destroy, None))).then(|| call.number(4, 4) as u32)
}
