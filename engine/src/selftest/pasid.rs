//! PASIDs of mock devices.

use ioctl_abi::selftest::{
    iommu_test_cmd, iommu_test_pasid_attach, iommu_test_pasid_check, iommu_test_pasid_detach,
    iommu_test_pasid_replace,
};

use super::device::SelftestDevice;
use crate::Errno;
use crate::call::Call;

/// `IOMMU_TEST_OP_PASID_ATTACH`.
pub(super) fn attach(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_pasid_attach = command.body();
    SelftestDevice::with(call.context, command.id, |device| {
        body.pt_id = device.attach(body.pasid, body.pt_id)?;
        command.set_body(&body);
        call.respond(command).inspect_err(|_| device.detach(body.pasid))
    })
}

/// `IOMMU_TEST_OP_PASID_REPLACE`.
pub(super) fn replace(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_pasid_replace = command.body();
    body.pt_id = SelftestDevice::with(call.context, command.id, |device| {
        device.replace(body.pasid, body.pt_id)
    })?;
    command.set_body(&body);
    call.respond(command)
}

/// `IOMMU_TEST_OP_PASID_DETACH`.
pub(super) fn detach(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_pasid_detach = command.body();
    SelftestDevice::with(call.context, command.id, |device| {
        device.detach(body.pasid);
        Ok(())
    })
}

/// `IOMMU_TEST_OP_PASID_CHECK_HWPT`: `EINVAL` when the PASID is attached to anything else than the
/// HWPT, or is attached though the user says 0; `ENOENT` for no such object.
pub(super) fn check(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_pasid_check = command.body();
    SelftestDevice::with(call.context, command.id, |device| {
        let expected = match body.hwpt_id {
            0 => None,
            id => {
                // Whatever object it is: one that is no HWPT is not what is attached.
                call.context.objects().get_any(id)?;
                Some(id)
            }
        };
        if device.attached(body.pasid) == expected { Ok(()) } else { Err(Errno::EINVAL) }
    })
}
