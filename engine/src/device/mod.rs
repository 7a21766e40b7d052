//! Devices bound to a context by external drivers.

mod attach;
mod dma;
pub(crate) mod hw_info;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::context::Hold;
use crate::driver::{Fault, IommuDevice, NO_PASID};
use crate::fault_queue::{FaultGroup, Origin};
use crate::inspect::{Attachment, Detail, Scope};
use crate::iopt::Owner;
use crate::object::{Kind, Object, Use};
use crate::quota::{Quota, Resource, Taken};
use crate::{Context, Errno, inject};

/// Whether a handle of the kAPI keeps the context open after its last descriptor is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It does: the external driver's own file ends it, as with VFIO.
    HoldsContext,
    /// It does not: the handle belongs to an object of the context and goes with it.
    WithContext,
}

/// A bound device, as its external driver holds it. Dropping it unbinds.
pub struct Device {
    context: Arc<Context>,
    bound: Option<Use<Bound>>,
    _hold: Option<Hold>,
}

/// The object behind a [`Device`].
pub(crate) struct Bound {
    id: u32,
    device: Arc<dyn IommuDevice>,
    /// In whose name its reserved regions are reserved.
    reserver: Owner,
    /// Its vDEVICE.
    vdevice: Mutex<Option<u32>>,
    /// Faults of groups that are not complete.
    partial_faults: Mutex<Vec<(Fault, Taken)>>,
    quota: Option<Arc<Quota>>,
}

impl Device {
    /// Binds `device` to `context`, which owns its group from now on.
    ///
    /// `EINVAL` when the device's DMA is not coherent, `EBUSY` when another context owns the
    /// group, `ENOMEM`.
    pub fn bind(
        context: &Arc<Context>,
        device: Arc<dyn IommuDevice>,
        lifetime: Lifetime,
    ) -> Result<Self, Errno> {
        let _serial = context.serial();
        if !device.cache_coherent() {
            return Err(Errno::EINVAL);
        }
        inject::site("device: group")?;
        device.group().claim(context.id())?;
        let reserved = context.objects().reserve().inspect_err(|_| device.group().release())?;
        let bound = Bound {
            id: reserved.id(),
            device,
            reserver: Owner::unique(),
            vdevice: Mutex::default(),
            partial_faults: Mutex::default(),
            quota: context.quota().cloned(),
        };
        let bound = reserved.commit_used(Arc::new(bound));
        let hold = (lifetime == Lifetime::HoldsContext).then(|| context.hold());
        Ok(Self { context: context.clone(), bound: Some(bound), _hold: hold })
    }

    /// The object id that the user sees.
    pub fn id(&self) -> u32 {
        self.bound().id
    }

    /// The IOMMU driver's view of the device.
    pub fn device(&self) -> &Arc<dyn IommuDevice> {
        &self.bound().device
    }

    /// Attaches the device ([`NO_PASID`]) or one of its PASIDs to `pt_id`: a HWPT, or an IOAS, for
    /// which a suitable HWPT is found or made. Answers the HWPT's id.
    ///
    /// `ENOENT` for no such object, `EINVAL` for one that will not do (of another kind; another
    /// one than the rest of the group has; not made for PASIDs), `EADDRINUSE` when IOVAs that the
    /// device cannot use are mapped, `EBUSY` when it is attached already, and what the IOMMU
    /// driver says.
    pub fn attach(&self, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        let _serial = self.context.serial();
        attach::change(&self.context, self.bound(), pasid, pt_id, attach::How::Attach)
    }

    /// Moves the device or a PASID, which must be attached (`EINVAL`), to `pt_id` without a gap.
    /// The whole group moves. On an error nothing has changed. Answers the HWPT's id.
    pub fn replace(&self, pasid: u32, pt_id: u32) -> Result<u32, Errno> {
        let _serial = self.context.serial();
        attach::change(&self.context, self.bound(), pasid, pt_id, attach::How::Replace)
    }

    /// Detaches the device or a PASID. Nothing happens when it is not attached.
    pub fn detach(&self, pasid: u32) {
        let _serial = self.context.serial();
        attach::detach(&self.context, self.bound(), pasid);
    }

    /// The HWPT that the device or a PASID is attached to.
    pub fn attached(&self, pasid: u32) -> Option<u32> {
        let attachment = self.device().group().attachment(pasid)?;
        attachment.has(self.bound()).then(|| attachment.hwpt.id())
    }

    /// A fault of the device. It goes to the fault queue of the HWPT that its PASID is attached
    /// to, once the last of its group is there. `EINVAL` when there is none; the driver then
    /// answers the device itself.
    pub fn report_fault(&self, fault: Fault) -> Result<(), Errno> {
        self.bound().report_fault(fault)
    }

    /// Detaches and unbinds. A vDEVICE of the device goes, too, and leaves its id taken.
    pub fn unbind(self) {}

    fn bound(&self) -> &Use<Bound> {
        // Taken out only while dropping.
        self.bound.as_ref().expect("a bound device")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _serial = self.context.serial();
        let Some(bound) = self.bound.take() else { return };
        let vdevice = bound.vdevice.lock().take();
        if let Some(vdevice) = vdevice {
            self.context.objects().bury(vdevice);
        }
        for pasid in bound.device.group().pasids_of(&bound).into_iter().rev() {
            attach::detach(&self.context, &bound, pasid);
        }
        bound.device.group().release();
        let id = bound.id;
        drop(bound);
        self.context.objects().remove(id);
    }
}

impl Bound {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn device(&self) -> &Arc<dyn IommuDevice> {
        &self.device
    }

    pub(crate) fn vdevice(&self) -> Option<u32> {
        *self.vdevice.lock()
    }

    pub(crate) fn set_vdevice(&self, id: Option<u32>) {
        *self.vdevice.lock() = id;
    }

    fn origin(&self, attached: u32) -> Origin {
        Origin { device_id: self.id, attached }
    }

    pub(crate) fn report_fault(&self, fault: Fault) -> Result<(), Errno> {
        let group_id = fault.group_id;
        let taken = Taken::of(self.quota.as_ref(), Resource::Events)?;
        if !fault.last {
            inject::site("fault: partial")?;
            self.partial_faults.lock().push((fault, taken));
            return Ok(());
        }
        let mut partial = self.partial_faults.lock();
        let (mut group, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *partial).into_iter().partition(|(f, _)| f.group_id == group_id);
        *partial = others;
        drop(partial);
        group.push((fault, taken));
        let (faults, taken) = group.into_iter().unzip();
        let pasid = fault.pasid.unwrap_or(NO_PASID);
        self.device.group().with_handler(self, pasid, |hwpt, attached| {
            let queue = hwpt.fault_queue().ok_or(Errno::EINVAL)?;
            let device = self.device.clone();
            queue.push(FaultGroup::new(self.origin(attached), device, faults)?.counted(taken));
            Ok(())
        })
    }
}

impl Object for Bound {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn report(&self, _: Scope) -> Detail {
        let group = self.device.group();
        let attached = |pasid| {
            group.with_attachment(self, pasid, |hwpt| {
                let (hwpt, ioas) = (hwpt.id(), hwpt.ioas().id());
                Attachment { pasid, hwpt, ioas }
            })
        };
        Detail::Device {
            name: self.device.name(),
            driver: self.device.driver().into(),
            vdevice: self.vdevice(),
            attached: group.pasids_of(self).into_iter().filter_map(attached).collect(),
        }
    }
}
