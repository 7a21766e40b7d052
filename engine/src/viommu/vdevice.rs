//! vDEVICEs: what a vIOMMU's user calls a device.
//!
//! A vDEVICE lasts no longer than its device is bound. When the device goes first, it takes the
//! vDEVICE along, and the object id stays taken, and names nothing, until the context closes: the
//! user may still think that it owns it.

use std::sync::{Arc, Weak};

use ioctl_abi::iommufd::iommu_vdevice_alloc;

use crate::call::Call;
use crate::device::Bound;
use crate::inspect::{Detail, Scope};
use crate::object::{Kind, Object, Use};
use crate::{Errno, inject};

use super::Viommu;

/// A vDEVICE.
pub(crate) struct Vdevice {
    viommu: Use<Viommu>,
    bound: Weak<Bound>,
    device: Arc<dyn crate::driver::IommuDevice>,
    virt_id: u64,
}

impl Object for Vdevice {
    fn kind(&self) -> Kind {
        Kind::Vdevice
    }

    fn report(&self, _: Scope) -> Detail {
        let (viommu, device) = (self.viommu.handle().id(), self.device.name());
        Detail::Vdevice { viommu, device, virt_id: self.virt_id }
    }

    fn destroy(&self) {
        self.viommu.ops().vdevice_destroy(&self.device, self.virt_id);
        self.viommu.handle().remove_device(self.virt_id);
        if let Some(bound) = self.bound.upgrade() {
            bound.set_vdevice(None);
        }
    }
}

/// `IOMMU_VDEVICE_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_vdevice_alloc) -> Result<(), Errno> {
    let objects = call.context.objects();
    let viommu = objects.get::<Viommu>(command.viommu_id)?;
    let bound = objects.get::<Bound>(command.dev_id)?;
    viommu.check_instance(&bound)?;
    if bound.vdevice().is_some() {
        return Err(Errno::EEXIST);
    }
    let reserved = objects.reserve()?;
    let id = reserved.id();
    let (virt_id, device) = (command.virt_id, bound.device().clone());
    viommu.handle().add_device(virt_id, &device)?;
    let made = inject::site("vdevice: driver")
        .and_then(|()| viommu.ops().vdevice_init(&device, virt_id))
        .inspect_err(|_| viommu.handle().remove_device(virt_id));
    made?;
    let vdevice = Vdevice { viommu, bound: Arc::downgrade(bound.object()), device, virt_id };
    command.out_vdevice_id = id;
    if let Err(error) = call.respond(command) {
        vdevice.destroy();
        return Err(error);
    }
    reserved.commit(Arc::new(vdevice));
    bound.set_vdevice(Some(id));
    Ok(())
}
