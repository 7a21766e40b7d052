//! The ABI of the selftest's mock driver (`drivers/iommu/iommufd/iommufd_test.h`): one command
//! with many operations, and the mock IOMMU's vendor payloads.

mod mock;
mod op;

pub use self::mock::*;
pub use self::op::*;
pub use crate::command::selftest::*;
