//! The structs and constants of `include/uapi/linux/iommufd.h`, by subject and re-exported flat.

mod dirty;
mod fault;
mod hw_info;
mod hwpt;
mod invalidate;
mod ioas;
mod object;
mod veventq;
mod viommu;

pub use self::dirty::*;
pub use self::fault::*;
pub use self::hw_info::*;
pub use self::hwpt::*;
pub use self::invalidate::*;
pub use self::ioas::*;
pub use self::object::*;
pub use self::veventq::*;
pub use self::viommu::*;
pub use crate::command::iommufd::*;

/// The letter of iommufd's ioctls.
pub const IOMMUFD_TYPE: u32 = b';' as u32;
/// The number of iommufd's first ioctl.
pub const IOMMUFD_CMD_BASE: u32 = 0x80;
