//! DMA of a bound device: its ports follow what it is attached to.

use std::sync::{Arc, Weak};

use crate::dma::{PageRequests, Port, Target};
use crate::driver::{Fault, NO_PASID};
use crate::hwpt::Hwpt;
use ioctl_abi::iommufd::{IOMMU_PGFAULT_PERM_READ, IOMMU_PGFAULT_PERM_WRITE};

use super::{Bound, Device};
use crate::Errno;

impl Device {
    /// The requester behind the device ([`NO_PASID`]) or one of its PASIDs. It stays the same
    /// through attach, replace and detach. `EOPNOTSUPP` when the driver simulates no DMA.
    pub fn dma(&self, pasid: u32) -> Result<Arc<Port>, Errno> {
        let _serial = self.context.serial();
        self.bound().object().open_dma(pasid)
    }
}

impl Bound {
    /// [`Device::dma`], with the serial lock held.
    pub(crate) fn open_dma(self: &Arc<Self>, pasid: u32) -> Result<Arc<Port>, Errno> {
        let port = self.device().open_port(pasid).ok_or(Errno::EOPNOTSUPP)?;
        let attachment = self.device().group().attachment(pasid).filter(|a| a.has(self));
        self.point_port(pasid, attachment.as_ref().map(|a| &a.hwpt));
        Ok(port)
    }

    /// Lets DMA of `pasid` go through `hwpt`, or blocks it.
    pub(super) fn point_port(self: &Arc<Self>, pasid: u32, hwpt: Option<&Hwpt>) {
        if let Some(port) = self.device().port(pasid) {
            port.retarget(hwpt.map(|hwpt| self.target(pasid, hwpt)));
        }
    }

    fn target(self: &Arc<Self>, pasid: u32, hwpt: &Hwpt) -> Target {
        let paging = hwpt.paging();
        let first_stage = match hwpt {
            Hwpt::Paging(_) => None,
            Hwpt::Nested(nested) => nested.domain().first_stage(),
        };
        let requests = hwpt.fault_queue().map(|_| {
            let requests = Requests { bound: Arc::downgrade(self), pasid };
            Arc::new(requests) as Arc<dyn PageRequests>
        });
        let domain = paging.domain().clone();
        Target { domain, first_stage, frames: paging.ioas_use().object().clone(), requests }
    }
}

/// Page requests of one port on their way to the fault queue.
struct Requests {
    bound: Weak<Bound>,
    pasid: u32,
}

impl PageRequests for Requests {
    fn request(&self, group: u32, iova: u64, write: bool) -> bool {
        let Some(bound) = self.bound.upgrade() else { return false };
        let write = if write { IOMMU_PGFAULT_PERM_WRITE } else { 0 };
        let fault = Fault {
            pasid: (self.pasid != NO_PASID).then_some(self.pasid),
            group_id: group,
            permissions: IOMMU_PGFAULT_PERM_READ | write,
            address: iova,
            last: true,
        };
        bound.report_fault(fault).is_ok()
    }
}
