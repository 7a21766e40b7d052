//! Reserved IOVAs, and the limit of temporary memory.

use ioctl_abi::selftest::{iommu_test_add_reserved, iommu_test_cmd, iommu_test_memory_limit};

use crate::Errno;
use crate::call::Call;
use crate::ioas::Ioas;
use crate::iopt::Owner;

/// The least limit of memory that leaves room for one PFN and its count.
const LEAST_LIMIT: u32 = 12;

/// `IOMMU_TEST_OP_ADD_RESERVED`: for the life of the IOAS.
pub(super) fn add_reserved(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_add_reserved = command.body();
    let last = body.length.checked_sub(1).ok_or(Errno::EINVAL)?;
    let last = body.start.checked_add(last).ok_or(Errno::EOVERFLOW)?;
    let ioas = call.context.objects().get::<Ioas>(command.id)?;
    ioas.reserve(Owner::unique(), &[body.start..=last])
}

/// `IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT`. What it bounds, the batch of PFNs on the way between
/// pins and IOPTEs, does not exist here: runs of frames go straight from the one to the other. So
/// any limit that the kernel takes is kept.
pub(super) fn set_memory(_call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_memory_limit = command.body();
    if body.limit < LEAST_LIMIT { Err(Errno::EINVAL) } else { Ok(()) }
}
