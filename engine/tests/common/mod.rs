//! A caller and a small IOMMU for tests of the engine from outside.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod bench;
pub mod caller;
pub mod iommu;
