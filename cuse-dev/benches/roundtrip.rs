//! What a call under `softiommu run` costs beyond its way there and back.
//!
//! Prints `measure NAME RATIO goal GOAL`: the time of two calls (a pair) over the time of two null
//! calls, which are refused at their struct's size after the same way. Rounds of all kinds take
//! turns, and the quickest of each counts, so that a busy machine disturbs the ratio little.
#![allow(unsafe_code)] // ioctls

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use ioctl_abi::command::iommufd::{
    IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP,
};
use ioctl_abi::iommufd::{iommu_destroy, iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};

/// Says that this process is the one under `softiommu run`.
const INSIDE: &str = "SOFTIOMMU_ROUNDTRIP";
const ROUNDS: usize = 60;
const PAIRS: u32 = 300;

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!(
            "usage: cargo bench -p softiommu --bench roundtrip\n\nTakes seconds; --quick changes nothing."
        );
    }
    if std::env::var_os(INSIDE).is_some() {
        return measure();
    }
    let this = std::env::current_exe().expect("a program has a path");
    let status = Command::new(env!("CARGO_BIN_EXE_softiommu"))
        .args(["run", "--"])
        .arg(this)
        .env(INSIDE, "1")
        .status()
        .expect("softiommu is built");
    std::process::exit(status.code().unwrap_or(1));
}

fn call<T>(iommu: &File, command: u32, argument: &mut T) -> i32 {
    let pointer = std::ptr::from_mut(argument);
    // SAFETY: each command is called with its own struct.
    unsafe { libc::ioctl(iommu.as_raw_fd(), command.into(), pointer) }
}

fn alloc(iommu: &File) -> u32 {
    let size = size_of::<iommu_ioas_alloc>() as u32;
    let mut alloc = iommu_ioas_alloc { size, ..Default::default() };
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut alloc), 0);
    alloc.out_ioas_id
}

fn null_pair(iommu: &File) {
    let mut refused = iommu_ioas_alloc { size: 4, ..Default::default() };
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut refused), -1);
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut refused), -1);
}

fn alloc_pair(iommu: &File) {
    let id = alloc(iommu);
    let mut destroy = iommu_destroy { size: size_of::<iommu_destroy>() as u32, id };
    assert_eq!(call(iommu, IOMMU_DESTROY, &mut destroy), 0);
}

fn map_pair(iommu: &File, ioas_id: u32, page: &mut [u8]) {
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
fn page(buffer: &mut [u8]) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(4096);
    &mut buffer[start..start + 4096]
}

/// Nanoseconds of one pair.
fn time(mut pair: impl FnMut()) -> f64 {
    let began = Instant::now();
    (0..PAIRS).for_each(|_| pair());
    began.elapsed().as_nanos() as f64 / f64::from(PAIRS)
}

fn measure() {
    let iommu = File::options().read(true).write(true).open("/dev/iommu").expect("an iommufd");
    let ioas = alloc(&iommu);
    let mut buffer = vec![1; 8192];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        let round = [
            time(|| null_pair(&iommu)),
            time(|| alloc_pair(&iommu)),
            time(|| map_pair(&iommu, ioas, page(&mut buffer))),
        ];
        for (best, this) in best.iter_mut().zip(round) {
            *best = best.min(this);
        }
    }
    let [null, alloc, map] = best;
    println!("null call: {:.0} ns", null / 2.0);
    println!("measure ioas_alloc_destroy {:.2} goal 1.3", alloc / null);
    println!("measure ioas_map_unmap_4k {:.2} goal 2", map / null);
}
