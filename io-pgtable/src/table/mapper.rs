//! The general way of a map: leaves in the largest sizes allowed, written as runs.
//!
//! The mapper goes down once, keeps its position in every table, and writes all the pages of one size
//! that fit the table it is in with one loop over consecutive words. Tables that are new are filled before
//! they are linked. What it wrote before an error is there: whoever called takes it back.

use super::run::{Run, all_are};
use super::{Shared, retire};
use crate::raw::Tab;
use crate::reclaim::Retired;
use crate::{Config, Error, Format, Kind, Memory};
use core::cell::Cell;

/// A map under way.
pub(super) struct Mapper<'a, F: Format, M: Memory> {
    pub(super) shared: &'a Shared<F, M>,
    pub(super) retired: &'a mut Retired,
    /// The next IOVA, its physical address, and the bytes that are left.
    pub(super) iova: u64,
    pub(super) pa: u64,
    pub(super) left: u64,
    /// Sizes that pages may have; bit n: 2^n bytes.
    pub(super) sizes: u64,
    pub(super) attrs: u64,
    /// Whether there are no readers, so that entries need not be atomic.
    pub(super) solo: bool,
}

impl<F: Format, M: Memory> Mapper<'_, F, M> {
    /// Maps everything, the last IOVA being `last`.
    #[inline]
    pub(super) fn start(&mut self, last: u64) -> Result<(), Error> {
        let Some((level, tab)) = self.shared.top() else { return Err(Error::BadConfig) };
        let top = F::shift(level) + tab.lg2();
        let (level, tab) = self.shared.common(level, tab, self.iova, last)?;
        // A page cannot be larger than what the top's entries can be part of.
        self.sizes &= Config::low(top);
        self.fill::<false>(level, tab)
    }

    /// log2 of the largest page that may start here.
    #[inline]
    fn best(&self) -> u32 {
        let aligned = (self.iova | self.pa).trailing_zeros().min(63);
        let fits = 63 - self.left.leading_zeros();
        let sizes = self.sizes & Config::low(aligned.min(fits) + 1);
        63 - sizes.leading_zeros()
    }

    /// How many bytes from here have pages of 2^`lg2` bytes in a table that covers 2^`span` bytes: until
    /// the table ends, the range ends, or a larger page is possible.
    #[inline]
    fn stretch(&self, lg2: u32, span: u32) -> u64 {
        let mut last = Config::low(span);
        let alike = (self.iova ^ self.pa).trailing_zeros();
        let larger = self.sizes & Config::low(alike + 1) & !Config::low(lg2 + 1);
        if larger != 0 {
            last &= Config::low(larger.trailing_zeros());
        }
        let mut more = last - (self.iova & last);
        if F::LINEAR_LG2 < 64 {
            let linear = Config::low(F::LINEAR_LG2);
            more = more.min(linear - (self.pa & linear));
        }
        (more.min(self.left - 1) + 1) & !Config::low(lg2)
    }

    /// Maps all that is left in `words`, entries of level 0 that are as many, a page at a time: of few
    /// that is quicker than to look for pages that are alike.
    #[inline]
    pub(super) fn pages(&mut self, mut words: &[Cell<u64>]) {
        let shift = F::shift(0);
        while !words.is_empty() {
            let lg2 = self.best();
            let first = F::leaf(0, lg2, self.attrs, self.pa);
            // A page's entries repeat, unless each has its own address.
            let next = if F::OWN_ADDRESS { self.pa.wrapping_add(1 << shift) } else { self.pa };
            let stride = F::leaf(0, lg2, self.attrs, next).wrapping_sub(first);
            let (page, rest) = words.split_at(1 << (lg2 - shift));
            page.iter().fold(first, |entry, word| {
                word.set(entry);
                entry.wrapping_add(stride)
            });
            self.advance(1 << lg2);
            words = rest;
        }
    }

    #[inline]
    fn advance(&mut self, bytes: u64) {
        self.iova = self.iova.wrapping_add(bytes);
        self.pa = self.pa.wrapping_add(bytes);
        self.left -= bytes;
    }

    /// Writes what belongs into `tab`, until it or the range ends. A `FRESH` table is not linked yet and
    /// has any contents; it is complete on return, also when that is an error.
    pub(super) fn fill<const FRESH: bool>(&mut self, level: u8, tab: Tab<'_>) -> Result<(), Error> {
        let shift = F::shift(level);
        let span = shift + tab.lg2();
        let absent = F::absent(level);
        let mut index = tab.index(self.iova, shift);
        if FRESH {
            // SAFETY: the table is not linked.
            unsafe { tab.init(0..index, absent) };
        }
        let mut result;
        loop {
            let lg2 = self.best();
            if lg2 >= shift {
                let bytes = self.stretch(lg2, span);
                result = self.run::<FRESH>(level, tab, index, lg2, (bytes >> shift) as usize);
                if result.is_ok() {
                    index += (bytes >> shift) as usize;
                    self.advance(bytes);
                }
            } else {
                result = self.descend::<FRESH>(level, tab, index);
                index += usize::from(result.is_ok() || FRESH);
            }
            if result.is_err() || self.left == 0 || index >= tab.len() {
                break;
            }
        }
        if FRESH {
            // SAFETY: the table is not linked.
            unsafe { tab.init(index.min(tab.len())..tab.len(), absent) };
        }
        result
    }

    /// Writes `count` entries from `index` on as pages of 2^`lg2` bytes. After an error, the mapper is past
    /// those that were written.
    #[inline]
    fn run<const FRESH: bool>(
        &mut self,
        level: u8,
        tab: Tab<'_>,
        index: usize,
        lg2: u32,
        count: usize,
    ) -> Result<(), Error> {
        let shift = F::shift(level);
        // Entries repeat over a page that takes several, unless each has its own address.
        let each = if F::OWN_ADDRESS { shift } else { lg2 };
        let first = F::leaf(level, lg2, self.attrs, self.pa);
        let next = F::leaf(level, lg2, self.attrs, self.pa.wrapping_add(1 << each));
        let run = Run { first, stride: next.wrapping_sub(first), repeat: each - shift };
        let range = index..index + count;
        if FRESH {
            // SAFETY: the table is not linked.
            run.store(unsafe { tab.cells(range) });
        } else if self.solo {
            // SAFETY: the table has no readers besides its writer.
            let words = unsafe { tab.cells(range) };
            let done = run.put(words, F::absent(level));
            if done < count {
                // Nobody watches, so that it does no harm if this ends in the middle of a page.
                self.vacate(level, tab, index + done, count - done)
                    .inspect_err(|_| self.advance((done as u64) << shift))?;
                run.store_after(done, words);
            }
        } else {
            let words = tab.words(range);
            if !all_are(words, F::absent(level)) {
                self.vacate(level, tab, index, count)?;
            }
            run.store(words);
        }
        Ok(())
    }

    /// Makes sure that entries are absent; tables with nothing mapped below them are removed.
    #[cold]
    fn vacate(&mut self, level: u8, tab: Tab<'_>, index: usize, count: usize) -> Result<(), Error> {
        for at in index..index + count {
            let iova = super::entry_iova(tab, F::shift(level), self.iova, at);
            let entry = tab.load(at);
            match F::kind(level, entry) {
                Kind::Absent => {}
                Kind::Leaf => return Err(Error::Exists { iova }),
                Kind::Reserved => return Err(Error::Malformed { iova, entry }),
                Kind::Table => {
                    let child = self.shared.child(level, entry, iova)?;
                    if let Some(iova) = self.occupied(level - 1, child, iova)? {
                        return Err(Error::Exists { iova });
                    }
                    tab.store(at, F::absent(level));
                    let pa = F::table_pa(level, entry);
                    let (shared, retired) = (self.shared, &mut *self.retired);
                    shared.each_table(level - 1, pa, child, &mut |pa, bytes| {
                        retire(shared, retired, [(pa, bytes)]);
                    });
                }
            }
        }
        Ok(())
    }

    /// The first IOVA that is mapped below `tab`, a table that begins at `base`.
    fn occupied(&self, level: u8, tab: Tab<'_>, base: u64) -> Result<Option<u64>, Error> {
        for index in 0..tab.len() {
            let iova = base + ((index as u64) << F::shift(level));
            let entry = tab.load(index);
            match F::kind(level, entry) {
                Kind::Absent => {}
                Kind::Leaf => return Ok(Some(iova)),
                Kind::Table if level > 0 => {
                    let child = self.shared.child(level, entry, iova)?;
                    if let Some(found) = self.occupied(level - 1, child, iova)? {
                        return Ok(Some(found));
                    }
                }
                Kind::Table | Kind::Reserved => return Err(Error::Malformed { iova, entry }),
            }
        }
        Ok(None)
    }

    /// Goes on in the table below entry `index`, a new one if there is none. In a `FRESH` table the entry
    /// is written in any case.
    fn descend<const FRESH: bool>(
        &mut self,
        level: u8,
        tab: Tab<'_>,
        index: usize,
    ) -> Result<(), Error> {
        let iova = self.iova;
        if !FRESH {
            let entry = tab.load(index);
            match F::kind(level, entry) {
                Kind::Absent => {}
                Kind::Table => {
                    let child = self.shared.child(level, entry, iova)?;
                    return self.fill::<false>(level - 1, child);
                }
                Kind::Leaf => return Err(Error::Exists { iova }),
                Kind::Reserved => return Err(Error::Malformed { iova, entry }),
            }
        }
        let left = self.left;
        let made = self.shared.alloc(F::index_lg2(level - 1)).and_then(|(pa, child)| {
            let filled = self.fill::<true>(level - 1, child);
            filled.map(|()| pa).inspect_err(|_| self.shared.discard(level - 1, pa, child))
        });
        let entry = made.as_ref().map_or(F::absent(level), |pa| F::table(level, *pa));
        if FRESH {
            // SAFETY: the table is not linked.
            unsafe { tab.init(index..index + 1, entry) };
        } else if made.is_ok() {
            tab.store(index, entry);
        }
        if made.is_err() {
            // What was written below went with the table: the range is done up to here only.
            (self.iova, self.left) = (iova, left);
        }
        made.map(|_| ())
    }
}
