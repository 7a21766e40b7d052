//! Marking pages of a mock domain dirty by hand.

use ioctl_abi::selftest::{iommu_test_cmd, iommu_test_dirty};

use super::checks::paging_domain;
use crate::call::Call;
use crate::mock::MockDomain;
use crate::{Errno, inject};

/// The largest bitmap: 16 MiB of it.
const MOST_BITS: u64 = 8 * (16 << 20);

/// `IOMMU_TEST_OP_DIRTY`: each set bit of the user's bitmap stands for a page that a device writes.
///
/// `EINVAL` for a range that is not made of pages or no bitmap, and while dirty tracking is off;
/// `EOVERFLOW` for more than [`MOST_BITS`] pages; `ENOENT` for no such HWPT; `EFAULT`.
pub(super) fn mark(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_dirty = command.body();
    let whole = |value: u64| value.checked_rem(body.page_size) == Some(0);
    if !whole(body.iova) || !whole(body.length) || body.length == 0 || body.uptr == 0 {
        return Err(Errno::EINVAL);
    }
    if body.length / body.page_size > MOST_BITS {
        return Err(Errno::EOVERFLOW);
    }
    let domain = paging_domain(call, command.id)?;
    let domain = MockDomain::of(&*domain).ok_or(Errno::EINVAL)?;
    if !domain.is_tracking() {
        return Err(Errno::EINVAL);
    }
    inject::site("selftest: dirty bitmap")?;
    body.out_nr_dirty = 0;
    let bits = body.length / body.page_size;
    // All of it is read before anything is marked: where its end is missing, nothing is.
    let mut bitmap = Vec::new();
    let bytes = bits.div_ceil(8) as usize;
    bitmap.try_reserve_exact(bytes).map_err(|_| Errno::ENOMEM)?;
    bitmap.resize(bytes, 0u8);
    call.memory.read(body.uptr, &mut bitmap)?;
    for (byte, &set) in (0..).zip(&bitmap).filter(|(_, set)| **set != 0) {
        for bit in (0..8).filter(|bit| set & (1 << bit) != 0) {
            let page: u64 = byte * 8 + bit;
            let at = page.checked_mul(body.page_size).and_then(|at| body.iova.checked_add(at));
            if let Some(at) = at.filter(|_| page < bits) {
                // Counted whether or not anything is mapped there.
                domain.mark_dirty(at);
                body.out_nr_dirty += 1;
            }
        }
    }
    command.set_body(&body);
    call.respond(command)
}
