//! Attach, replace and detach: the steps, and how each is undone.
//!
//! The caller holds the context's serial lock. The order is: check, reserve the device's IOVAs in
//! the IOAS, tell the IOMMU driver, change the record of the group. Detaching goes backwards.

use std::sync::Arc;

use crate::driver::{DomainChange, IommuDevice, NO_PASID, ReservedKind};
use crate::group::Attachment;
use crate::hwpt::{self, Hwpt, HwptNested, HwptPaging};
use crate::ioas::Ioas;
use crate::object::Use;
use crate::{Context, Errno, inject};

use super::Bound;

/// The two ways to come to another HWPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Attach,
    Replace,
}

impl How {
    fn run(
        self,
        context: &Context,
        bound: &Use<Bound>,
        pasid: u32,
        hwpt: &Hwpt,
    ) -> Result<(), Errno> {
        match self {
            Self::Attach => attach(bound, pasid, hwpt),
            Self::Replace => replace(context, bound, pasid, hwpt),
        }
    }
}

/// Brings a PASID of `bound` to `pt_id`. Answers the HWPT's id.
pub(super) fn change(
    context: &Arc<Context>,
    bound: &Use<Bound>,
    pasid: u32,
    pt_id: u32,
    how: How,
) -> Result<u32, Errno> {
    let objects = context.objects();
    objects.get_any(pt_id)?;
    if let Ok(paging) = objects.get::<HwptPaging>(pt_id) {
        return how.run(context, bound, pasid, &Hwpt::Paging(paging)).map(|()| pt_id);
    }
    if let Ok(nested) = objects.get::<HwptNested>(pt_id) {
        return how.run(context, bound, pasid, &Hwpt::Nested(nested)).map(|()| pt_id);
    }
    let ioas = objects.get::<Ioas>(pt_id).map_err(|_| Errno::EINVAL)?;
    // The oldest automatic HWPT that the driver does not refuse; only if there is none a new one.
    for hwpt in hwpt::paging::automatic(context, &ioas) {
        let id = hwpt.id();
        match how.run(context, bound, pasid, &Hwpt::Paging(hwpt)) {
            Err(Errno::EINVAL) => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(id),
        }
    }
    let hwpt = hwpt::paging::alloc_automatic(context, &ioas, bound.device())?;
    let id = hwpt.id();
    let hwpt = Hwpt::Paging(hwpt);
    // A new attachment comes before the IOAS fills the domain, a moved one after, so that the
    // device never sees an empty one.
    let result = match how {
        How::Attach => attach(bound, pasid, &hwpt).and_then(|()| {
            let filled = hwpt.paging().fill();
            filled.inspect_err(|_| detach(context, bound, pasid))
        }),
        How::Replace => hwpt.paging().fill().and_then(|()| replace(context, bound, pasid, &hwpt)),
    };
    hwpt.put(context);
    result.map(|()| id)
}

/// `EINVAL` where the hardware cannot do it at all.
fn check_hardware(device: &dyn IommuDevice, pasid: u32, hwpt: &Hwpt) -> Result<(), Errno> {
    let pasids = match device.max_pasid_log2() {
        0 => 0,
        bits => 1u64.checked_shl(bits.into()).unwrap_or(u64::MAX),
    };
    let pasid_fits = pasid == NO_PASID || u64::from(pasid) < pasids;
    if pasid_fits && hwpt.driver() == device.driver() { Ok(()) } else { Err(Errno::EINVAL) }
}

fn attach(bound: &Use<Bound>, pasid: u32, hwpt: &Hwpt) -> Result<(), Errno> {
    let device = bound.device();
    let group = device.group();
    let mut attachment = match group.attachment(pasid) {
        Some(attachment) => {
            if attachment.has(bound) {
                return Err(Errno::EBUSY);
            }
            if attachment.hwpt.id() != hwpt.id() {
                return Err(Errno::EINVAL);
            }
            attachment
        }
        None => {
            inject::site("device: attachment")?;
            Attachment { hwpt: hwpt.clone(), devices: Vec::new() }
        }
    };
    inject::site("device: attached list")?;
    check_hardware(&**device, pasid, hwpt)?;
    group.check_pasid(pasid, hwpt)?;
    hwpt.paging().check_coherency(&**device)?;
    if pasid == NO_PASID {
        reserve(bound, hwpt.ioas())?;
    }
    let domain = hwpt.domain();
    let faults = hwpt.fault_queue().is_some();
    let change = DomainChange { old: None, new: Some(&domain), faults };
    if let Err(error) =
        inject::site("device: attach handle").and_then(|()| device.set_domain(pasid, change))
    {
        if pasid == NO_PASID {
            hwpt.ioas().unreserve(bound.reserver);
        }
        return Err(error);
    }
    attachment.devices.push(bound.object().clone());
    group.set_attachment(pasid, Some(attachment));
    bound.object().point_port(pasid, Some(hwpt));
    Ok(())
}

fn replace(context: &Context, bound: &Use<Bound>, pasid: u32, hwpt: &Hwpt) -> Result<(), Errno> {
    let group = bound.device().group();
    let attachment = group.attachment(pasid).filter(|a| a.has(bound)).ok_or(Errno::EINVAL)?;
    let old = &attachment.hwpt;
    if old.id() == hwpt.id() {
        return Ok(());
    }
    for device in &attachment.devices {
        check_hardware(&**device.device(), pasid, hwpt)?;
        hwpt.paging().check_coherency(&**device.device())?;
    }
    group.check_pasid(pasid, hwpt)?;
    let moves = pasid == NO_PASID && old.ioas().id() != hwpt.ioas().id();
    if moves {
        for (done, device) in attachment.devices.iter().enumerate() {
            if let Err(error) = reserve(device, hwpt.ioas()) {
                unreserve(&attachment.devices[..done], hwpt.ioas());
                return Err(error);
            }
        }
    }
    if let Err(error) = set_all(&attachment, pasid, hwpt) {
        if moves {
            unreserve(&attachment.devices, hwpt.ioas());
        }
        return Err(error);
    }
    if moves {
        unreserve(&attachment.devices, old.ioas());
    }
    let moved = Attachment { hwpt: hwpt.clone(), devices: attachment.devices.clone() };
    drop(group.set_attachment(pasid, Some(moved)));
    for device in &attachment.devices {
        device.point_port(pasid, Some(hwpt));
        forget_faults(device, old, pasid);
    }
    attachment.hwpt.put(context);
    Ok(())
}

/// Moves all devices of `attachment` to `hwpt`, or none.
fn set_all(attachment: &Attachment, pasid: u32, hwpt: &Hwpt) -> Result<(), Errno> {
    inject::site("device: attach handle")?;
    let (old, new) = (attachment.hwpt.domain(), hwpt.domain());
    let faults = hwpt.fault_queue().is_some();
    for (done, bound) in attachment.devices.iter().enumerate() {
        let change = DomainChange { old: Some(&old), new: Some(&new), faults };
        if let Err(error) = bound.device().set_domain(pasid, change) {
            let faults = attachment.hwpt.fault_queue().is_some();
            let back = DomainChange { old: Some(&new), new: Some(&old), faults };
            for bound in &attachment.devices[..done] {
                if let Err(error) = bound.device().set_domain(pasid, back) {
                    tracing::warn!(device = bound.device().name(), %error, "cannot go back");
                }
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Detaches a PASID of `bound`, if it is attached.
pub(super) fn detach(context: &Context, bound: &Use<Bound>, pasid: u32) {
    let group = bound.device().group();
    let Some(mut attachment) = group.attachment(pasid).filter(|a| a.has(bound)) else { return };
    attachment.devices.retain(|device| device.id() != bound.id());
    let rest = (!attachment.devices.is_empty()).then(|| attachment.clone());
    drop(group.set_attachment(pasid, rest));
    let hwpt = attachment.hwpt;
    let domain = hwpt.domain();
    let change = DomainChange { old: Some(&domain), new: None, faults: false };
    if let Err(error) = bound.device().set_domain(pasid, change) {
        tracing::warn!(device = bound.device().name(), pasid, %error, "detach failed");
    }
    bound.object().point_port(pasid, None);
    forget_faults(bound, &hwpt, pasid);
    if pasid == NO_PASID {
        hwpt.ioas().unreserve(bound.reserver);
    }
    hwpt.put(context);
}

fn forget_faults(bound: &Bound, hwpt: &Hwpt, pasid: u32) {
    if let Some(queue) = hwpt.fault_queue() {
        queue.forget(bound.origin(pasid));
    }
}

/// Keeps the IOVAs that the device cannot use from being mapped.
fn reserve(bound: &Bound, ioas: &Ioas) -> Result<(), Errno> {
    let regions = bound.device().reserved_regions()?;
    let relaxable = |kind| kind == ReservedKind::DirectRelaxable;
    let ranges: Vec<_> =
        regions.into_iter().filter(|r| !relaxable(r.kind)).map(|r| r.range).collect();
    if ranges.is_empty() { Ok(()) } else { ioas.reserve(bound.reserver, &ranges) }
}

fn unreserve(devices: &[Arc<Bound>], ioas: &Ioas) {
    devices.iter().for_each(|device| ioas.unreserve(device.reserver));
}
