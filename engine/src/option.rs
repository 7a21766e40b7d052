//! `IOMMU_OPTION`.

use std::mem::offset_of;

use ioctl_abi::iommufd::{
    IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_GET, IOMMU_OPTION_OP_SET, IOMMU_OPTION_RLIMIT_MODE,
    iommu_option,
};

use crate::account::Mode;
use crate::call::Call;
use crate::caller::Capability;
use crate::ioas::Ioas;
use crate::{Context, Errno};

/// `IOMMU_OPTION`: gets or sets one option, of the context or of an IOAS.
pub(crate) fn option(call: &Call<'_>, command: &mut iommu_option) -> Result<(), Errno> {
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match command.option_id {
        IOMMU_OPTION_RLIMIT_MODE => rlimit_mode(call, command)?,
        IOMMU_OPTION_HUGE_PAGES => huge_pages(call.context, command)?,
        _ => return Err(Errno::EOPNOTSUPP),
    }
    let at = offset_of!(iommu_option, val64) as u64;
    let address = call.arg.checked_add(at).ok_or(Errno::EFAULT)?;
    call.write(address, &command.val64)
}

/// Who pays for pins: 0 for the user, 1 for the process. Can be set while there is no object.
fn rlimit_mode(call: &Call<'_>, command: &mut iommu_option) -> Result<(), Errno> {
    if command.object_id != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match command.op {
        IOMMU_OPTION_OP_GET => {
            command.val64 = u64::from(call.context.account_mode() == Mode::Mm);
            Ok(())
        }
        IOMMU_OPTION_OP_SET => {
            if !call.caller.process().capable(Capability::SysResource) {
                return Err(Errno::EPERM);
            }
            if !call.context.objects().is_empty() {
                return Err(Errno::EBUSY);
            }
            call.context.set_account_mode(match command.val64 {
                0 => Mode::User,
                1 => Mode::Mm,
                _ => return Err(Errno::EINVAL),
            });
            Ok(())
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Whether an IOAS maps contiguous pages as large ones.
fn huge_pages(context: &Context, command: &mut iommu_option) -> Result<(), Errno> {
    let ioas = context.objects().get::<Ioas>(command.object_id)?;
    match command.op {
        IOMMU_OPTION_OP_GET => {
            command.val64 = u64::from(ioas.huge_pages());
            Ok(())
        }
        IOMMU_OPTION_OP_SET => match command.val64 {
            0 => ioas.set_huge_pages(false),
            1 => ioas.set_huge_pages(true),
            _ => Err(Errno::EINVAL),
        },
        _ => Err(Errno::EOPNOTSUPP),
    }
}
