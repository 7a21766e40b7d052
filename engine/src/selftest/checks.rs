//! Looking behind the engine: what is mapped, how often it is pinned, what caches hold.

use std::any::Any;
use std::sync::Arc;

use ioctl_abi::selftest::{
    MOCK_PAGE_SIZE, iommu_test_check_dev_cache, iommu_test_check_iotlb, iommu_test_check_map,
    iommu_test_check_refs, iommu_test_cmd,
};

use crate::call::Call;
use crate::driver::{HwDomain, PagingDomain};
use crate::memory::{AddressSpace, PAGE_SIZE};
use crate::mock::{MockDevice, MockNested};
use crate::{Errno, kapi};

/// The domain of paging HWPT `id`. `ENOENT`, for a nested one, too.
pub(super) fn paging_domain(call: &Call<'_>, id: u32) -> Result<Arc<dyn PagingDomain>, Errno> {
    match kapi::domain(call.context, id)? {
        HwDomain::Paging(domain) => Ok(domain),
        HwDomain::Nested(_) => Err(Errno::ENOENT),
    }
}

/// The last page of all addresses.
const LAST_PAGE: u64 = !(PAGE_SIZE - 1);

/// Pages that are looked at together.
const BATCH: u64 = 4096;

/// The frames of the caller's `pages` pages from the page-aligned `address`, one by one, until
/// `each` answers an error. `EFAULT`, for the last page of all addresses `EOVERFLOW`.
pub(super) fn frames(
    memory: &dyn AddressSpace,
    address: u64,
    pages: u64,
    each: &mut dyn FnMut(u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for first in (0..pages).step_by(BATCH as usize) {
        let count = BATCH.min(pages - first);
        let at = address.checked_add(first * PAGE_SIZE).ok_or(Errno::EFAULT)?;
        let pin = match memory.pin(at, count, false) {
            Ok(pin) => pin,
            // What is wrong with a page before the bad one comes first.
            Err(_) if count > 1 => {
                for page in 0..count {
                    frames(memory, at + page * PAGE_SIZE, 1, each)?;
                }
                continue;
            }
            // The end of the last page there can be is not an address.
            Err(_) if at == LAST_PAGE => return Err(Errno::EOVERFLOW),
            Err(_) => return Err(Errno::EFAULT),
        };
        let mut result = Ok(());
        pin.frames(0..count, &mut |pfn, run| {
            for frame in pfn..pfn + run {
                if result.is_ok() {
                    result = each(frame);
                }
            }
        });
        pin.release(0..count);
        result?;
    }
    Ok(())
}

/// `IOMMU_TEST_OP_MD_CHECK_MAP`: the IOPTEs lead to the caller's pages. `EINVAL` when one does not.
pub(super) fn map(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_map = command.body();
    let domain = paging_domain(call, command.id)?;
    let smallest = domain.page_sizes() & domain.page_sizes().wrapping_neg();
    let odd = [body.iova, body.length, body.uptr].iter().any(|v| !v.is_multiple_of(smallest));
    let overflows = [body.iova, body.uptr].iter().any(|v| v.checked_add(body.length).is_none());
    if odd || overflows {
        return Err(Errno::EINVAL);
    }
    if body.length == 0 {
        return Ok(());
    }
    let in_page = body.uptr % PAGE_SIZE;
    let pages = (in_page + body.length).div_ceil(PAGE_SIZE);
    let mut offset = 0;
    frames(&*call.memory, body.uptr - in_page, pages, &mut |frame| {
        let mut byte = (body.uptr + offset) % PAGE_SIZE;
        while byte < PAGE_SIZE && offset < body.length {
            if domain.translate(body.iova + offset) != Some(frame * PAGE_SIZE + byte) {
                return Err(Errno::EINVAL);
            }
            byte += MOCK_PAGE_SIZE;
            offset += MOCK_PAGE_SIZE;
        }
        Ok(())
    })
}

/// `IOMMU_TEST_OP_MD_CHECK_REFS`: iommufd pins each page as often as the caller says. `EIO` when
/// it does not.
pub(super) fn refs(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_refs = command.body();
    let pages = |value: u64| value.is_multiple_of(PAGE_SIZE);
    if !pages(body.length) || !pages(body.uptr) || body.uptr.checked_add(body.length).is_none() {
        return Err(Errno::EINVAL);
    }
    let mut pinned = Vec::new();
    for context in call.context.engine().contexts() {
        context.each_pinned(&mut |pfn, count| pinned.push(pfn..pfn + count));
    }
    frames(&*call.memory, body.uptr, body.length / PAGE_SIZE, &mut |frame| {
        let refs = pinned.iter().filter(|run| run.contains(&frame)).count();
        if refs == body.refs as usize { Ok(()) } else { Err(Errno::EIO) }
    })
}

/// `IOMMU_TEST_OP_MD_CHECK_IOTLB`: an IOTLB entry of a nested HWPT. `ENOENT` for another object,
/// `EINVAL` when it holds something else, or there is none of the index.
pub(super) fn iotlb(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_check_iotlb = command.body();
    let HwDomain::Nested(nested) = kapi::domain(call.context, command.id)? else {
        return Err(Errno::ENOENT);
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
