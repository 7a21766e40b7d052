//! What mock hardware reports by itself: page faults and events of a vIOMMU.

use ioctl_abi::selftest::{iommu_test_cmd, iommu_test_trigger_iopf, iommu_test_trigger_vevent};

use crate::Errno;
use crate::call::Call;
use crate::driver::{Fault, NO_PASID};
use crate::kapi;
use crate::mock::MockDevice;

/// `IOMMU_TEST_OP_TRIGGER_IOPF`: one page request that is a group of its own. That nobody takes it
/// is the device's misfortune and no error of the call.
pub(super) fn page_fault(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_trigger_iopf = command.body();
    let fault = Fault {
        pasid: (body.pasid != NO_PASID).then_some(body.pasid),
        group_id: body.grpid,
        permissions: body.perm,
        address: body.addr,
        last: true,
    };
    kapi::device(call.context, body.dev_id)?;
    if let Err(error) = kapi::report_fault(call.context, body.dev_id, fault) {
        tracing::debug!(device = body.dev_id, %error, "page fault of a mock device failed");
    }
    Ok(())
}

/// `IOMMU_TEST_OP_TRIGGER_VEVENT`.
pub(super) fn event(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_trigger_vevent = command.body();
    let device = kapi::device(call.context, body.dev_id)?;
    MockDevice::of(&*device).ok_or(Errno::EINVAL)?.trigger_event()
}
