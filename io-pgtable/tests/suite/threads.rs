//! Readers at work while the writer changes the table.
//!
//! Every loop is bounded, the writer's by its own count and the readers' by a flag that is set when
//! the writer is done, also when it panics; nobody waits for anybody's progress.

use super::{RW, sizes};
use io_pgtable::{Config, Error, Format, Heap, Prot, Table};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

const ROUNDS: u64 = if cfg!(miri) { 3 } else { 200 };
const READERS: usize = 2;

/// Sets a flag when it goes out of scope.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Release);
    }
}

/// What a reader translates is right or not mapped, although tables come and go.
pub(crate) fn translate_while_mapping<F: Format>(config: Config) {
    let heap = Heap::new();
    let small = 1u64 << sizes::<F>(&config)[0];
    let span = small << F::index_lg2(0);
    let mut table = Table::<F, _>::new(&heap, config).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..READERS as u64 {
            let (reader, stop) = (table.reader(), &stop);
            scope.spawn(move || {
                let mut at = seed;
                while !stop.load(Acquire) {
                    at = (at * 13 + 7) % (2 * span / small);
                    let iova = at * small + 1;
                    match reader.section(|reader| reader.translate(iova)) {
                        Ok(found) => assert_eq!(found.pa, 4 * span + iova),
                        Err(error) => assert_eq!(error, Error::NotMapped { iova }),
                    }
                }
            });
        }
        let _stop = Finally(&stop);
        for round in 0..ROUNDS {
            let sizes = if round % 2 == 0 { small } else { u64::MAX };
            // Miri gets a few pages on both sides of the border between two tables.
            let len = if cfg!(miri) { 8 * small } else { 2 * span };
            let first = span - len / 2;
            table.map(first, 4 * span + first, len, RW, sizes).unwrap();
            assert_eq!(table.unmap(0, 2 * span), Ok(len));
        }
    });
    assert_eq!(table.reclaim(), 0, "no reader is left inside");
    drop(table);
    assert_eq!(heap.pages(), 0);
}

/// No write's mark is lost while its page is cut, merged and read.
pub(crate) fn write_while_resizing<F: Format>(config: Config) {
    let sizes = sizes::<F>(&config);
    let small = 1u64 << sizes[0];
    // Large enough for a table of its own to come and go.
    let Some(&large) = sizes[1..].iter().rev().find(|&&lg2| lg2 <= 25) else { return };
    let bytes = 1u64 << large;
    let heap = Heap::new();
    let mut table = Table::<F, _>::new(&heap, config).unwrap();
    table.map(0, bytes, bytes, RW, u64::MAX).unwrap();
    let stop = AtomicBool::new(false);
    // Pages that were written and not found dirty yet: bit n is page n of the first 64.
    let pages = (bytes / small).min(64);
    let (written, mut found) = (AtomicU64::new(0), 0u64);
    std::thread::scope(|scope| {
        let (reader, stop, written) = (table.reader(), &stop, &written);
        scope.spawn(move || {
            for n in 0..ROUNDS * pages {
                if stop.load(Acquire) {
                    break;
                }
                let page = n * 11 % pages;
                let pa = reader.access(page * small + 3, Prot::WRITE).unwrap().pa;
                assert_eq!(pa, bytes + page * small + 3);
                written.fetch_or(1 << page, SeqCst);
            }
        });
        let _stop = Finally(stop);
        for round in 0..ROUNDS {
            table.cut(round % pages * small).unwrap();
            table.cut(bytes / 2).unwrap();
            table
                .read_dirty(0, bytes, round % 3 == 0, |iova, len| {
                    let (first, count) = (iova / small, len / small);
                    (first..(first + count).min(64)).for_each(|page| found |= 1 << page);
                })
                .unwrap();
            table.merge(0, bytes, u64::MAX).unwrap();
        }
    });
    for (iova, len) in super::marks::dirty(&table, 0, bytes, true) {
        (iova / small..((iova + len) / small).min(64)).for_each(|page| found |= 1 << page);
    }
    let lost = written.into_inner() & !found;
    assert!(lost == 0 || F::DIRTY.mask == 0, "lost {lost:#x}");
    for page in (0..bytes / small).step_by(if cfg!(miri) { 61 } else { 1 }) {
        assert_eq!(table.translate(page * small).unwrap().pa, bytes + page * small);
    }
    table.reclaim();
    drop(table);
    assert_eq!(heap.pages(), 0);
}
