//! Looking behind the engine: what is mapped, how often it is pinned, what caches hold.

use std::any::Any;
use std::sync::Arc;

use ioctl_abi::selftest::{
    MOCK_PAGE_SIZE, iommu_test_check_dev_cache, iommu_test_check_iotlb, iommu_test_check_map,
    iommu_test_cmd,
};

use crate::call::Call;
use crate::driver::{HwDomain, PagingDomain};
use crate::memory::{AddressSpace, PAGE_SIZE};
use crate::mock::{MockDevice, MockNested};
use crate::{Errno, kapi};

/// The domain of paging HWPT `id`. `ENOENT`, `EINVAL` for a nested one.
pub(super) fn paging_domain(call: &Call<'_>, id: u32) -> Result<Arc<dyn PagingDomain>, Errno> {
    match kapi::domain(call.context, id)? {
        HwDomain::Paging(domain) => Ok(domain),
        HwDomain::Nested(_) => Err(Errno::EINVAL),
    }
}

/// The frame of the caller's page at the page-aligned `address`. `EFAULT`.
pub(super) fn frame(memory: &dyn AddressSpace, address: u64) -> Result<u64, Errno> {
    let pin = memory.pin(address, 1, false).map_err(|_| Errno::EFAULT)?;
    let mut frame = None;
    pin.frames(0..1, &mut |pfn, _| frame = Some(pfn));
    frame.ok_or(Errno::EFAULT)
}

/// `IOMMU_TEST_OP_MD_CHECK_MAP`: the IOPTEs lead to the caller's pages. `EINVAL` when one does not.
pub(super) fn map(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_map = command.body();
    let odd = [body.iova, body.length, body.uptr].iter().any(|v| !v.is_multiple_of(MOCK_PAGE_SIZE));
    let overflows = [body.iova, body.uptr].iter().any(|v| v.checked_add(body.length).is_none());
    if odd || overflows {
        return Err(Errno::EINVAL);
    }
    let domain = paging_domain(call, command.id)?;
    let mut page = None;
    for offset in (0..body.length).step_by(MOCK_PAGE_SIZE as usize) {
        let address = body.uptr + offset;
        let in_page = address % PAGE_SIZE;
        let frame = match page {
            Some((base, frame)) if base == address - in_page => frame,
            _ => frame(&*call.memory, address - in_page)?,
        };
        page = Some((address - in_page, frame));
        if domain.translate(body.iova + offset) != Some(frame * PAGE_SIZE + in_page) {
            return Err(Errno::EINVAL);
        }
    }
    Ok(())
}

/// `IOMMU_TEST_OP_MD_CHECK_IOTLB`: an IOTLB entry of a nested HWPT. `EINVAL` when it holds
/// something else, or there is none of the index.
pub(super) fn iotlb(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_iotlb = command.body();
    let HwDomain::Nested(nested) = kapi::domain(call.context, command.id)? else {
        return Err(Errno::EINVAL);
    };
    let nested = (&*nested as &dyn Any).downcast_ref::<MockNested>().ok_or(Errno::EINVAL)?;
    if nested.iotlb(body.id) == Some(body.iotlb) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `IOMMU_TEST_OP_DEV_CHECK_CACHE`: a cache entry of a device. `EINVAL` as for the IOTLB.
pub(super) fn device_cache(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_dev_cache = command.body();
    let device = kapi::device(call.context, command.id)?;
    let device = MockDevice::of(&*device).ok_or(Errno::EINVAL)?;
    if device.cache(body.id) == Some(body.cache) { Ok(()) } else { Err(Errno::EINVAL) }
}
