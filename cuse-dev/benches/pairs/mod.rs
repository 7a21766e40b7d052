//! Pairs of calls that leave nothing behind, and their time: what the benches of both front ends
//! compare.
#![allow(unsafe_code)] // ioctls

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Instant;

use ioctl_abi::command::iommufd::{
    IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP,
};
use ioctl_abi::iommufd::{iommu_destroy, iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};

pub(crate) fn call<T>(iommu: &File, command: u32, argument: &mut T) -> i32 {
    let pointer = std::ptr::from_mut(argument);
    // SAFETY: each command is called with its own struct.
    unsafe { libc::ioctl(iommu.as_raw_fd(), command.into(), pointer) }
}

pub(crate) fn alloc(iommu: &File) -> u32 {
    let size = size_of::<iommu_ioas_alloc>() as u32;
    let mut alloc = iommu_ioas_alloc { size, ..Default::default() };
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut alloc), 0);
    alloc.out_ioas_id
}

pub(crate) fn alloc_pair(iommu: &File) {
    let id = alloc(iommu);
    let mut destroy = iommu_destroy { size: size_of::<iommu_destroy>() as u32, id };
    assert_eq!(call(iommu, IOMMU_DESTROY, &mut destroy), 0);
}

pub(crate) fn map_pair(iommu: &File, ioas_id: u32, page: &mut [u8]) {
    let mut map = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        flags: 7,
        ioas_id,
        user_va: page.as_mut_ptr() as u64,
        length: page.len() as u64,
        iova: 0x10_0000,
        ..Default::default()
    };
    assert_eq!(call(iommu, IOMMU_IOAS_MAP, &mut map), 0);
    let mut unmap = iommu_ioas_unmap {
        size: size_of::<iommu_ioas_unmap>() as u32,
        ioas_id,
        iova: map.iova,
        length: map.length,
    };
    assert_eq!(call(iommu, IOMMU_IOAS_UNMAP, &mut unmap), 0);
}

/// A page of its own: the buffer's aligned middle.
pub(crate) fn page(buffer: &mut [u8]) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(4096);
    &mut buffer[start..start + 4096]
}

/// Nanoseconds of one pair, of `pairs`.
pub(crate) fn time(pairs: u32, mut pair: impl FnMut()) -> f64 {
    let began = Instant::now();
    (0..pairs).for_each(|_| pair());
    began.elapsed().as_nanos() as f64 / f64::from(pairs)
}
