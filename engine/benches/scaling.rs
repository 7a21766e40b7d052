//! Whether contexts get in each other's way: threads that each map and unmap on a context of
//! their own, against one thread alone.
//!
//! `cargo bench -p softiommu-engine --bench scaling` prints the calls a second of 1 to 8 threads and
//! `measure NAME RATIO goal GOAL`: the speed of as many threads as there are cores as a part of
//! that many times one thread's, the median of rounds. With `--quick` (or under `cargo test`) it only runs through.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use engine::memory::PAGE_SIZE;
use engine::testing::TestCaller;
use engine::{Engine, Node};
use ioctl_abi::iommufd::*;

const BUFFER: u64 = 0x40_0000;
/// How many threads.
const COUNTS: [usize; 4] = [1, 2, 4, 8];

/// Map and unmap, `calls` times, on a context and in a process of its own.
fn work(engine: &std::sync::Arc<Engine>, barrier: &Barrier, calls: u64) -> (Instant, Instant) {
    let caller = TestCaller::new();
    caller.memory.map(BUFFER, 1, true);
    let context = engine.open(Node::Iommu);
    let mut alloc = iommu_ioas_alloc::default();
    caller.call(&context, &mut alloc).unwrap();
    let ioas_id = alloc.out_ioas_id;
    barrier.wait();
    let start = Instant::now();
    for _ in 0..calls {
        let mut map = iommu_ioas_map {
            flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
            ioas_id,
            user_va: BUFFER,
            length: PAGE_SIZE,
            ..Default::default()
        };
        caller.call(&context, &mut map).unwrap();
        let (iova, length) = (map.iova, PAGE_SIZE);
        let mut unmap = iommu_ioas_unmap { ioas_id, iova, length, ..Default::default() };
        caller.call(&context, &mut unmap).unwrap();
    }
    let end = Instant::now();
    context.close();
    (start, end)
}

/// Pairs of calls a second, of all threads together.
fn speed(threads: usize, calls: u64) -> f64 {
    let engine = Engine::new();
    let barrier = Barrier::new(threads);
    let times: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| work(&engine, &barrier, calls))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let start = times.iter().map(|(start, _)| *start).min().unwrap();
    let end = times.iter().map(|(_, end)| *end).max().unwrap();
    (threads as u64 * calls) as f64 / (end - start).as_secs_f64()
}

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!("usage: cargo bench -p softiommu-engine --bench scaling [-- --quick]");
    }
    let args: Vec<String> = std::env::args().collect();
    let quick = !args.iter().any(|a| a == "--bench") || args.iter().any(|a| a == "--quick");
    let (calls, rounds) = if quick { (100, 1) } else { (100_000, 9) };
    let cores = thread::available_parallelism().map_or(1, usize::from).min(8);
    // All have their turns, as a machine's speed changes with what else it does.
    let speeds: Vec<_> = (0..rounds).map(|_| COUNTS.map(|threads| speed(threads, calls))).collect();
    for (index, threads) in COUNTS.into_iter().enumerate() {
        let best = speeds.iter().map(|round| round[index]).fold(0.0, f64::max);
        println!("{threads} threads: {best:.0} map and unmap pairs a second");
    }
    let most = COUNTS.into_iter().rposition(|threads| threads <= cores).unwrap_or(0);
    let mut ratios: Vec<_> =
        speeds.iter().map(|round| round[most] / COUNTS[most] as f64 / round[0]).collect();
    ratios.sort_by(f64::total_cmp);
    if !quick {
        let median = ratios[rounds / 2];
        println!("measure scaling: a thread among {} {median:.2} goal 0.90", COUNTS[most]);
    }
}
