//! Front ends for `/dev/iommu` and the memory of their callers.

pub mod wire;
pub mod caller;
pub mod memory;
