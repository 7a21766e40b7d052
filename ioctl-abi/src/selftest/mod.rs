//! The ABI of the selftest's mock driver (`drivers/iommu/iommufd/iommufd_test.h`): one command
//! with many operations, and the mock IOMMU's vendor payloads.

pub(crate) mod body;
pub(crate) mod mock;
pub(crate) mod op;

pub use self::body::*;
pub use self::mock::*;
pub use self::op::*;
pub use crate::command::selftest::*;
