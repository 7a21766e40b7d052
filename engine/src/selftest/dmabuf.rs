//! dma-bufs of a mock device, and taking them back.

use ioctl_abi::selftest::{iommu_test_cmd, iommu_test_dmabuf_get, iommu_test_dmabuf_revoke};
use nix::libc::{O_ACCMODE, O_CLOEXEC};

use crate::call::Call;
use crate::caller::CallerFile;
use crate::dmabuf::{Dmabuf, DmabufFile};
use crate::memory::PAGE_SIZE;
use crate::{Errno, inject};

/// Most bytes of one buffer: what one allocation of a kernel gives.
const MOST: u32 = 2 << 30;

/// `IOMMU_TEST_OP_DMABUF_GET`: the new descriptor is the ioctl's result, as the suite wants it.
/// `EINVAL` for a length of no whole pages or flags that `open(2)` has and a dma-buf has not.
pub(super) fn get(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_dmabuf_get = command.body();
    let whole = u64::from(body.length).is_multiple_of(PAGE_SIZE);
    if !whole || body.length == 0 || body.open_flags & !((O_CLOEXEC | O_ACCMODE) as u32) != 0 {
        return Err(Errno::EINVAL);
    }
    if body.length > MOST {
        return Err(Errno::ENOMEM);
    }
    inject::site("selftest: dma-buf")?;
    inject::site("selftest: dma-buf memory")?;
    let file = DmabufFile::new(Dmabuf::new(body.length.into()));
    call.caller.install_as_result(file)
}

/// `IOMMU_TEST_OP_DMABUF_REVOKE`. `EBADF` for no descriptor, `EINVAL` for one of something else.
pub(super) fn revoke(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_dmabuf_revoke = command.body();
    let CallerFile::Engine(file) = call.caller.file(body.dmabuf_fd)? else {
        return Err(Errno::EINVAL);
    };
    let file = file.into_any().downcast::<DmabufFile>().map_err(|_| Errno::EINVAL)?;
    file.dmabuf().revoke(body.revoked != 0);
    Ok(())
}
