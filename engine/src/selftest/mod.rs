//! `IOMMU_TEST_CMD`: the command behind upstream's suites, as an external driver answers it.
//!
//! The operations make mock devices ([`crate::mock`]) and accesses and look at what the engine
//! made of them. They use the kAPI and run unlocked, as VFIO would: what needs the context's
//! serial lock takes it inside of the kAPI. Bodies and constants are `iommufd_test.h`'s.

mod access;
mod access_file;
mod checks;
mod device;
mod dirty;
mod dmabuf;
mod events;
mod limits;
mod pasid;

pub(crate) use device::SelftestDevice;

use ioctl_abi::selftest::*;

use crate::Errno;
use crate::call::Call;

type Operation = fn(&Call<'_>, &mut iommu_test_cmd) -> Result<(), Errno>;

/// Answers `IOMMU_TEST_CMD`. `EOPNOTSUPP` for operations that do not exist.
pub(crate) fn run(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let operation: Operation = match command.op {
        IOMMU_TEST_OP_ADD_RESERVED => limits::add_reserved,
        IOMMU_TEST_OP_MOCK_DOMAIN => device::make,
        IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS => device::make_with_flags,
        IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE => device::replace,
        IOMMU_TEST_OP_MD_CHECK_MAP => checks::map,
        IOMMU_TEST_OP_MD_CHECK_REFS => checks::refs,
        IOMMU_TEST_OP_MD_CHECK_IOTLB => checks::iotlb,
        IOMMU_TEST_OP_DEV_CHECK_CACHE => checks::device_cache,
        IOMMU_TEST_OP_CREATE_ACCESS => access_file::create,
        IOMMU_TEST_OP_ACCESS_REPLACE_IOAS => access::replace_ioas,
        IOMMU_TEST_OP_ACCESS_PAGES => access::pin,
        IOMMU_TEST_OP_DESTROY_ACCESS_PAGES => access::unpin,
        IOMMU_TEST_OP_ACCESS_RW => access::copy,
        IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT => limits::set_memory,
        IOMMU_TEST_OP_DIRTY => dirty::mark,
        IOMMU_TEST_OP_TRIGGER_IOPF => events::page_fault,
        IOMMU_TEST_OP_TRIGGER_VEVENT => events::event,
        IOMMU_TEST_OP_PASID_ATTACH => pasid::attach,
        IOMMU_TEST_OP_PASID_REPLACE => pasid::replace,
        IOMMU_TEST_OP_PASID_DETACH => pasid::detach,
        IOMMU_TEST_OP_PASID_CHECK_HWPT => pasid::check,
        IOMMU_TEST_OP_DMABUF_GET => dmabuf::get,
        IOMMU_TEST_OP_DMABUF_REVOKE => dmabuf::revoke,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    operation(call, command)
}
