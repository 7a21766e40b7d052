//! The in-process kAPI: how drivers of devices, as VFIO is one in Linux, use a context.
//!
//! An external driver owns a device, binds it ([`Device::bind`]), attaches it to an I/O address
//! space or a HWPT that the user named, and unbinds it in the end. A driver of something without a
//! device of its own (an emulated one, a mediated one) reaches the memory of an IOAS through an
//! [`Access`] instead. The selftest's mock devices and accesses are one user of this module;
//! `tests/devices.rs`, with an IOMMU driver outside of the engine, is another one.
//!
//! All calls but an access's pins and copies take the context's serial lock, which is reentrant:
//! they may be made from the destructor of an object of the context and from
//! [`AccessOps::unmap`], but not from inside an IOMMU driver's methods (see [`crate::driver`]).
//! DMA ([`Device::dma`]) takes no lock that a caller of the kAPI could hold.

use std::sync::Arc;

use crate::driver::{HwDomain, IommuDevice};
use crate::{Context, Errno};

pub use crate::access::{Access, AccessOps, PinnedPages};
pub use crate::device::{Device, Lifetime};

/// The device that is bound under object `id`. `ENOENT`.
pub fn device(context: &Context, id: u32) -> Result<Arc<dyn IommuDevice>, Errno> {
    Ok(context.objects().get::<crate::device::Bound>(id)?.device().clone())
}

/// Reports a fault of the device that is bound under object `id`, as [`Device::report_fault`]
/// does. `ENOENT`.
pub fn report_fault(context: &Context, id: u32, fault: crate::driver::Fault) -> Result<(), Errno> {
    context.objects().get::<crate::device::Bound>(id)?.report_fault(fault)
}

/// The domain of HWPT `id`. `ENOENT`.
pub fn domain(context: &Context, id: u32) -> Result<HwDomain, Errno> {
    Ok(crate::hwpt::Hwpt::get(context, id)?.domain())
}
