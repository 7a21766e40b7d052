//! This crate's tables at work.

use crate::report::Report;
use crate::{Times, Work, plain_scan, plain_stores, time};
use io_pgtable::{Config, Format, Heap, Pool, Prot, Table, for_each_format};
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

fn run<F: Format>(name: &str, config: Config, work: Work, report: &mut Report) {
    let Some(lg2) = page_lg2::<F>(&config, work.lg2) else { return };
    let gib = work.pages == 1 << 18;
    let pages = if gib { 1 << (30 - lg2) } else { work.pages };
    let shift = lg2;
    let len = pages << shift;
    let base = (len * work.calls).next_power_of_two();
    if (base * 2 - 1) >> (config.iova_bits - 1) != 0 || (base * 2) >> config.oa_bits != 0 {
        return;
    }
    let pool = Pool::new(Heap::new());
    let mut table = Table::<F, _>::new(&pool, config).unwrap();
    let entries = (pages * work.calls) as usize;
    let mut words = vec![0u64; entries];
    let mut times = Times::new();
    let starts = || (0..work.calls).map(|call| base + call * len);
    let size = 1 << lg2;
    for _ in 0..work.rounds {
        time(&mut times.ours[0], || {
            starts().for_each(|iova| table.map(iova, iova, len, RW, size).unwrap());
        });
        time(&mut times.plain[0], || {
            for chunk in words.chunks_mut(pages as usize) {
                plain_stores(chunk, base | 3, size);
            }
        });
        time(&mut times.ours[2], || {
            for iova in (0..entries as u64).map(|page| base + (page << shift)) {
                black_box(table.translate(iova).unwrap());
            }
        });
        times.plain[2] = times.plain[2].min(times.ours[2]);
        time(&mut times.ours[3], || {
            for iova in starts() {
                let mut found = 0;
                table.read_dirty(iova, len, false, |_, len| found += len).unwrap();
                assert_eq!(black_box(found), 0);
            }
        });
        time(&mut times.plain[3], || {
            for chunk in words.chunks(pages as usize) {
                black_box(plain_scan(chunk));
            }
        });
        time(&mut times.ours[1], || {
            starts().for_each(|iova| assert_eq!(table.unmap(iova, len), Ok(len)));
        });
        time(&mut times.plain[1], || {
            for chunk in words.chunks_mut(pages as usize) {
                plain_stores(chunk, 0, 0);
            }
        });
    }
    report.add(name, work.name, entries, lg2, times);
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
            $(run::<$format>(stringify!($name), $config, work, report);)*
        }
    };
}

for_each_format!(rows);
