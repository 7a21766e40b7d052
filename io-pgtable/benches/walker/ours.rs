//! This crate's tables at work.

use crate::report::Report;
use crate::{DIRTY, MAP, Plain, TRANSLATE, Times, UNMAP, Work};
use io_pgtable::{AmdV1, Config, Format, Heap, Pool, Prot, Table, for_each_format};
use std::hint::black_box;

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The page size of the format that stands for `lg2`: the same, else the granule or the block size of
/// the same level.
fn page_lg2<F: Format>(config: &Config, lg2: u32) -> Option<u32> {
    let sizes = config.page_sizes & F::page_sizes(config);
    let level = ((lg2 - 12) / 9) as u8;
    let own = if F::GRANULE_LG2 == 12 { lg2 } else { F::shift(level) };
    (sizes >> own & 1 != 0).then_some(own)
}

/// A table of format `F` doing `work`, while `readers` readers of it are registered.
fn run<F: Format>(name: &str, config: Config, work: Work, readers: usize, report: &mut Report) {
    if !report.wants(name, work.name) {
        return;
    }
    let Some(lg2) = page_lg2::<F>(&config, work.lg2) else {
        return report.none(name, work.name, "the format has no such page");
    };
    let gib = work.pages == 1 << 18;
    let pages = if gib { 1 << (30 - lg2) } else { work.pages };
    let len = pages << lg2;
    let base = (len * work.calls).next_power_of_two();
    let room = config.iova_bits.min(config.oa_bits) - 1;
    if (base * 2 - 1) >> room != 0 {
        return report.none(name, work.name, "the table does not reach so far");
    }
    let pool = Pool::new(Heap::new());
    let mut table = Table::<F, _>::new(&pool, config).unwrap();
    let readers: Vec<_> = (0..readers).map(|_| table.reader()).collect();
    let entries = pages * work.calls;
    let (mut times, mut plain) = (Times::new(), Plain::new(pages, work.calls));
    let starts = || (0..work.calls).map(|call| base + call * len);
    let size = 1 << lg2;
    for round in 0..work.rounds {
        for _ in 0..2 {
            times.time(MAP, || {
                starts().for_each(|iova| table.map(iova, iova, len, RW, size).unwrap());
            });
            // Slow beside the others, and it needs no company.
            if round % 4 == 0 {
                times.time(TRANSLATE, || {
                    for iova in (0..entries).map(|page| base + (page << lg2)) {
                        black_box(table.translate(iova).unwrap());
                    }
                });
            }
            times.time(DIRTY, || {
                for iova in starts() {
                    let mut found = 0;
                    table.read_dirty(iova, len, false, |_, len| found += len).unwrap();
                    assert_eq!(black_box(found), 0);
                }
            });
            times.time(UNMAP, || {
                starts().for_each(|iova| assert_eq!(table.unmap(iova, len), Ok(len)));
            });
        }
        plain.round(lg2);
        plain.round(lg2);
    }
    report.add(name, work.name, entries, lg2, times, Some(plain.times));
    drop(readers);
    if gib {
        // Enough leaf tables that those above them do not count: 512, and 16 MiB of them.
        let lg2 = F::GRANULE_LG2 + F::index_lg2(0);
        let tables = 512.max((16 << 20) >> (3 + F::index_lg2(0)));
        table.map(0, 0, tables << lg2, RW, 1 << F::GRANULE_LG2).unwrap();
        let entries = tables << (3 + F::index_lg2(0));
        report.memory(name, table.footprint().1 as f64 / entries as f64);
    }
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {
        pub(crate) fn all(work: Work, report: &mut Report) {
            $(run::<$format>(stringify!($name), $config, work, 0, report);)*
            run::<AmdV1>("amd_v1 and a reader", AmdV1::config(), work, 1, report);
        }
    };
}

for_each_format!(rows);
