//! What a failed map leaves, to the byte, and whether its short ways write what the general one does.
//!
//! These look at all words of all tables, also at those that a walk does not show, and call the ways of
//! [`Table::map`] one by one, which the suite cannot. Under Miri, which minds how memory is accessed and
//! takes a second for a few thousand words, the words are not compared.

use super::{Shared, Table};
use crate::raw::Tab;
use crate::{Config, Error, Failing, Format, Heap, Kind, Memory, Prot, for_each_format};
use core::sync::atomic::Ordering::Relaxed;
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner};
use std::vec::Vec;

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A table's top word and every word of every page, with the page's address.
fn bytes<F: Format, M: Memory>(table: &Table<F, M>) -> (u64, Vec<(u64, Vec<u64>)>) {
    let mut pages = Vec::new();
    if !cfg!(miri) {
        table.each_page(|pa, words| pages.push((pa, words)));
    }
    (table.shared.top.load(Relaxed), pages)
}

/// Every word of every table in the order of a walk, without the addresses of the tables.
fn words<F: Format, M: Memory>(table: &Table<F, M>) -> Vec<u64> {
    fn below<F: Format, M: Memory>(
        shared: &Shared<F, M>,
        level: u8,
        tab: Tab<'_>,
        words: &mut Vec<u64>,
    ) {
        for entry in tab.words(0..tab.len()).iter().map(|word| word.load(Relaxed)) {
            if F::kind(level, entry) != Kind::Table {
                words.push(entry);
                continue;
            }
            let pa = F::table_pa(level, entry);
            words.push(entry ^ F::table(level, pa) ^ F::table(level, 0));
            below(shared, level - 1, shared.child(level, entry, 0).unwrap(), words);
        }
    }
    let (level, tab) = table.shared.top().unwrap();
    let mut words = Vec::from([u64::from(level)]);
    if !cfg!(miri) {
        below(&table.shared, level, tab, &mut words);
    }
    words
}

/// The granules' sizes that a table can use and that fit one table of level 0, as log2.
fn lowest_sizes<F: Format>(config: &Config) -> Vec<u32> {
    let sizes = config.sizes::<F>() & Config::low(F::shift(0) + F::index_lg2(0));
    (0..64).filter(|lg2| sizes >> lg2 & 1 != 0).collect()
}

/// With the smallest page, whose ways these tests are about. (Linux's mock has a table without it.)
fn with_smallest<F: Format>(config: Config) -> Config {
    Config { page_sizes: config.page_sizes | 1 << F::shift(0), ..config }
}

/// Whether Miri would take minutes for all entries of a table.
fn too_large_for_miri<F: Format>() -> bool {
    cfg!(miri) && F::INDEX_LG2 > 9
}

/// A table with one page at the start of the table of level 0 that the region is.
fn started<F: Format, M: Memory>(memory: M, config: Config, region: u64) -> Table<F, M> {
    let mut table = Table::<F, M>::new(memory, config).unwrap();
    let page = 1 << F::shift(0);
    table.map(region, region, page, RW, page).unwrap();
    table
}

/// `fill_lowest` meets a page wherever one can be in its way, and takes all back.
fn few_pages_are_undone<F: Format>(config: Config) {
    let config = with_smallest::<F>(config);
    let shift = F::shift(0);
    let (page, region) = (1u64 << shift, 1u64 << F::shift(1));
    if too_large_for_miri::<F>() {
        return;
    }
    let Some(&largest) = lowest_sizes::<F>(&config).last() else { return };
    // Small pages, some of each larger size that begins here, and small ones again.
    let most = (2u64 << (largest - shift)).min(1 << F::index_lg2(0) >> 1).clamp(40, 64);
    let step = if cfg!(miri) { most / 2 - 1 } else { 1 };
    for obstacle in (0..most).step_by(step as usize) {
        let mut table = started::<F, _>(Heap::new(), config, region);
        let start = region + most * page - page;
        let len = (most + 2).min((1 << F::index_lg2(0)) - most) * page;
        if obstacle * page >= len {
            break;
        }
        let at = start + obstacle * page;
        table.map(at, 0, page, Prot::READ, page).unwrap();
        let before = bytes(&table);
        let attrs = F::attrs(RW, config.track).unwrap();
        let sizes = table.shared.sizes;
        // SAFETY: the table has no readers.
        let done = unsafe { table.fill_lowest(start, start + (len - 1), start, sizes, attrs) };
        assert_eq!(done, 0, "a page at {obstacle} is in the way");
        assert!(bytes(&table) == before, "something is left, with a page at {obstacle}");
        assert_eq!(table.map(start, start, len, RW, u64::MAX), Err(Error::Exists { iova: at }));
        assert!(bytes(&table) == before, "something is left, with a page at {obstacle}");
        // Without it, all goes this way.
        assert_eq!(table.unmap(at, page), Ok(page));
        // SAFETY: as above.
        let done = unsafe { table.fill_lowest(start, start + (len - 1), start, sizes, attrs) };
        assert_eq!(done, len);
        assert_eq!(table.unmap(start, len), Ok(len));
        assert_eq!(table.translate(region).unwrap().pa, region);
    }
}

/// A map over several tables and of every size fails at each of its allocations, and where it meets a
/// page, and changes no word.
fn failures_change_no_word<F: Format>(config: Config) {
    let config = with_smallest::<F>(config);
    if too_large_for_miri::<F>() {
        return;
    }
    let memory = Failing::new(Heap::new());
    let page = 1u64 << F::shift(0);
    // The last table of level 0 of its table of level 1: the next one needs a new one of both.
    let region = (1u64 << F::shift(2)) - (1 << F::shift(1));
    let mut table = started::<F, _>(&memory, config, region);
    let pages = memory.inner().pages();
    let before = bytes(&table);
    // From inside the table that is there to inside the third after it: larger pages between.
    let (start, len) = if cfg!(miri) {
        (region + (1 << F::shift(1)) - page, 3 * page)
    } else {
        (region + 3 * page, 3 << F::shift(1))
    };
    let mut failed = 0;
    loop {
        memory.fail_after(failed);
        let result = table.map(start, start, len, RW, u64::MAX);
        memory.succeed();
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(Error::NoMemory));
        assert!(bytes(&table) == before, "something is left after failure {failed}");
        assert_eq!(memory.inner().pages(), pages);
        failed += 1;
    }
    assert!(failed > 1, "it takes tables of two levels");
    assert_eq!(table.unmap(start, len), Ok(len));
    // The last page is in the way; it is beyond what larger pages cover.
    let last = start + len - page;
    table.map(last, 0, page, RW, page).unwrap();
    let (before, pages) = (bytes(&table), memory.inner().pages());
    assert_eq!(table.map(start, start, len, RW, u64::MAX), Err(Error::Exists { iova: last }));
    assert!(bytes(&table) == before, "something is left after a page was in the way");
    assert_eq!(memory.inner().pages(), pages);
}

/// Whatever way a map goes (one table of small pages, one table of pages of any size, the general one, or
/// that for tables with readers), it writes the same words.
fn all_ways_write_the_same<F: Format>(config: Config) {
    let config = with_smallest::<F>(config);
    let entries = 1u64 << F::index_lg2(0);
    let shift = F::shift(0);
    let region = 1u64 << F::shift(1);
    // Few pages in most cases; at times past the end of the table.
    let len = prop_oneof![3 => 1..=(entries / 8).min(40), 1 => 1..=entries + 3];
    let to = prop_oneof![Just(None), (0..2 * entries).prop_map(Some)];
    let strategy = (0..entries, len, to, any::<bool>(), any::<u64>(), any::<bool>());
    let cases = match (cfg!(miri), too_large_for_miri::<F>()) {
        (_, true) => 1,
        (true, _) => 2,
        _ => 64,
    };
    let settings = RunnerConfig { cases, failure_persistence: None, ..RunnerConfig::default() };
    TestRunner::new_with_rng(settings, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
        .run(&strategy, |(at, pages, to, write, sizes, all)| {
            let (first, len) = (region + (at << shift), pages << shift);
            let last = first + (len - 1);
            // Another place, or the same, where larger pages fit.
            let pa = to.map_or(first, |to| to << shift);
            let prot = if write { RW } else { Prot::READ };
            let sizes = if all { u64::MAX } else { sizes | 1 << shift };
            let attrs = F::attrs(prot, config.track).unwrap();

            let mut fast = started::<F, _>(Heap::new(), config, 0);
            let mut few = started::<F, _>(Heap::new(), config, 0);
            let mut general = started::<F, _>(Heap::new(), config, 0);
            let mut watched = started::<F, _>(Heap::new(), config, 0);
            if at & 1 == 0 {
                // The table of level 0 is there, as `fill_lowest` wants it.
                let (one, page) = (region + ((at ^ 1) << shift), 1 << shift);
                for table in [&mut fast, &mut few, &mut general, &mut watched] {
                    table.map(one, 0, page, RW, page).unwrap();
                    table.unmap(one, page).unwrap();
                }
            }
            let _reader = watched.reader();
            fast.map(first, pa, len, prot, sizes).unwrap();
            watched.map(first, pa, len, prot, sizes).unwrap();
            let sizes = sizes & general.shared.sizes;
            general.map_rest([first, last], pa, 0, sizes, attrs).unwrap();
            // SAFETY: the table has no readers.
            let done = unsafe { few.fill_lowest(first, last, pa, sizes, attrs) };
            prop_assert!(done == 0 || done == len);

            let expected = words(&general);
            prop_assert!(words(&fast) == expected, "the short ways");
            prop_assert!(words(&watched) == expected, "the way with readers");
            prop_assert!(done == 0 || words(&few) == expected, "the way of few pages");
            for table in [fast, general, watched] {
                let (found, end) =
                    (table.translate(first).unwrap(), table.translate(last).unwrap());
                prop_assert_eq!((found.pa, end.pa), (pa, pa + (len - 1)));
            }
            Ok(())
        })
        .unwrap();
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {$(
        mod $name {
            #[test]
            fn few_pages_are_undone() {
                super::few_pages_are_undone::<$format>($config);
            }

            #[test]
            fn failures_change_no_word() {
                super::failures_change_no_word::<$format>($config);
            }

            #[test]
            fn all_ways_write_the_same() {
                super::all_ways_write_the_same::<$format>($config);
            }
        }
    )*};
}

for_each_format!(rows);
