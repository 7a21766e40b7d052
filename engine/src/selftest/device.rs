//! Mock devices: made, attached and moved at the user's word.

use std::sync::Arc;

use ioctl_abi::selftest::{
    iommu_test_cmd, iommu_test_mock_domain, iommu_test_mock_domain_flags,
    iommu_test_mock_domain_replace,
};
use parking_lot::Mutex;

use crate::call::Call;
use crate::driver::NO_PASID;
use crate::inspect::{Detail, Scope};
use crate::kapi::{Device, Lifetime};
use crate::mock::{DeviceFlags, MockDevice};
use crate::object::{Kind, Object, Use};
use crate::{Context, Errno};

/// A mock device as the user destroys it: the external driver's side.
pub(crate) struct SelftestDevice {
    /// Nothing once it was destroyed.
    device: Mutex<Option<Device>>,
}

impl SelftestDevice {
    /// The mock device `id`, to be used by `with`. `ENOENT`.
    pub(super) fn with<R>(
        context: &Context,
        id: u32,
        with: impl FnOnce(&Device) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let this: Use<Self> = context.objects().get(id)?;
        let device = this.device.lock();
        device.as_ref().ok_or(Errno::ENOENT).and_then(with)
    }

    /// The bound device's id, unless it is gone or just being changed.
    pub(crate) fn device_id(&self) -> Option<u32> {
        self.device.try_lock()?.as_ref().map(Device::id)
    }
}

impl Object for SelftestDevice {
    fn kind(&self) -> Kind {
        Kind::SelftestDevice
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::SelftestDevice { device: self.device_id() }
    }

    fn destroy(&self) {
        let device = self.device.lock().take();
        drop(device);
    }
}

/// `IOMMU_TEST_OP_MOCK_DOMAIN`.
pub(super) fn make(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_mock_domain = command.body();
    let made = Made::new(call, command.id, 0)?;
    body.out_stdev_id = made.stdev_id;
    body.out_hwpt_id = made.hwpt_id;
    body.out_idev_id = made.idev_id;
    command.set_body(&body);
    made.respond(call, command)
}

/// `IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS`.
pub(super) fn make_with_flags(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_mock_domain_flags = command.body();
    let made = Made::new(call, command.id, body.dev_flags)?;
    body.out_stdev_id = made.stdev_id;
    body.out_hwpt_id = made.hwpt_id;
    body.out_idev_id = made.idev_id;
    command.set_body(&body);
    made.respond(call, command)
}

/// A new device, attached.
struct Made {
    stdev_id: u32,
    idev_id: u32,
    hwpt_id: u32,
}

impl Made {
    fn new(call: &Call<'_>, pt_id: u32, flags: u32) -> Result<Self, Errno> {
        // Ids come out in the order in which the kernel takes them.
        let reserved = call.context.objects().reserve()?;
        let flags = DeviceFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        let mock = MockDevice::new(flags)?;
        let device = Device::bind(call.context, mock, Lifetime::WithContext)?;
        let hwpt_id = device.attach(NO_PASID, pt_id)?;
        let made = Self { stdev_id: reserved.id(), idev_id: device.id(), hwpt_id };
        reserved.commit(Arc::new(SelftestDevice { device: Mutex::new(Some(device)) }));
        Ok(made)
    }

    fn respond(self, call: &Call<'_>, command: &iommu_test_cmd) -> Result<(), Errno> {
        call.respond(command).inspect_err(|_| {
            call.context.objects().remove(self.stdev_id);
        })
    }
}

/// `IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`.
pub(super) fn replace(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_mock_domain_replace = command.body();
    body.pt_id = SelftestDevice::with(call.context, command.id, |device| {
        device.replace(NO_PASID, body.pt_id)
    })?;
    command.set_body(&body);
    call.respond(command)
}
