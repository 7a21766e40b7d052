//! Virtual IOMMUs, and what belongs to one: virtual devices, event queues, hardware queues and
//! memory that the user may map.

pub(crate) mod handle;
pub(crate) mod hw_queue;
pub(crate) mod mmap;
pub(crate) mod vdevice;
pub(crate) mod veventq;

use std::sync::Arc;

use ioctl_abi::iommufd::{IOMMU_VIOMMU_TYPE_DEFAULT, iommu_viommu_alloc};

use crate::call::Call;
use crate::device::Bound;
use crate::driver::{self, UserData};
use crate::hwpt::HwptPaging;
use crate::inspect::{Detail, Scope};
use crate::object::{Kind, Object, Use};
use crate::{Errno, inject};

use handle::ViommuHandle;
use hw_queue::HwQueues;

/// A vIOMMU: the driver's half, the engine's half, and the table that it stands on.
pub(crate) struct Viommu {
    handle: ViommuHandle,
    ops: Arc<dyn driver::Viommu>,
    parent: Use<HwptPaging>,
    /// The IOMMU that it is a slice of.
    instance: u64,
    hw_queues: HwQueues,
}

impl Viommu {
    pub(crate) fn handle(&self) -> &ViommuHandle {
        &self.handle
    }

    pub(crate) fn ops(&self) -> &dyn driver::Viommu {
        &*self.ops
    }

    pub(crate) fn parent(&self) -> &HwptPaging {
        &self.parent
    }

    pub(crate) fn hw_queues(&self) -> &HwQueues {
        &self.hw_queues
    }

    /// `EINVAL` for a device behind another IOMMU.
    pub(crate) fn check_instance(&self, bound: &Bound) -> Result<(), Errno> {
        if bound.device().instance() == self.instance { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl Object for Viommu {
    fn kind(&self) -> Kind {
        Kind::Viommu
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::Viommu { parent: self.parent.id() }
    }

    fn destroy(&self) {
        self.handle.free_all_mmaps();
    }
}

/// `IOMMU_VIOMMU_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_viommu_alloc) -> Result<(), Errno> {
    let default = command.r#type == IOMMU_VIOMMU_TYPE_DEFAULT;
    // The kernel does not look at `__reserved`.
    if command.flags != 0 || default {
        return Err(Errno::EOPNOTSUPP);
    }
    let objects = call.context.objects();
    let bound = objects.get::<Bound>(command.dev_id)?;
    let device = bound.device();
    if !device.supports_viommu(command.r#type) {
        return Err(Errno::EOPNOTSUPP);
    }
    let parent = objects.get::<HwptPaging>(command.hwpt_id)?;
    if !parent.is_nest_parent() {
        return Err(Errno::EINVAL);
    }
    let reserved = objects.reserve()?;
    let id = reserved.id();
    let handle = ViommuHandle::new(call.context, id);
    let data = UserData::new(&*call.memory, command.r#type, command.data_uptr, command.data_len);
    let data = (command.data_len != 0).then_some(&data);
    inject::site("viommu: driver")?;
    let made = device.viommu_init(command.r#type, parent.domain(), handle.clone(), data);
    let respond = |ops| {
        command.out_viommu_id = id;
        call.respond(command).map(|()| ops)
    };
    let ops = made.and_then(respond).inspect_err(|_| handle.free_all_mmaps())?;
    let (instance, hw_queues) = (device.instance(), HwQueues::default());
    reserved.commit(Arc::new(Viommu { handle, ops, parent, instance, hw_queues }));
    Ok(())
}
