//! What map, unmap, translate and dirty reads cost, for every format, beside two other crates and
//! beside plain stores of the same number of bytes.
//!
//! Everything is measured in rounds that take turns with the plain stores, and the fastest round
//! counts, so that the ratios hold on a machine that is busy with other things. The last lines are
//! `measure NAME RATIO goal GOAL`. `--quick` makes fewer rounds.

mod ours;
mod peers;
mod report;

use std::hint::black_box;
use std::time::Instant;

/// One piece of work: pages of one size at consecutive addresses.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    /// log2 of a page's size; formats with other granules take their nearest.
    pub(crate) lg2: u32,
    /// Pages that one call maps.
    pub(crate) pages: u64,
    /// Calls, at consecutive addresses, that are timed together.
    pub(crate) calls: u64,
    /// Rounds.
    pub(crate) rounds: u32,
}

pub(crate) const WORKS: [Work; 5] = [
    Work { name: "1 page", lg2: 12, pages: 1, calls: 128, rounds: 200 },
    Work { name: "256 x 4K", lg2: 12, pages: 256, calls: 8, rounds: 400 },
    Work { name: "256 x 2M", lg2: 21, pages: 256, calls: 8, rounds: 400 },
    Work { name: "1 GiB of 4K", lg2: 12, pages: 1 << 18, calls: 1, rounds: 24 },
    Work { name: "1 TiB of 1G", lg2: 30, pages: 1 << 10, calls: 2, rounds: 200 },
];

/// The operations that are timed.
pub(crate) const OPS: [&str; 4] = ["map", "unmap", "translate", "dirty"];

/// Nanoseconds of the fastest round for each operation, ours and the plain one beside it.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) ours: [f64; 4],
    pub(crate) plain: [f64; 4],
}

impl Times {
    pub(crate) fn new() -> Self {
        Self { ours: [f64::INFINITY; 4], plain: [f64::INFINITY; 4] }
    }

    pub(crate) fn ratio(&self, op: usize) -> f64 {
        self.ours[op] / self.plain[op]
    }
}

/// Runs `f` and lowers `best` to the nanoseconds that it took.
pub(crate) fn time(best: &mut f64, f: impl FnOnce()) {
    let start = Instant::now();
    f();
    *best = best.min(start.elapsed().as_nanos() as f64);
}

/// Stores `words` as a run of entries that count up.
#[inline(never)]
pub(crate) fn plain_stores(words: &mut [u64], first: u64, stride: u64) {
    let mut entry = first;
    for word in words.iter_mut() {
        *word = entry;
        entry = entry.wrapping_add(stride);
    }
    black_box(words);
}

/// Looks at every word for one bit, as a scan for dirty entries would.
#[inline(never)]
pub(crate) fn plain_scan(words: &[u64]) -> usize {
    black_box(words).iter().filter(|&&word| word & 1 << 6 != 0).count()
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let divide = if quick { 4 } else { 1 };
    let mut report = report::Report::new();
    for mut work in WORKS {
        work.rounds = (work.rounds / divide).max(5);
        ours::all(work, &mut report);
        peers::all(work, &mut report);
    }
    report.measures();
}
