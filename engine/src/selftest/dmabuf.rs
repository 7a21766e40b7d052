//! dma-bufs of a mock device, and taking them back.

use ioctl_abi::selftest::{iommu_test_cmd, iommu_test_dmabuf_get, iommu_test_dmabuf_revoke};

use crate::call::Call;
use crate::caller::CallerFile;
use crate::dmabuf::{Dmabuf, DmabufFile};
use crate::memory::PAGE_SIZE;
use crate::{Errno, inject};

/// Most bytes of one buffer, as the real one takes them.
const MOST: u32 = 2 << 20;

/// `IOMMU_TEST_OP_DMABUF_GET`: the new descriptor is the ioctl's result, as the suite wants it.
/// It has whole pages; `EINVAL` for none and for too many. `open_flags` are not looked at.
pub(super) fn get(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_dmabuf_get = command.body();
    if body.length == 0 || body.length > MOST {
        return Err(Errno::EINVAL);
    }
    inject::site("selftest: dma-buf")?;
    inject::site("selftest: dma-buf memory")?;
    let file = DmabufFile::new(Dmabuf::new(u64::from(body.length).next_multiple_of(PAGE_SIZE)));
    if call.context.engine().quirks() {
        return call.caller.install_untold(file);
    }
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
