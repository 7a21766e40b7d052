//! What a call under `softiommu run` costs beyond its way there and back.
//!
//! Prints `measure NAME RATIO goal GOAL`: the time of two calls (a pair) over the time of two null
//! calls, which are refused at their struct's size after the same way. Rounds of all kinds take
//! turns, and the quickest of each counts, so that a busy machine disturbs the ratio little.

mod pairs;

use std::fs::File;
use std::process::Command;

use ioctl_abi::command::iommufd::IOMMU_IOAS_ALLOC;
use ioctl_abi::iommufd::iommu_ioas_alloc;
use pairs::{alloc, alloc_pair, call, map_pair, page, time};

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

fn null_pair(iommu: &File) {
    let mut refused = iommu_ioas_alloc { size: 4, ..Default::default() };
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut refused), -1);
    assert_eq!(call(iommu, IOMMU_IOAS_ALLOC, &mut refused), -1);
}

fn measure() {
    let iommu = File::options().read(true).write(true).open("/dev/iommu").expect("an iommufd");
    let ioas = alloc(&iommu);
    let mut buffer = vec![1; 8192];
    let mut best = [f64::INFINITY; 3];
    for _ in 0..ROUNDS {
        let round = [
            time(PAIRS, || null_pair(&iommu)),
            time(PAIRS, || alloc_pair(&iommu)),
            time(PAIRS, || map_pair(&iommu, ioas, page(&mut buffer))),
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
