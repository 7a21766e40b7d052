//! Hardware page tables: the objects that own domains, and the commands on them.
//!
//! - [`paging`]: tables that mirror an IOAS, automatic (made by an attach to the IOAS, gone with
//!   its last device) or the user's.
//! - [`nested`]: tables whose first stage is the user's.
//! - [`dirty`]: dirty tracking.
//! - [`invalidate`]: invalidation of what the hardware cached of nested tables and vIOMMUs.

pub(crate) mod dirty;
pub(crate) mod invalidate;
pub(crate) mod nested;
pub(crate) mod paging;

use std::sync::Arc;

use ioctl_abi::iommufd::{IOMMU_HWPT_DATA_NONE, IOMMU_HWPT_FAULT_ID_VALID, iommu_hwpt_alloc};

use crate::call::Call;
use crate::device::Bound;
use crate::driver::{HwDomain, UserData};
use crate::fault_queue::FaultQueue;
use crate::ioas::Ioas;
use crate::object::Use;
use crate::viommu::Viommu;
use crate::{Context, Errno};

pub(crate) use nested::HwptNested;
pub(crate) use paging::HwptPaging;

/// A HWPT of either kind.
#[derive(Clone, Debug)]
pub(crate) enum Hwpt {
    /// Mirrors an IOAS.
    Paging(Use<HwptPaging>),
    /// The user's.
    Nested(Use<HwptNested>),
}

impl Hwpt {
    /// HWPT `id` of `context`. `ENOENT`.
    pub(crate) fn get(context: &Context, id: u32) -> Result<Self, Errno> {
        let objects = context.objects();
        let paging = objects.get::<HwptPaging>(id).map(Self::Paging);
        paging.or_else(|_| objects.get::<HwptNested>(id).map(Self::Nested))
    }

    pub(crate) fn id(&self) -> u32 {
        match self {
            Self::Paging(hwpt) => hwpt.id(),
            Self::Nested(hwpt) => hwpt.id(),
        }
    }

    pub(crate) fn domain(&self) -> HwDomain {
        match self {
            Self::Paging(hwpt) => HwDomain::Paging(hwpt.domain().clone()),
            Self::Nested(hwpt) => HwDomain::Nested(hwpt.domain().clone()),
        }
    }

    /// The table that mirrors an IOAS: itself, or what a nested one stands on.
    pub(crate) fn paging(&self) -> &HwptPaging {
        match self {
            Self::Paging(hwpt) => hwpt,
            Self::Nested(hwpt) => hwpt.parent(),
        }
    }

    pub(crate) fn ioas(&self) -> &Ioas {
        self.paging().ioas()
    }

    /// The driver that made its domain.
    pub(crate) fn driver(&self) -> &'static str {
        self.paging().driver()
    }

    /// Whether it may be attached to PASIDs.
    pub(crate) fn is_for_pasid(&self) -> bool {
        match self {
            Self::Paging(hwpt) => hwpt.is_for_pasid(),
            Self::Nested(hwpt) => hwpt.is_for_pasid(),
        }
    }

    pub(crate) fn fault_queue(&self) -> Option<&FaultQueue> {
        match self {
            Self::Paging(hwpt) => hwpt.fault_queue(),
            Self::Nested(hwpt) => hwpt.fault_queue(),
        }
    }

    /// Ends this use of it. An automatic one goes with its last user.
    pub(crate) fn put(self, context: &Context) {
        let automatic = matches!(&self, Self::Paging(hwpt) if hwpt.is_automatic());
        let id = self.id();
        drop(self);
        if automatic {
            context.objects().remove(id);
        }
    }
}

/// `IOMMU_HWPT_ALLOC`.
pub(crate) fn alloc(call: &Call<'_>, command: &mut iommu_hwpt_alloc) -> Result<(), Errno> {
    // The kernel does not look at `__reserved2`, nor at the pointer to no data.
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let untyped = command.data_type == IOMMU_HWPT_DATA_NONE;
    if untyped != (command.data_len == 0) {
        return Err(Errno::EINVAL);
    }
    let objects = call.context.objects();
    let bound = objects.get::<Bound>(command.dev_id)?;
    let data = UserData::new(&*call.memory, command.data_type, command.data_uptr, command.data_len);
    let asked = Asked { flags: command.flags, bound: &bound, data, fault_id: command.fault_id };
    let hwpt = if let Ok(ioas) = objects.get::<Ioas>(command.pt_id) {
        Hwpt::Paging(paging::alloc(call.context, &ioas, &asked)?)
    } else if let Ok(parent) = objects.get::<HwptPaging>(command.pt_id) {
        Hwpt::Nested(nested::alloc(call.context, parent, &asked)?)
    } else if let Ok(viommu) = objects.get::<Viommu>(command.pt_id) {
        Hwpt::Nested(nested::alloc_in_viommu(call.context, viommu, &asked)?)
    } else {
        return Err(Errno::EINVAL);
    };
    command.out_hwpt_id = hwpt.id();
    drop(hwpt);
    call.respond(command).inspect_err(|_| {
        objects.remove(command.out_hwpt_id);
    })
}

/// What the user asks of a new HWPT.
struct Asked<'a> {
    /// `enum iommufd_hwpt_alloc_flags`, unchecked.
    flags: u32,
    bound: &'a Bound,
    data: UserData<'a>,
    fault_id: u32,
}

impl Asked<'_> {
    /// The fault queue that the user named, if it named one. `ENOENT`.
    fn fault_queue(&self, context: &Context) -> Result<Option<Use<FaultQueue>>, Errno> {
        if self.flags & IOMMU_HWPT_FAULT_ID_VALID == 0 {
            return Ok(None);
        }
        context.objects().get(self.fault_id).map(Some)
    }
}

/// Makes HWPTs of one context comparable by age, whatever ids they got.
fn next_age() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The same domain, as an IOAS sees it.
fn upcast(domain: &Arc<dyn crate::driver::PagingDomain>) -> Arc<dyn crate::domain::Domain> {
    domain.clone()
}
