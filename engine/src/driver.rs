//! What an IOMMU driver gives the engine: the traits behind a device, its domains and its vIOMMUs.
//!
//! The engine knows no hardware. A simulated IOMMU implements [`IommuDevice`] for each device
//! behind it, [`PagingDomain`] for the page tables that it can hold and, where it nests,
//! [`NestedDomain`] and [`Viommu`]. Nothing of that touches the engine's own files; the external
//! driver that owns the device binds it through [`crate::kapi`].
//!
//! # Calls and locks
//! The engine calls these methods with the context's serial lock held, so that at most one call
//! runs for a device at a time; only [`IommuDevice::page_response`] also comes from a write to a
//! fault queue's file, with no lock held. A driver may call back what it was handed
//! ([`ViommuHandle`], [`crate::kapi::Device::report_fault`]) from anywhere and at any time; it may
//! not bind, attach, replace, detach or unbind from inside one of these methods.
//!
//! # Errors
//! A driver answers with the kernel's errno and is passed on unchanged. Two mean something to the
//! engine: `EINVAL` from [`IommuDevice::set_domain`] says that this domain will not do for this
//! device (the automatic choice of a domain then tries the next), `EOPNOTSUPP` that the hardware
//! lacks the feature. A failed call has changed nothing. Where a kernel driver allocates, ours
//! passes [`crate::inject::site`].

use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::Errno;
use crate::dma::{FirstStage, Port};
use crate::domain::Domain;

pub use crate::group::Group;
pub use crate::user_data::{UserArray, UserData};
pub use crate::viommu::handle::{MmapMemory, ViommuHandle};

/// The PASID that means the device itself: its requests without PASID (its RID).
pub const NO_PASID: u32 = 0;

bitflags::bitflags! {
    /// What the user asked of a domain: `enum iommufd_hwpt_alloc_flags`, without
    /// `IOMMU_HWPT_FAULT_ID_VALID`, which is the engine's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HwptFlags: u32 {
        /// `IOMMU_HWPT_ALLOC_NEST_PARENT`: nested domains will stand on it.
        const NEST_PARENT = 1;
        /// `IOMMU_HWPT_ALLOC_DIRTY_TRACKING`: every device on it must track dirty pages.
        const DIRTY_TRACKING = 2;
        /// `IOMMU_HWPT_ALLOC_PASID`: may be attached to a PASID.
        const PASID = 8;
    }
}

bitflags::bitflags! {
    /// `enum iommufd_hw_capabilities`: what `IOMMU_GET_HW_INFO` reports in `out_capabilities`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HwCapabilities: u64 {
        /// `IOMMU_HW_CAP_DIRTY_TRACKING`.
        const DIRTY_TRACKING = 1;
        /// `IOMMU_HW_CAP_PCI_PASID_EXEC`.
        const PCI_PASID_EXEC = 2;
        /// `IOMMU_HW_CAP_PCI_PASID_PRIV`.
        const PCI_PASID_PRIV = 4;
        /// `IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED`.
        const PCI_ATS_NOT_SUPPORTED = 8;
    }
}

/// The type-specific answer of `IOMMU_GET_HW_INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// `enum iommu_hw_info_type`.
    pub data_type: u32,
    /// The struct that belongs to the type, as the uAPI lays it out.
    pub data: Vec<u8>,
}

/// IOVAs that a device cannot use for DMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// First and last IOVA.
    pub range: RangeInclusive<u64>,
    /// Why it is reserved.
    pub kind: ReservedKind,
}

/// Why IOVAs are reserved, with the kernel's distinctions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Must be mapped one to one.
    Direct,
    /// Should be mapped one to one, but may be given up: reserves nothing here.
    DirectRelaxable,
    /// Never reaches the IOMMU.
    Reserved,
    /// Interrupts, by hardware.
    Msi,
    /// Interrupts, where software chose.
    SoftwareMsi,
}

/// One device behind a simulated IOMMU.
pub trait IommuDevice: Any + Send + Sync {
    /// For reports: "iommufd_mock1".
    fn name(&self) -> String;

    /// The driver of the IOMMU. Only domains of the same driver fit a device.
    fn driver(&self) -> &'static str;

    /// Which IOMMU the device is behind; a vIOMMU serves devices of one instance only.
    fn instance(&self) -> u64;

    /// The devices that the IOMMU cannot tell apart from this one.
    fn group(&self) -> &Arc<Group>;

    /// The info of type `requested` (`enum iommu_hw_info_type`; 0 for the driver's default), or
    /// nothing when the driver has none at all (`IOMMU_HW_INFO_TYPE_NONE`). `EOPNOTSUPP` for a
    /// type that it does not have.
    fn hw_info(&self, requested: u32) -> Result<Option<HwInfo>, Errno>;

    /// What the hardware can do.
    fn capabilities(&self) -> HwCapabilities;

    /// Bits of a PASID, 0 when the device has none.
    fn max_pasid_log2(&self) -> u8 {
        0
    }

    /// Whether DMA is coherent with the CPU's caches; a device that is not cannot be bound.
    fn cache_coherent(&self) -> bool {
        true
    }

    /// Whether the IOMMU can make no-snoop requests coherent. If so each domain made for the
    /// device is asked to ([`Domain::enforce_cache_coherency`]).
    fn enforces_cache_coherency(&self) -> bool {
        false
    }

    /// IOVAs that the device cannot use. `ENOMEM`.
    fn reserved_regions(&self) -> Result<Vec<ReservedRegion>, Errno> {
        Ok(Vec::new())
    }

    /// Makes a paging domain. `data` is what the user passed for the driver, if anything.
    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn PagingDomain>, Errno>;

    /// Makes a domain whose first stage the user owns, on top of `parent`, which was made with
    /// [`HwptFlags::NEST_PARENT`] by this driver.
    fn alloc_nested(
        &self,
        parent: &Arc<dyn PagingDomain>,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        let _ = (parent, flags, data);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes `change` true for `pasid` ([`NO_PASID`] for the device itself): attach, replace and
    /// detach are the three combinations of an old and a new domain. A detach (no new domain)
    /// blocks all DMA and may not fail. When several devices share a group it is called for each.
    ///
    /// `pasid` has been checked against [`IommuDevice::max_pasid_log2`], and the domain's driver
    /// against [`IommuDevice::driver`].
    fn set_domain(&self, pasid: u32, change: DomainChange<'_>) -> Result<(), Errno>;

    /// The answer to a fault that [`crate::kapi::Device::report_fault`] took, once for each group.
    fn page_response(&self, response: PageResponse);

    /// Where DMA of the device (or a PASID) comes from, if anyone opened it. The engine points it
    /// at what the PASID is attached to.
    fn port(&self, pasid: u32) -> Option<Arc<Port>> {
        let _ = pasid;
        None
    }

    /// The same, made if need be. Nothing when the device has no DMA to simulate. The driver
    /// passes what [`IommuDevice::page_response`] hears on to [`Port::answer`].
    fn open_port(&self, pasid: u32) -> Option<Arc<Port>> {
        self.port(pasid)
    }

    /// Whether the driver has vIOMMUs of `viommu_type` (`enum iommu_viommu_type`).
    fn supports_viommu(&self, viommu_type: u32) -> bool {
        let _ = viommu_type;
        false
    }

    /// Makes the driver's half of a vIOMMU on top of `parent`. `handle` is the engine's half.
    /// `data` may carry the driver's answer back ([`UserData::write`]).
    fn viommu_init(
        &self,
        viommu_type: u32,
        parent: &Arc<dyn PagingDomain>,
        handle: ViommuHandle,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn Viommu>, Errno> {
        let _ = (viommu_type, parent, handle, data);
        Err(Errno::EOPNOTSUPP)
    }
}

/// A page table that maps an IOAS.
pub trait PagingDomain: Domain + Any {
    /// Whether it was made to track dirty pages: the dirty commands answer `EOPNOTSUPP` if not.
    fn tracks_dirty(&self) -> bool;
}

/// A page table whose first stage is the user's.
pub trait NestedDomain: Any + Send + Sync {
    /// The user's table as DMA walks it; none when the first stage changes no address.
    fn first_stage(&self) -> Option<Arc<dyn FirstStage>> {
        None
    }

    /// Whether caches of it can be invalidated at all.
    fn invalidates(&self) -> bool {
        false
    }

    /// Handles the requests of `requests` one after another. Answers how many were done, and why
    /// it stopped early. A type that it does not know is `EINVAL`, for an empty array, too.
    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        let _ = requests;
        (0, Err(Errno::EOPNOTSUPP))
    }
}

/// What a device or a PASID of it is attached to.
#[derive(Clone)]
pub enum HwDomain {
    /// A table that maps an IOAS.
    Paging(Arc<dyn PagingDomain>),
    /// A table that the user owns.
    Nested(Arc<dyn NestedDomain>),
}

impl HwDomain {
    /// Whether both are the very same domain.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Paging(a), Self::Paging(b)) => Arc::ptr_eq(a, b),
            (Self::Nested(a), Self::Nested(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A step from one domain to another.
#[derive(Clone, Copy)]
pub struct DomainChange<'a> {
    /// What it is attached to now.
    pub old: Option<&'a HwDomain>,
    /// What it shall be attached to. Nothing to detach.
    pub new: Option<&'a HwDomain>,
    /// Whether page faults on `new` are delivered to a fault queue; if not they fail.
    pub faults: bool,
}

/// A page request of a device: `struct iommu_hwpt_pgfault` without what the engine adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The PASID, or nothing for a request without.
    pub pasid: Option<u32>,
    /// Page request group index.
    pub group_id: u32,
    /// `enum iommu_hwpt_pgfault_perm`.
    pub permissions: u32,
    /// The IOVA.
    pub address: u64,
    /// Whether it closes its group: only then is the group delivered.
    pub last: bool,
}

/// How a group of faults was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The PASID of the group, or nothing.
    pub pasid: Option<u32>,
    /// Page request group index.
    pub group_id: u32,
    /// Success or failure.
    pub code: ResponseCode,
}

/// `enum iommufd_page_response_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// Retry the access.
    Success,
    /// Do not retry.
    Invalid,
}

/// The driver's half of a vIOMMU. Dropped when the vIOMMU goes.
pub trait Viommu: Any + Send + Sync {
    /// Makes a nested domain on top of the vIOMMU's parent.
    fn alloc_nested(
        &self,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedDomain>, Errno> {
        let _ = (flags, data);
        Err(Errno::EOPNOTSUPP)
    }

    /// Whether it takes invalidation requests at all.
    fn invalidates(&self) -> bool {
        false
    }

    /// Handles requests, as [`NestedDomain::invalidate`] does. Devices are looked up with
    /// [`ViommuHandle::device`].
    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        let _ = requests;
        (0, Err(Errno::EOPNOTSUPP))
    }

    /// `device` becomes `virt_id` of the vIOMMU; [`ViommuHandle::device`] finds it already.
    fn vdevice_init(&self, device: &Arc<dyn IommuDevice>, virt_id: u64) -> Result<(), Errno> {
        let _ = (device, virt_id);
        Ok(())
    }

    /// `device` is no longer `virt_id`. Called once for each successful `vdevice_init`.
    fn vdevice_destroy(&self, device: &Arc<dyn IommuDevice>, virt_id: u64) {
        let _ = (device, virt_id);
    }

    /// Whether it has hardware queues of `queue_type` (`enum iommu_hw_queue_type`).
    fn supports_hw_queue(&self, queue_type: u32) -> bool {
        let _ = queue_type;
        false
    }

    /// Starts a hardware queue. Its memory is pinned and physically contiguous for as long as the
    /// queue lives.
    fn hw_queue_init(&self, queue: &HwQueueRequest) -> Result<NewHwQueue, Errno> {
        let _ = queue;
        Err(Errno::EOPNOTSUPP)
    }
}

/// A hardware queue to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwQueueRequest {
    /// `enum iommu_hw_queue_type`.
    pub queue_type: u32,
    /// Which queue of that type.
    pub index: u32,
    /// Where the guest put it: an IOVA of the nesting parent.
    pub iova: u64,
    /// Physical address of its first byte.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
}

/// A hardware queue that has started.
pub struct NewHwQueue {
    /// The driver's half. Dropping it stops the queue.
    pub queue: Box<dyn Any + Send + Sync>,
    /// The index of the queue of the same type that may not be destroyed before this one.
    pub depends_on: Option<u32>,
}
