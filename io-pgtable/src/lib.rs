//! IOMMU page-table formats of real hardware and one generic walker over them.
#![no_std]
