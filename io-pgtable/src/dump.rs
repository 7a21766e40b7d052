//! Tables of another machine, from a dump of its memory.

use crate::{Config, Error, Format, Kind, Memory, Step, Table, Walk};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Pages by their physical address. Gives no memory for new tables, and says of every address whether it
/// is there, so that a dump with pages missing, or a hostile one, ends a walk with an error.
///
/// ```
/// # use io_pgtable::{Dump, Error, Format, RiscV};
/// // What was found in a machine's memory: a page-table page at 0x8020_0000, and two below it.
/// let mut dump = Dump::new();
/// let page = |index: usize, entry| {
///     let mut words = vec![0; 512];
///     words[index] = entry;
///     words
/// };
/// dump.add(0x8020_0000, page(1, 0x2008_0401));
/// dump.add(0x8020_1000, page(2, 0x2008_0801));
/// dump.add(0x8020_2000, page(3, 0x2010_00d7));
/// let walk = dump.walk::<RiscV>(0x8020_0000, &RiscV::sv39(), 0x4040_3000)?;
/// assert_eq!(walk.steps.last().map(|leaf| leaf.pa), Some(0x8040_0000));
/// // Somewhere else there is nothing, and of a page that was not dumped that is said.
/// assert_eq!(dump.walk::<RiscV>(0x8020_0000, &RiscV::sv39(), 0)?.steps.len(), 1);
/// assert!(matches!(
///     dump.walk::<RiscV>(0x9000_0000, &RiscV::sv39(), 0),
///     Err(Error::Malformed { entry: 0x9000_0000, .. })
/// ));
/// # Ok::<(), Error>(())
/// ```
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
