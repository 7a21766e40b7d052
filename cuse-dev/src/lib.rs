//! Front ends for `/dev/iommu` and the memory of their callers.

pub mod wire;
