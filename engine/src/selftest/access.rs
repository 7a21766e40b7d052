//! What the caller does through an access: pin, unpin, copy, move.

use ioctl_abi::selftest::{
    MOCK_ACCESS_RW_SLOW_PATH, MOCK_ACCESS_RW_WRITE, MOCK_FLAGS_ACCESS_SYZ, MOCK_FLAGS_ACCESS_WRITE,
    iommu_test_access_pages, iommu_test_access_replace_ioas, iommu_test_access_rw, iommu_test_cmd,
    iommu_test_destroy_access_pages,
};

use super::access_file::AccessFile;
use super::checks::frames;
use crate::call::Call;
use crate::kapi::PinnedPages;
use crate::memory::{AddressSpace, PAGE_SIZE};
use crate::{Errno, inject};

/// Most bytes of one operation.
const MOST: u64 = 16 << 20;

/// `IOMMU_TEST_OP_ACCESS_REPLACE_IOAS`.
pub(super) fn replace_ioas(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_access_replace_ioas = command.body();
    AccessFile::get(call, command.id)?.access()?.replace(body.ioas_id)
}

/// `IOMMU_TEST_OP_ACCESS_PAGES`: pins, and checks that the caller's memory is what it got.
///
/// `EBADFD` for a descriptor of something else, `EOPNOTSUPP` for unknown flags or an access that
/// does not pin, `EBADE` when other memory is there, `ENOMEM` above 16 MiB.
pub(super) fn pin(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_access_pages = command.body();
    if body.length > MOST {
        return Err(Errno::ENOMEM);
    }
    if body.flags & !(MOCK_FLAGS_ACCESS_WRITE | MOCK_FLAGS_ACCESS_SYZ) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let file = AccessFile::get(call, command.id)?;
    if !file.access()?.pins() {
        return Err(Errno::EOPNOTSUPP);
    }
    let write = body.flags & MOCK_FLAGS_ACCESS_WRITE != 0;
    // A fuzzer's IOVA; the answer has what was asked for.
    let iova = match body.flags & MOCK_FLAGS_ACCESS_SYZ {
        0 => body.iova,
        _ => file.access()?.nth_area(body.iova),
    };
    let check = |pages: &PinnedPages| {
        if body.uptr == 0 {
            return Ok(());
        }
        same_pages(&*call.memory, body.uptr.wrapping_sub(iova % PAGE_SIZE), pages)
    };
    file.pins().pin((iova, body.length), write, check, |id| {
        command.set_body(&iommu_test_access_pages { out_access_pages_id: id, ..body });
        call.respond(command)
    })
}

/// Whether `pages` are those of the caller from `address` on. `EBADE`, `EFAULT`.
fn same_pages(memory: &dyn AddressSpace, address: u64, pages: &PinnedPages) -> Result<(), Errno> {
    let mut pinned = pages.frames.iter().flat_map(|&(first, count)| first..first + count);
    let count = pages.frames.iter().map(|&(_, count)| count).sum();
    // Whichever byte of a page is named, it is the page.
    frames(memory, address - address % PAGE_SIZE, count, &mut |frame| {
        if pinned.next() == Some(frame) { Ok(()) } else { Err(Errno::EBADE) }
    })
}

/// `IOMMU_TEST_OP_DESTROY_ACCESS_PAGES`. `ENOENT` for what is not pinned (any more).
pub(super) fn unpin(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let body: iommu_test_destroy_access_pages = command.body();
    AccessFile::get(call, command.id)?.pins().unpin(body.access_pages_id)
}

/// `IOMMU_TEST_OP_ACCESS_RW`: copies between the caller's buffer and the IOAS.
pub(super) fn copy(call: &Call<'_>, command: &mut iommu_test_cmd) -> Result<(), Errno> {
    let mut body: iommu_test_access_rw = command.body();
    if body.length > MOST {
        return Err(Errno::ENOMEM);
    }
    let known = MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH | MOCK_FLAGS_ACCESS_SYZ;
    if body.flags & !known != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let access = AccessFile::get(call, command.id)?.access()?;
    if body.flags & MOCK_FLAGS_ACCESS_SYZ != 0 {
        body.iova = access.nth_area(body.iova);
    }
    inject::site("selftest: copy buffer")?;
    let mut small = [0; 256];
    let mut large = Vec::new();
    let length = body.length as usize;
    let buffer = if length <= small.len() {
        &mut small[..length]
    } else {
        large.resize(length, 0);
        &mut large[..]
    };
    let write = body.flags & MOCK_ACCESS_RW_WRITE != 0;
    if write {
        call.memory.read(body.uptr, buffer)?;
    }
    let slow = body.flags & MOCK_ACCESS_RW_SLOW_PATH != 0;
    let of = (!slow).then(|| call.memory.id());
    if write {
        access.write_pinned(body.iova, buffer, of)?;
    } else {
        access.read_pinned(body.iova, buffer, of)?;
    }
    if write { Ok(()) } else { call.memory.write(body.uptr, buffer) }
}
