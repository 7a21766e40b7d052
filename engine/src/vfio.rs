//! VFIO's type 1 container as iommufd answers it: on `/dev/vfio/vfio` and on `/dev/iommu`.
//!
//! All of it works on one IOAS, which `IOMMU_VFIO_IOAS` chooses. Without one the container is one
//! without a group: `ENODEV`. Sizes follow VFIO's rule: the first release's struct must be there,
//! and `argsz` says what else is.
#![allow(non_upper_case_globals, reason = "names as in the header")]

use std::mem::offset_of;
use std::ops::RangeInclusive;

use ioctl_abi::iommufd::{
    IOMMU_VFIO_IOAS_CLEAR, IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, iommu_vfio_ioas,
};
use ioctl_abi::vfio::*;
use zerocopy::IntoBytes;

use crate::Errno;
use crate::call::Call;
use crate::domain::Prot;
use crate::ioas::Ioas;
use crate::ioas::map::Mapping;
use crate::memory::PAGE_SIZE;

/// `IOMMU_VFIO_IOAS`.
pub(crate) fn ioas(call: &Call<'_>, command: &mut iommu_vfio_ioas) -> Result<(), Errno> {
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match command.op {
        IOMMU_VFIO_IOAS_GET => {
            command.ioas_id = call.context.compat_ioas().ok_or(Errno::ENODEV)?.id();
            call.respond(command)
        }
        IOMMU_VFIO_IOAS_SET => {
            let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
            call.context.set_compat_ioas(Some(ioas.object()));
            Ok(())
        }
        IOMMU_VFIO_IOAS_CLEAR => {
            call.context.set_compat_ioas(None);
            Ok(())
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Answers VFIO's ioctls. `ENOTTY` for what is none.
pub(crate) fn ioctl(call: &Call<'_>, command: u32) -> Result<i64, Errno> {
    let _serial = call.context.serial();
    match command {
        VFIO_GET_API_VERSION => Ok(i64::from(VFIO_API_VERSION)),
        VFIO_CHECK_EXTENSION => check_extension(call),
        VFIO_SET_IOMMU => set_iommu(call),
        VFIO_IOMMU_GET_INFO => get_info(call),
        VFIO_IOMMU_MAP_DMA => map_dma(call),
        VFIO_IOMMU_UNMAP_DMA => unmap_dma(call),
        _ => Err(Errno::ENOTTY),
    }
}

fn compat_ioas(call: &Call<'_>) -> Result<std::sync::Arc<Ioas>, Errno> {
    call.context.compat_ioas().ok_or(Errno::ENODEV)
}

fn check_extension(call: &Call<'_>) -> Result<i64, Errno> {
    match u32::try_from(call.arg) {
        Ok(VFIO_TYPE1_IOMMU | VFIO_TYPE1v2_IOMMU | VFIO_UNMAP_ALL) => Ok(1),
        Ok(VFIO_DMA_CC_IOMMU) => Ok(i64::from(compat_ioas(call)?.cache_coherent())),
        _ => Ok(0),
    }
}

/// `VFIO_SET_IOMMU`: the old type cuts mappings where an unmap asks for it, so it maps by page.
fn set_iommu(call: &Call<'_>) -> Result<i64, Errno> {
    let old = match u32::try_from(call.arg) {
        Ok(VFIO_TYPE1_IOMMU) => true,
        Ok(VFIO_TYPE1v2_IOMMU) => false,
        _ => return Err(Errno::EINVAL),
    };
    let ioas = compat_ioas(call)?;
    if old {
        ioas.set_huge_pages(false)?;
    }
    Ok(0)
}

/// The first `size` bytes of a struct whose `argsz` must say that they are there. `EINVAL`.
fn read<T: ioctl_abi::AbiStruct>(call: &Call<'_>, size: usize) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    call.memory.read(call.arg, &mut value.as_mut_bytes()[..size])?;
    Ok(value)
}

/// `VFIO_IOMMU_GET_INFO`: page sizes and, as far as `argsz` has room, the capability chain.
fn get_info(call: &Call<'_>) -> Result<i64, Errno> {
    let least = offset_of!(vfio_iommu_type1_info, iova_pgsizes) + size_of::<u64>();
    let mut info: vfio_iommu_type1_info = read(call, least)?;
    let room = info.argsz as usize;
    if room < least {
        return Err(Errno::EINVAL);
    }
    let ioas = compat_ioas(call)?;
    let address = |at: usize| call.arg.checked_add(at as u64).ok_or(Errno::EFAULT);
    let head = room.min(size_of::<vfio_iommu_type1_info>());
    info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
    info.iova_pgsizes = ioas.page_sizes();
    info.cap_offset = 0;
    let mut at = size_of::<vfio_iommu_type1_info>();
    let mut link = None;
    for (capability, head) in [dma_avail(), iova_ranges(&ioas)] {
        // What a capability lists comes first, each entry for which there is room; then its head, if
        // there is room for all, and then the link to it.
        let entries = capability[head..].chunks(size_of::<vfio_iova_range>());
        for (entry, place) in entries.zip((at + head..).step_by(size_of::<vfio_iova_range>())) {
            if room >= place + entry.len() {
                call.memory.write(address(place)?, entry)?;
            }
        }
        if room >= at + capability.len() {
            call.memory.write(address(at)?, &capability[..head])?;
        }
        if let Some(link) = link.filter(|_| room >= at) {
            call.write(address(link)?, &(at as u32))?;
        }
        link = Some(at + offset_of!(vfio_info_cap_header, next));
        // The next one starts where a 64-bit field may.
        at += capability.len().next_multiple_of(8);
    }
    if room >= at {
        info.cap_offset = size_of::<vfio_iommu_type1_info>() as u32;
    }
    info.argsz = at as u32;
    call.memory.write(call.arg, &info.as_bytes()[..head])?;
    Ok(0)
}

/// How many more mappings there may be: iommufd has no limit.
fn dma_avail() -> (Vec<u8>, usize) {
    let capability = vfio_iommu_type1_info_dma_avail {
        header: vfio_info_cap_header { id: VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version: 1, next: 0 },
        avail: u32::MAX,
    };
    (capability.as_bytes().to_vec(), size_of_val(&capability))
}

fn iova_ranges(ioas: &Ioas) -> (Vec<u8>, usize) {
    let (usable, _) = ioas.usable();
    let capability = vfio_iommu_type1_info_cap_iova_range {
        header: vfio_info_cap_header {
            id: VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
            version: 1,
            next: 0,
        },
        nr_iovas: usable.len() as u32,
        reserved: 0,
        iova_ranges: [],
    };
    let mut bytes = capability.as_bytes().to_vec();
    for range in usable {
        let range = vfio_iova_range { start: *range.start(), end: *range.end() };
        bytes.extend_from_slice(range.as_bytes());
    }
    (bytes, size_of_val(&capability))
}

/// `VFIO_IOMMU_MAP_DMA`.
fn map_dma(call: &Call<'_>) -> Result<i64, Errno> {
    let least = size_of::<vfio_iommu_type1_dma_map>();
    let map: vfio_iommu_type1_dma_map = read(call, least)?;
    let known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    if (map.argsz as usize) < least || map.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut prot = Prot::CACHE;
    prot.set(Prot::READ, map.flags & VFIO_DMA_MAP_FLAG_READ != 0);
    prot.set(Prot::WRITE, map.flags & VFIO_DMA_MAP_FLAG_WRITE != 0);
    let ioas = compat_ioas(call)?;
    // Without a right it is an area like others, until an IOMMU is to map it.
    Mapping {
        call: "VFIO_IOMMU_MAP_DMA",
        ioas: &ioas,
        prot,
        fixed: Some(map.iova),
        account: call.context.account(call),
    }
    .memory(&call.memory, map.vaddr, map.size)?;
    Ok(0)
}

/// `VFIO_IOMMU_UNMAP_DMA`. An empty range is no error here, and the caller learns how much went
/// even when the rest did not.
fn unmap_dma(call: &Call<'_>) -> Result<i64, Errno> {
    let least = size_of::<vfio_iommu_type1_dma_unmap>();
    let mut unmap: vfio_iommu_type1_dma_unmap = read(call, least)?;
    if (unmap.argsz as usize) < least || unmap.flags & !VFIO_DMA_UNMAP_FLAG_ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let ioas = compat_ioas(call)?;
    let all = unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL != 0;
    if all && (unmap.iova != 0 || unmap.size != 0) {
        return Err(Errno::EINVAL);
    }
    let range = if all { Ok(0..=u64::MAX) } else { range(unmap.iova, unmap.size) };
    if !all && !ioas.huge_pages() {
        // Before the range is looked at: its end may be anywhere.
        for at in [unmap.iova.wrapping_add(unmap.size), unmap.iova] {
            if at != 0 {
                ioas.cut(at)?;
            }
        }
    }
    unmap.size = 0;
    let result = range.and_then(|range| ioas.unmap(&range, &mut unmap.size));
    call.memory.write(call.arg, unmap.as_bytes())?;
    result.map(|()| 0)
}

/// `size` bytes at `iova`. `EINVAL` for none, `EOVERFLOW` past the end.
fn range(iova: u64, size: u64) -> Result<RangeInclusive<u64>, Errno> {
    let last = size.checked_sub(1).ok_or(Errno::EINVAL)?;
    Ok(iova..=iova.checked_add(last).ok_or(Errno::EOVERFLOW)?)
}

impl Ioas {
    /// The page sizes that VFIO reports: those that all domains have, from the CPU's page on.
    fn page_sizes(&self) -> u64 {
        let common = self.domain_page_sizes().fold(u64::MAX, |sizes, domain| sizes & domain);
        (common & !(PAGE_SIZE - 1)) | PAGE_SIZE
    }
}
