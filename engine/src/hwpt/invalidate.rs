//! `IOMMU_HWPT_INVALIDATE`: what the hardware cached of a nested HWPT, or of a vIOMMU.

use ioctl_abi::iommufd::iommu_hwpt_invalidate;

use crate::Errno;
use crate::call::Call;
use crate::driver::UserArray;
use crate::memory::PAGE_SIZE;
use crate::viommu::Viommu;

use super::HwptNested;

/// Entries in one call: the kernel's limit.
const MAX_ENTRIES: u32 = 1 << 19;

/// Passes an array of requests to the driver. The caller learns how many were done, whatever else
/// the answer is.
pub(crate) fn invalidate(
    call: &Call<'_>,
    command: &mut iommu_hwpt_invalidate,
) -> Result<(), Errno> {
    let (done, result) = run(call, command);
    command.entry_num = done;
    call.respond(command)?;
    result
}

fn run(call: &Call<'_>, command: &iommu_hwpt_invalidate) -> (u32, Result<(), Errno>) {
    if command.__reserved != 0 {
        return (0, Err(Errno::EOPNOTSUPP));
    }
    let entries = command.entry_num;
    let absent = command.data_uptr == 0 || command.entry_len == 0;
    let too_long = u64::from(command.entry_len) > PAGE_SIZE;
    if entries != 0 && (absent || too_long || entries > MAX_ENTRIES) {
        return (0, Err(Errno::EINVAL));
    }
    let requests = UserArray::new(
        &*call.memory,
        command.data_type,
        command.data_uptr,
        command.entry_len,
        entries,
    );
    let objects = call.context.objects();
    if let Err(error) = objects.get_any(command.hwpt_id) {
        return (0, Err(error));
    }
    if let Ok(hwpt) = objects.get::<HwptNested>(command.hwpt_id) {
        if hwpt.domain().invalidates() {
            return hwpt.domain().invalidate(&requests);
        }
        return (0, Err(Errno::EOPNOTSUPP));
    }
    if let Ok(viommu) = objects.get::<Viommu>(command.hwpt_id) {
        if viommu.ops().invalidates() {
            return viommu.ops().invalidate(&requests);
        }
        return (0, Err(Errno::EOPNOTSUPP));
    }
    (0, Err(Errno::EINVAL))
}
