//! Random operations against an oracle that holds a row of units and what each is mapped to.

use super::{RW, last_iova, sizes};
use io_pgtable::{Config, Error, Format, Heap, Prot, Table};
use proptest::prelude::*;

/// Units in the window.
const UNITS: u64 = 72;

#[derive(Clone, Debug)]
enum Op {
    Map { at: u64, count: u64, to: u64, write: bool, sizes: u64 },
    Unmap { at: u64, count: u64 },
    Cut { at: u64 },
    Merge { at: u64, count: u64, sizes: u64 },
    Access { at: u64, write: bool },
    Dirty { at: u64, count: u64, clear: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..UNITS).prop_flat_map(|at| (Just(at), 1..=UNITS - at));
    let sizes = prop_oneof![Just(u64::MAX), any::<u64>()];
    prop_oneof![
        4 => (range.clone(), 0..3 * UNITS, any::<bool>(), any::<bool>(), sizes.clone()).prop_map(
            |((at, count), to, like, write, sizes)| {
                Op::Map { at, count, to: if like { at + UNITS } else { to }, write, sizes }
            }
        ),
        2 => range.clone().prop_map(|(at, count)| Op::Unmap { at, count }),
        2 => (0..UNITS).prop_map(|at| Op::Cut { at }),
        2 => (range.clone(), sizes).prop_map(|((at, count), sizes)| Op::Merge { at, count, sizes }),
        4 => (0..UNITS, any::<bool>()).prop_map(|(at, write)| Op::Access { at, write }),
        2 => (range, any::<bool>()).prop_map(|((at, count), clear)| Op::Dirty { at, count, clear }),
    ]
}

/// What one unit is mapped to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Unit {
    pa: u64,
    prot: Prot,
    /// It was written and has to be reported.
    written: bool,
    /// It may be reported, because its page was written.
    marked: bool,
}

struct Model<F: Format> {
    table: Table<F, Heap>,
    units: Vec<Option<Unit>>,
    base: u64,
    pa: u64,
    lg2: u32,
}

impl<F: Format> Model<F> {
    fn iova(&self, unit: u64) -> u64 {
        self.base + (unit << self.lg2)
    }

    /// The units that share the page of `unit`.
    fn page(&self, unit: u64) -> std::ops::Range<usize> {
        let lg2 = self.table.translate(self.iova(unit)).unwrap().lg2;
        let count = 1usize << lg2.saturating_sub(self.lg2);
        let in_page = (self.iova(unit) & ((1 << lg2) - 1)) >> self.lg2;
        let first = unit as usize - in_page as usize;
        first..first + count
    }

    /// Does a unit's page have a part outside of the range?
    fn sticks_out(&self, at: u64, count: u64) -> bool {
        [at, at + count - 1].iter().any(|&unit| {
            self.units[unit as usize].is_some() && {
                let page = self.page(unit);
                (page.start as u64) < at || page.end as u64 > at + count
            }
        })
    }

    fn run(&mut self, op: &Op) {
        let unit = 1u64 << self.lg2;
        match *op {
            Op::Map { at, count, to, write, sizes } => {
                // The unit itself is always allowed, so that alignment is never in the way.
                let sizes = sizes | unit;
                let smaller = sizes & self.table.page_sizes() & (unit - 1);
                let sizes = sizes & !smaller;
                let prot = if write { RW } else { Prot::READ };
                let (iova, pa) = (self.iova(at), self.pa + (to << self.lg2));
                let result = self.table.map(iova, pa, count << self.lg2, prot, sizes);
                let range = at as usize..(at + count) as usize;
                if let Some(unit) = range.clone().find(|&u| self.units[u].is_some()) {
                    let Err(Error::Exists { iova: found }) = result else {
                        panic!("{op:?}: {result:?}")
                    };
                    let mask = u64::MAX >> (64 - self.table.config().iova_bits);
                    assert!(found <= self.iova(unit as u64) & mask);
                    return;
                }
                assert_eq!(result, Ok(()), "{op:?}");
                for (n, unit) in range.enumerate() {
                    let pa = pa + ((n as u64) << self.lg2);
                    self.units[unit] = Some(Unit { pa, prot, written: false, marked: false });
                }
            }
            Op::Unmap { at, count } => {
                let refused = self.sticks_out(at, count);
                let result = self.table.unmap(self.iova(at), count << self.lg2);
                if refused {
                    assert!(matches!(result, Err(Error::InsideEntry { .. })), "{op:?} {result:?}");
                    return;
                }
                let range = &mut self.units[at as usize..(at + count) as usize];
                let mapped = range.iter().flatten().count() as u64;
                assert_eq!(result, Ok(mapped << self.lg2), "{op:?}");
                range.fill(None);
            }
            Op::Cut { at } => {
                let inside = self.units[at as usize].is_some() && self.page(at).start as u64 != at;
                assert_eq!(self.table.cut(self.iova(at)), Ok(inside), "{op:?}");
                if self.units[at as usize].is_some() {
                    assert_eq!(self.page(at).start as u64, at);
                }
            }
            Op::Merge { at, count, sizes } => {
                self.table.merge(self.iova(at), count << self.lg2, sizes).unwrap();
                // Marks spread over the pages that came about.
                for unit in 0..UNITS {
                    if self.units[unit as usize].is_some_and(|unit| unit.marked) {
                        self.mark(unit);
                    }
                }
            }
            Op::Access { at, write } => {
                let prot = if write { Prot::WRITE } else { Prot::READ };
                let iova = self.iova(at) + (unit - 1);
                let result = self.table.access(iova, prot).map(|found| found.pa);
                match self.units[at as usize] {
                    None => assert_eq!(result, Err(Error::NotMapped { iova })),
                    Some(unit) if !unit.prot.contains(prot) => {
                        assert_eq!(result, Err(Error::Denied { iova, prot: unit.prot }));
                    }
                    Some(found) => {
                        assert_eq!(result, Ok(found.pa + (unit - 1)));
                        if write {
                            self.units[at as usize].as_mut().unwrap().written = true;
                            self.mark(at);
                        }
                    }
                }
            }
            Op::Dirty { at, count, clear } => self.read_dirty(at, count, clear),
        }
    }

    fn mark(&mut self, unit: u64) {
        let page = self.page(unit);
        self.units[page].iter_mut().flatten().for_each(|unit| unit.marked = true);
    }

    fn read_dirty(&mut self, at: u64, count: u64, clear: bool) {
        let found = super::marks::dirty(&self.table, self.iova(at), count << self.lg2, clear);
        let mut reported = vec![false; UNITS as usize];
        for (iova, len) in found {
            let first = ((iova - self.base) >> self.lg2) as usize;
            reported[first..first + (len >> self.lg2) as usize].fill(true);
        }
        for index in at..at + count {
            let Some(unit) = self.units[index as usize] else {
                assert!(!reported[index as usize], "unit {index} is not mapped");
                continue;
            };
            let reported = reported[index as usize];
            assert!(!reported || unit.marked, "unit {index} was never written");
            assert!(reported || !unit.written || F::DIRTY.mask == 0, "unit {index} was lost");
            let page = self.page(index);
            if clear && page.start as u64 >= at && page.end as u64 <= at + count {
                let unit = self.units[index as usize].as_mut().unwrap();
                (unit.written, unit.marked) = (false, false);
            }
        }
    }

    fn check(&self) {
        let step = if cfg!(miri) { 7 } else { 1 };
        for (index, unit) in self.units.iter().enumerate().step_by(step) {
            for offset in [0, (1 << self.lg2) - 1] {
                let found = self.table.translate(self.iova(index as u64) + offset);
                let found = found.ok().map(|found| (found.pa, found.prot));
                assert_eq!(found, unit.map(|unit| (unit.pa + offset, unit.prot)), "unit {index}");
            }
        }
    }
}

pub(crate) fn against_oracle<F: Format>(config: Config) {
    let last = last_iova::<F>(&config);
    let reach = u64::MAX >> (64 - config.iova_bits);
    let fits = |lg2: &u32| 7 + lg2 < config.iova_bits - 2 && 8 + lg2 < config.oa_bits;
    let units: Vec<u32> = sizes::<F>(&config).into_iter().filter(fits).collect();
    let strategy = (
        proptest::sample::select(units),
        0..4u8,
        0..4u8,
        proptest::collection::vec(op(), 1..if cfg!(miri) { 6 } else { 40 }),
    );
    let cases = if cfg!(miri) { 1 } else { 48 };
    super::runner(cases)
        .run(&strategy, |(lg2, place, to, ops)| {
            let window = UNITS << lg2;
            let base = match place {
                0 => 0,
                1 => last - (window - 1),
                2 => (reach / 4 + 1) - ((UNITS / 2) << lg2),
                _ => 5 << lg2,
            };
            let top = if config.oa_bits == 64 { u64::MAX } else { 1 << config.oa_bits };
            let pa = match to {
                0 => 0,
                1 => (top - 4 * window) & !((1 << lg2) - 1),
                2 if config.oa_bits > 48 && lg2 < 40 => (1 << 48) - ((UNITS + 8) << lg2),
                _ => 64 << lg2,
            };
            let table = Table::new(Heap::new(), config).unwrap();
            let units = vec![None; UNITS as usize];
            let mut model = Model::<F> { table, units, base, pa, lg2 };
            for op in &ops {
                model.run(op);
                model.check();
            }
            let taken = model.units.iter().flatten().count() as u64;
            prop_assert_eq!(model.table.unmap(base, window), Ok(taken << lg2));
            Ok(())
        })
        .unwrap();
}
