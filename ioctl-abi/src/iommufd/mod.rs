//! The structs and constants of `include/uapi/linux/iommufd.h`, by subject and re-exported flat.

pub(crate) mod dirty;
pub(crate) mod fault;
pub(crate) mod hw_info;
pub(crate) mod hwpt;
pub(crate) mod invalidate;
pub(crate) mod ioas;
pub(crate) mod object;
pub(crate) mod veventq;
pub(crate) mod viommu;

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

abi_enum! {
    /// What the commands' numbers are made from.
    pub enum iommufd_numbers: u32 {
        /// The letter of iommufd's ioctls.
        IOMMUFD_TYPE = b';' as u32,
        /// The number of iommufd's first ioctl.
        IOMMUFD_CMD_BASE = 0x80,
    }
}
