//! `IOMMU_GET_HW_INFO`.

use ioctl_abi::iommufd::{
    IOMMU_HW_INFO_FLAG_INPUT_TYPE, IOMMU_HW_INFO_TYPE_DEFAULT, IOMMU_HW_INFO_TYPE_NONE,
    iommu_hw_info,
};

use crate::Errno;
use crate::call::Call;
use crate::driver::HwInfo;
use crate::memory::PAGE_SIZE;

use super::Bound;

/// Tells what the IOMMU behind a device can do.
pub(crate) fn get(call: &Call<'_>, command: &mut iommu_hw_info) -> Result<(), Errno> {
    if command.flags & !IOMMU_HW_INFO_FLAG_INPUT_TYPE != 0 || command.__reserved != [0; 3] {
        return Err(Errno::EOPNOTSUPP);
    }
    let requested = if command.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE == 0 {
        IOMMU_HW_INFO_TYPE_DEFAULT
    } else {
        command.out_data_type
    };
    let bound = call.context.objects().get::<Bound>(command.dev_id)?;
    let device = bound.device();
    let none = || HwInfo { data_type: IOMMU_HW_INFO_TYPE_NONE, data: Vec::new() };
    crate::inject::site("hw_info: data")?;
    let info = device.hw_info(requested)?.unwrap_or_else(none);
    let shown = &info.data[..info.data.len().min(command.data_len as usize)];
    if !shown.is_empty() {
        call.memory.write(command.data_uptr, shown)?;
    }
    let tail = command.data_uptr.wrapping_add(shown.len() as u64);
    zero(call, tail, u64::from(command.data_len) - shown.len() as u64)?;
    command.data_len = info.data.len() as u32;
    command.out_data_type = info.data_type;
    command.out_max_pasid_log2 = device.max_pasid_log2();
    command.out_capabilities = device.capabilities().bits();
    call.respond(command)
}

/// Zeroes the part of the caller's buffer that the data does not fill.
fn zero(call: &Call<'_>, mut address: u64, mut length: u64) -> Result<(), Errno> {
    let zeros = [0; PAGE_SIZE as usize];
    while length > 0 {
        let piece = length.min(PAGE_SIZE - address % PAGE_SIZE);
        call.memory.write(address, &zeros[..piece as usize])?;
        address = address.checked_add(piece).ok_or(Errno::EFAULT)?;
        length -= piece;
    }
    Ok(())
}
