//! HWPTs whose first stage is the user's, on top of a nesting parent or a vIOMMU.

use std::sync::Arc;

use ioctl_abi::iommufd::{IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_FAULT_ID_VALID};

use crate::driver::{HwptFlags, NestedDomain};
use crate::fault_queue::FaultQueue;
use crate::inspect::{Detail, Scope};
use crate::object::{Kind, Object, Use};
use crate::viommu::Viommu;
use crate::{Context, Errno};

use super::{Asked, HwptPaging};

const KNOWN_FLAGS: u32 = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

/// A nested HWPT.
pub(crate) struct HwptNested {
    id: u32,
    domain: Arc<dyn NestedDomain>,
    flags: HwptFlags,
    base: Base,
    fault_queue: Option<Use<FaultQueue>>,
}

/// What a nested HWPT stands on.
enum Base {
    Parent(Use<HwptPaging>),
    Viommu(Use<Viommu>),
}

impl HwptNested {
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn domain(&self) -> &Arc<dyn NestedDomain> {
        &self.domain
    }

    pub(super) fn parent(&self) -> &HwptPaging {
        match &self.base {
            Base::Parent(parent) => parent,
            Base::Viommu(viommu) => viommu.parent(),
        }
    }

    pub(super) fn is_for_pasid(&self) -> bool {
        self.flags.contains(HwptFlags::PASID)
    }

    pub(super) fn fault_queue(&self) -> Option<&FaultQueue> {
        self.fault_queue.as_deref()
    }
}

impl Object for HwptNested {
    fn kind(&self) -> Kind {
        Kind::HwptNested
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::HwptNested { parent: self.parent().id(), faults: self.fault_queue.is_some() }
    }
}

/// On top of `parent`.
pub(super) fn alloc(
    context: &Context,
    parent: Use<HwptPaging>,
    asked: &Asked<'_>,
) -> Result<Use<HwptNested>, Errno> {
    let flags = check(asked)?;
    let device = asked.bound.device();
    let same_driver = parent.driver() == device.driver();
    if parent.is_automatic() || !parent.is_nest_parent() || !same_driver {
        return Err(Errno::EINVAL);
    }
    let domain = parent.domain().clone();
    let make = || device.alloc_nested(&domain, flags, &asked.data);
    finish(context, asked, flags, Base::Parent(parent), make)
}

/// On top of the parent of `viommu`.
pub(super) fn alloc_in_viommu(
    context: &Context,
    viommu: Use<Viommu>,
    asked: &Asked<'_>,
) -> Result<Use<HwptNested>, Errno> {
    viommu.check_instance(asked.bound)?;
    let flags = check(asked)?;
    let object = viommu.object().clone();
    let make = || object.ops().alloc_nested(flags, &asked.data);
    finish(context, asked, flags, Base::Viommu(viommu), make)
}

fn check(asked: &Asked<'_>) -> Result<HwptFlags, Errno> {
    if asked.flags & !KNOWN_FLAGS != 0 || asked.data.length() == 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(HwptFlags::from_bits_truncate(asked.flags))
}

fn finish(
    context: &Context,
    asked: &Asked<'_>,
    flags: HwptFlags,
    base: Base,
    make: impl FnOnce() -> Result<Arc<dyn NestedDomain>, Errno>,
) -> Result<Use<HwptNested>, Errno> {
    let reserved = context.objects().reserve()?;
    let domain = make()?;
    let fault_queue = asked.fault_queue(context)?;
    let hwpt = HwptNested { id: reserved.id(), domain, flags, base, fault_queue };
    Ok(reserved.commit_used(Arc::new(hwpt)))
}
