//! What an IOAS costs as it fills: 1,000 to 1,000,000 areas.
//!
//! `cargo bench -p softiommu-engine --bench areas` prints the curve, in ns for one ioctl (with the
//! copies of its argument). Beside it stands what a look-up in the standard library's `BTreeMap`
//! costs with as many boxed values: O(log n), in the same caches. `measure NAME RATIO goal GOAL`
//! says how much more each kind of call costs at the end of the curve than at its start, as a part
//! of how much more the map's look-up costs.
//! With `--quick` (or under `cargo test`) it only runs through.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use engine::ioas::Ioas;
use engine::memory::PAGE_SIZE;
use engine::pages::Transfer;
use engine::testing::TestCaller;
use engine::{Context, Engine, Node};
use ioctl_abi::iommufd::*;

const BUFFER: u64 = 0x40_0000;

/// Calls that are timed at each size.
const CALLS: u64 = 1000;

struct Bench {
    caller: TestCaller,
    context: Arc<Context>,
    ioas: Arc<Ioas>,
    random: u64,
    /// What it is compared with.
    plain: BTreeMap<u64, Box<[u64; 40]>>,
}

/// Every second page is mapped, so that each area has a gap beside it.
fn slot(index: u64) -> u64 {
    (1 << 32) + index * 2 * PAGE_SIZE
}

impl Bench {
    fn new() -> Self {
        let caller = TestCaller::new();
        caller.memory.map(BUFFER, 1, true);
        let context = Engine::new().open(Node::Iommu);
        let mut alloc = iommu_ioas_alloc::default();
        caller.call(&context, &mut alloc).unwrap();
        let ioas = context.objects().get::<Ioas>(alloc.out_ioas_id).unwrap().object().clone();
        Self { caller, context, ioas, random: 88_172_645_463_325_252, plain: BTreeMap::new() }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn map(&self, iova: Option<u64>, pages: u64) -> u64 {
        let fixed = if iova.is_some() { IOMMU_IOAS_MAP_FIXED_IOVA } else { 0 };
        let mut map = iommu_ioas_map {
            flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE | fixed,
            ioas_id: self.ioas.id(),
            user_va: BUFFER,
            length: pages * PAGE_SIZE,
            iova: iova.unwrap_or(0),
            ..Default::default()
        };
        self.caller.call(&self.context, &mut map).unwrap();
        map.iova
    }

    fn unmap(&self, iova: u64, pages: u64) {
        let length = pages * PAGE_SIZE;
        let ioas_id = self.ioas.id();
        let mut unmap = iommu_ioas_unmap { ioas_id, iova, length, ..Default::default() };
        self.caller.call(&self.context, &mut unmap).unwrap();
    }

    /// The ns of one call of each kind, with `areas` areas.
    fn measure(&mut self, areas: u64) -> [f64; 5] {
        let places: Vec<u64> = (0..CALLS).map(|_| slot(self.random(areas))).collect();
        let mut distinct = places.clone();
        distinct.sort_unstable();
        distinct.dedup();
        // Not in the order of their IOVAs.
        for i in (1..distinct.len()).rev() {
            let other = self.random(i as u64 + 1) as usize;
            distinct.swap(i, other);
        }
        let lookup = time(CALLS, || {
            for &at in &places {
                self.ioas.copy_at(at, Transfer::Read(black_box(&mut [0; 8]))).unwrap();
            }
        });
        let plain = time(CALLS, || {
            for at in &places {
                black_box(self.plain.get(at).map(|value| value[7]));
            }
        });
        let count = distinct.len() as u64;
        let unmap = time(count, || distinct.iter().for_each(|&at| self.unmap(at, 1)));
        let fixed = time(count, || distinct.iter().for_each(|&at| _ = self.map(Some(at), 1)));
        // The gaps are of one page: an area of two needs a search past all of them.
        let mut chosen = Vec::new();
        let choose = time(CALLS, || (0..CALLS).for_each(|_| chosen.push(self.map(None, 2))));
        chosen.iter().for_each(|&at| self.unmap(at, 2));
        [lookup, fixed, choose, unmap, plain]
    }
}

fn time(calls: u64, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as f64 / calls as f64
}

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!("usage: cargo bench -p softiommu-engine --bench areas [-- --quick]");
    }
    let args: Vec<String> = std::env::args().collect();
    let quick = !args.iter().any(|a| a == "--bench") || args.iter().any(|a| a == "--quick");
    let sizes: &[u64] = if quick { &[10, 1000] } else { &[1000, 10_000, 100_000, 1_000_000] };
    let kinds = ["look-up", "map at an IOVA", "map anywhere", "unmap", "(BTreeMap)"];
    let mut bench = Bench::new();
    // The lowest free place is past the areas.
    let below = bench.map(Some(PAGE_SIZE), slot(0) / PAGE_SIZE - 1);
    let row = |size: &str, row: [String; 5]| {
        println!("{size:>9} {}", row.map(|cell| format!("{cell:>15}")).join(" "));
    };
    row("areas", kinds.map(str::to_owned));
    let mut curve = Vec::new();
    let mut areas = 0;
    for &size in sizes {
        while areas < size {
            bench.map(Some(slot(areas)), 1);
            bench.plain.insert(slot(areas), Box::new([areas; 40]));
            areas += 1;
        }
        let mut best = bench.measure(size);
        for _ in 0..if quick { 0 } else { 4 } {
            let again = bench.measure(size);
            best.iter_mut().zip(again).for_each(|(best, again)| *best = best.min(again));
        }
        row(&size.to_string(), best.map(|ns| format!("{ns:.0} ns")));
        curve.push(best);
    }
    bench.unmap(below, slot(0) / PAGE_SIZE - 1);
    if let (false, Some(start), Some(end)) = (quick, curve.first(), curve.last()) {
        let growth: Vec<f64> = end.iter().zip(start).map(|(end, start)| end / start).collect();
        for (kind, grown) in kinds.iter().zip(&growth).take(4) {
            let ratio = grown / growth[4];
            println!("measure areas: {kind}, growth by BTreeMap's {ratio:.2} goal 1.00");
        }
    }
}
