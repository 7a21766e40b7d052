//! The suite's parts, and what they share.

pub(crate) mod corners;
pub(crate) mod entries;
pub(crate) mod failures;
pub(crate) mod marks;
pub(crate) mod random;
pub(crate) mod threads;

use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner};

use io_pgtable::{Config, Format, Memory, Prot, Step, Table};

/// Read and write, which every format can express.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The page sizes of a table, as log2, ascending. Miri takes its time, and gets two of them.
pub(crate) fn sizes<F: Format>(config: &Config) -> Vec<u32> {
    let mask = config.page_sizes & F::page_sizes(config);
    let mut sizes: Vec<u32> = (0..64).filter(|lg2| mask >> lg2 & 1 != 0).collect();
    if cfg!(miri) {
        sizes.truncate(2);
    }
    sizes
}

/// Whether tables are small enough for what goes over all of their entries: all but under Miri.
pub(crate) fn whole_tables<F: Format>() -> bool {
    !cfg!(miri) || F::INDEX_LG2 <= 9
}

/// The last IOVA that a table can translate.
pub(crate) fn last_iova<F: Format>(config: &Config) -> u64 {
    if F::SIGN_EXTENDED { u64::MAX } else { u64::MAX >> (64 - config.iova_bits) }
}

/// Everything that is in a table, but for tables with nothing in them. Under Miri, which looks at how memory
/// is accessed and takes a second for a thousand entries, nothing.
pub(crate) fn contents<F: Format, M: Memory>(table: &Table<F, M>) -> Vec<Step> {
    let (config, mut steps) = (*table.config(), Vec::new());
    if cfg!(miri) {
        return steps;
    }
    let half = 1u64 << (config.iova_bits - 1);
    for first in [0, last_iova::<F>(&config) - (half - 1)] {
        table.visit(first, half, |step| steps.push(*step)).unwrap();
    }
    steps
}

/// A proptest runner that tries the same `cases` cases in every run.
pub(crate) fn runner(cases: u32) -> TestRunner {
    let config = RunnerConfig { cases, failure_persistence: None, ..RunnerConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}
