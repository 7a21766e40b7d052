//! Tables of another machine, from a dump of its memory.

use crate::{Config, Error, Format, Kind, Memory, Step, Table, Walk};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Pages by their physical address. Gives no memory for new tables, and says of every address whether it
/// is there, so that a dump with pages missing, or a hostile one, ends a walk with an error.
#[derive(Debug, Default)]
pub struct Dump {
    pages: BTreeMap<u64, Box<[u64]>>,
}

impl Dump {
    /// A dump without pages.
    pub const fn new() -> Self {
        Self { pages: BTreeMap::new() }
    }

    /// Adds the words at physical address `pa`, a multiple of 8.
    pub fn add(&mut self, pa: u64, words: impl Into<Box<[u64]>>) {
        self.pages.insert(pa, words.into());
    }

    /// The word at physical address `pa`.
    fn word(&self, pa: u64) -> Option<u64> {
        let (first, words) = self.pages.range(..=pa).next_back()?;
        words.get(usize::try_from((pa - first) / 8).ok()?).copied()
    }

    /// Walks the table of `config.levels` levels whose top is at physical address `top`.
    pub fn walk<F: Format>(&self, top: u64, config: &Config, iova: u64) -> Result<Walk, Error> {
        config.check::<F>()?;
        let (at, _) = config.range::<F>(iova, 1)?;
        let (mut steps, mut table) = (Vec::new(), top);
        for level in (0..config.levels).rev() {
            let lg2 = if level + 1 == config.levels {
                config.room_lg2::<F>(config.levels)
            } else {
                F::index_lg2(level)
            };
            let index = at >> F::shift(level) & Config::low(lg2);
            let address = table.checked_add(index * 8);
            let missing = Error::Malformed { iova, entry: table };
            let entry = address.and_then(|pa| self.word(pa)).ok_or(missing)?;
            let step = Step::new::<F>(level, index as usize, at, entry);
            steps.push(step);
            if step.kind != Kind::Table {
                break;
            }
            table = step.pa;
        }
        Ok(Walk { steps })
    }

    /// Copies every page of `table`, as somebody who dumps a machine's memory would find it.
    pub fn of<F: Format, M: Memory>(table: &Table<F, M>) -> Self {
        let mut dump = Self::new();
        table.each_page(|pa, words| dump.add(pa, words));
        dump
    }
}
