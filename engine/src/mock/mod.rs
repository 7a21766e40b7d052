//! The selftest's mock IOMMU: the hardware that upstream's suites are written for.
//!
//! It is an IOMMU driver like any other and stands on [`crate::driver`] alone. Its page tables are
//! AMD v1's with a granule of 2 KiB ([`io_pgtable::MockV1`]), its first stages are a few IOTLB
//! entries to invalidate, and its devices have a few cache entries. What the hardware would not
//! show (marking a page dirty by hand, looking into a cache) is for [`crate::selftest`].

mod device;
mod domain;
mod nested;
mod table_memory;
mod viommu;

pub use device::{DeviceFlags, MockDevice};
pub use domain::MockDomain;
pub use nested::MockNested;
pub use viommu::MockViommu;

/// What [`crate::driver::IommuDevice::driver`] answers for mock devices.
pub const DRIVER: &str = "iommufd_mock";
