//! HWPTs that mirror an IOAS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ioctl_abi::iommufd::{
    IOMMU_HWPT_ALLOC_DIRTY_TRACKING, IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_PASID,
    IOMMU_HWPT_FAULT_ID_VALID,
};

use crate::driver::{HwCapabilities, HwptFlags, IommuDevice, PagingDomain, UserData};
use crate::fault_queue::FaultQueue;
use crate::inspect::{Detail, Scope};
use crate::ioas::Ioas;
use crate::object::{Kind, Object, Use};
use crate::{Context, Errno};

use super::{Asked, next_age, upcast};

const KNOWN_FLAGS: u32 = IOMMU_HWPT_ALLOC_NEST_PARENT
    | IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    | IOMMU_HWPT_FAULT_ID_VALID
    | IOMMU_HWPT_ALLOC_PASID;

/// A HWPT that mirrors an IOAS.
pub(crate) struct HwptPaging {
    id: u32,
    age: u64,
    domain: Arc<dyn PagingDomain>,
    driver: &'static str,
    flags: HwptFlags,
    automatic: bool,
    /// Whether all its mappings are cache coherent.
    coherent: AtomicBool,
    ioas: Use<Ioas>,
    fault_queue: OnceLock<Use<FaultQueue>>,
}

impl HwptPaging {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn domain(&self) -> &Arc<dyn PagingDomain> {
        &self.domain
    }

    pub(crate) fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    /// The IOAS, for who keeps it.
    pub(crate) fn ioas_use(&self) -> &Use<Ioas> {
        &self.ioas
    }

    pub(super) fn driver(&self) -> &'static str {
        self.driver
    }

    pub(crate) fn is_nest_parent(&self) -> bool {
        self.flags.contains(HwptFlags::NEST_PARENT)
    }

    pub(super) fn is_for_pasid(&self) -> bool {
        self.flags.contains(HwptFlags::PASID)
    }

    pub(super) fn is_automatic(&self) -> bool {
        self.automatic
    }

    pub(super) fn fault_queue(&self) -> Option<&FaultQueue> {
        self.fault_queue.get().map(|queue| &**queue)
    }

    /// Maps in the domain all that the IOAS maps, from now on.
    pub(crate) fn fill(&self) -> Result<(), Errno> {
        self.ioas.attach_domain(&upcast(&self.domain))
    }

    /// Where the device's IOMMU can make no-snoop requests coherent, this HWPT must be. `EINVAL`.
    pub(crate) fn check_coherency(&self, device: &dyn IommuDevice) -> Result<(), Errno> {
        if !device.enforces_cache_coherency() || self.coherent.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.domain.enforce_cache_coherency() {
            return Err(Errno::EINVAL);
        }
        self.coherent.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Object for HwptPaging {
    fn kind(&self) -> Kind {
        Kind::HwptPaging
    }

    fn report(&self, _: Scope) -> Detail {
        let named = [
            (HwptFlags::NEST_PARENT, "nest-parent"),
            (HwptFlags::DIRTY_TRACKING, "dirty-tracking"),
            (HwptFlags::PASID, "pasid"),
        ];
        let set = named.iter().filter(|(flag, _)| self.flags.contains(*flag));
        Detail::HwptPaging {
            ioas: self.ioas.id(),
            automatic: self.automatic,
            driver: self.driver.into(),
            flags: set.map(|&(_, name)| name.into()).collect(),
            page_sizes: self.domain.page_sizes(),
            faults: self.fault_queue.get().is_some(),
        }
    }

    fn destroy(&self) {
        self.ioas.detach_domain(&upcast(&self.domain));
    }
}

/// The HWPTs of `ioas` that attaches made, oldest first.
pub(crate) fn automatic(context: &Context, ioas: &Ioas) -> Vec<Use<HwptPaging>> {
    let mut found = Vec::new();
    let objects = context.objects();
    objects.each::<HwptPaging>(|id, hwpt| {
        if hwpt.automatic && hwpt.ioas.id() == ioas.id() {
            found.extend(objects.get::<HwptPaging>(id));
        }
    });
    found.sort_by_key(|hwpt| hwpt.age);
    found
}

/// Makes a HWPT for an attach of `device` to `ioas`. It is still to be filled.
pub(crate) fn alloc_automatic(
    context: &Context,
    ioas: &Use<Ioas>,
    device: &Arc<dyn IommuDevice>,
) -> Result<Use<HwptPaging>, Errno> {
    make(context, ioas, &**device, HwptFlags::empty(), None, None)
}

/// Makes a HWPT that the user asked for.
pub(super) fn alloc(
    context: &Context,
    ioas: &Use<Ioas>,
    asked: &Asked<'_>,
) -> Result<Use<HwptPaging>, Errno> {
    let (flags, device) = (asked.flags, &**asked.bound.device());
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let with = |flag| flags & flag != 0;
    let tracks = device.capabilities().contains(HwCapabilities::DIRTY_TRACKING);
    if with(IOMMU_HWPT_ALLOC_DIRTY_TRACKING) && !tracks {
        return Err(Errno::EOPNOTSUPP);
    }
    if with(IOMMU_HWPT_FAULT_ID_VALID) && with(IOMMU_HWPT_ALLOC_NEST_PARENT) {
        return Err(Errno::EOPNOTSUPP);
    }
    let data = (asked.data.length() != 0).then_some(&asked.data);
    make(context, ioas, device, HwptFlags::from_bits_truncate(flags), data, Some(asked))
}

/// Makes one: for the user what it asked for, filled, or an automatic one, empty.
fn make(
    context: &Context,
    ioas: &Use<Ioas>,
    device: &dyn IommuDevice,
    flags: HwptFlags,
    data: Option<&UserData<'_>>,
    asked: Option<&Asked<'_>>,
) -> Result<Use<HwptPaging>, Errno> {
    let objects = context.objects();
    let reserved = objects.reserve()?;
    let domain = device.alloc_paging(flags, data)?;
    let hwpt = Arc::new(HwptPaging {
        id: reserved.id(),
        age: next_age(),
        domain,
        driver: device.driver(),
        flags,
        automatic: asked.is_none(),
        coherent: AtomicBool::new(false),
        ioas: ioas.clone(),
        fault_queue: OnceLock::new(),
    });
    hwpt.check_coherency(device)?;
    if let Some(asked) = asked {
        hwpt.fill()?;
        // Looked for last: what is wrong with the mappings comes before.
        match asked.fault_queue(context) {
            Ok(queue) => queue.into_iter().for_each(|queue| _ = hwpt.fault_queue.set(queue)),
            Err(error) => {
                hwpt.destroy();
                return Err(error);
            }
        }
    }
    Ok(reserved.commit_used(hwpt))
}
