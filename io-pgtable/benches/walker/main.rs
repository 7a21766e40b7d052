//! What map, unmap, translate and dirty reads cost, for every format, beside two other crates and
//! beside plain stores of the same number of bytes.
//!
//! The plain words are a slice of as many 64-bit words as the work has entries, written with entries
//! that count up (a loop that the compiler makes wide) or read for one bit. Tables and words take turns,
//! each twice in a row, so that both find in the caches what they left there; and the fastest round
//! counts, so that the ratios hold on a machine that is busy with other things. The last lines are
//! `measure NAME RATIO goal GOAL`. `--quick` makes fewer rounds; any other word leaves out the rows
//! (work and format) that do not hold it, and the measures with them.

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
    Work { name: "256 x 4K", lg2: 12, pages: 256, calls: 16, rounds: 400 },
    Work { name: "256 x 2M", lg2: 21, pages: 256, calls: 16, rounds: 400 },
    Work { name: "1 GiB of 4K", lg2: 12, pages: 1 << 18, calls: 1, rounds: 24 },
    Work { name: "1 TiB of 1G", lg2: 30, pages: 1 << 10, calls: 2, rounds: 200 },
];

/// The operations that are timed.
pub(crate) const OPS: [&str; 4] = ["map", "unmap", "translate", "dirty"];
pub(crate) const MAP: usize = 0;
pub(crate) const UNMAP: usize = 1;
pub(crate) const TRANSLATE: usize = 2;
pub(crate) const DIRTY: usize = 3;

/// Nanoseconds of the fastest round for each operation; infinite for what was not timed.
#[derive(Clone, Copy)]
pub(crate) struct Times(pub(crate) [f64; 4]);

impl Times {
    pub(crate) fn new() -> Self {
        Self([f64::INFINITY; 4])
    }

    /// Runs `f` and lowers the time of `op` to what it took.
    pub(crate) fn time(&mut self, op: usize, f: impl FnOnce()) {
        let start = Instant::now();
        f();
        self.0[op] = self.0[op].min(start.elapsed().as_nanos() as f64);
    }
}

/// As many words as a piece of work has entries.
pub(crate) struct Plain {
    words: Vec<u64>,
    /// Words for one call.
    chunk: usize,
    pub(crate) times: Times,
}

impl Plain {
    pub(crate) fn new(pages: u64, calls: u64) -> Self {
        let words = vec![1; (pages * calls) as usize];
        Self { words, chunk: pages as usize, times: Times::new() }
    }

    /// The same work on plain words.
    pub(crate) fn round(&mut self, lg2: u32) {
        let (words, chunk) = (&mut self.words, self.chunk);
        self.times.time(MAP, || {
            words.chunks_mut(chunk).for_each(|chunk| plain_stores(chunk, 3 << lg2 | 3, 1 << lg2));
        });
        self.times.time(DIRTY, || {
            words.chunks(chunk).for_each(|chunk| _ = black_box(plain_scan(chunk)));
        });
        self.times.time(UNMAP, || {
            words.chunks_mut(chunk).for_each(|chunk| plain_stores(chunk, 0, 0));
        });
    }
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
    if std::env::args().any(|a| a == "--help") {
        return println!(
            "usage: cargo bench -p io-pgtable [-- [--quick] [WORD...]]\n\n--quick makes fewer rounds; only rows that hold all WORDs are measured."
        );
    }
    let (flags, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let quick = flags.iter().any(|flag| flag == "--quick");
    let divide = if quick { 4 } else { 1 };
    let mut report = report::Report::new(words);
    for mut work in WORKS {
        work.rounds = (work.rounds / divide).max(5);
        ours::all(work, &mut report);
        peers::all(work, &mut report);
    }
    report.measures();
}
