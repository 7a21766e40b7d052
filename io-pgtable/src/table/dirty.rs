//! Dirty state: which pages hardware wrote, read and cleared.

use super::{Shared, Table};
use crate::raw::Tab;
use crate::{Config, Error, Format, Kind, Memory};
use core::sync::atomic::{AtomicU64, Ordering::*};

/// Entries that are looked at together before any is looked at alone.
const CHUNK: usize = 32;

struct Scan<'a, F: Format, M: Memory, S> {
    shared: &'a Shared<F, M>,
    clear: bool,
    first: u64,
    last: u64,
    /// Added to what is reported, to give back the bits of a canonical address.
    upper: u64,
    sink: S,
}

impl<F: Format, M: Memory> Table<F, M> {
    /// Reports every stretch of IOVAs (first, length) within `len` bytes at `iova` that was written,
    /// a page or part of one at a time, in order; see [`Bitmap`](crate::Bitmap) for a place to put
    /// them. With `clear`, pages that lie wholly in the range are clean afterwards, and the caller
    /// has to make the hardware forget what it cached. A page that is only partly in the range
    /// stays dirty, because the state of its other part would be lost.
    ///
    /// ```
    /// # use io_pgtable::{Bitmap, Format, Heap, Lpae, Prot, Table};
    /// type Stage2 = Lpae<2, 12, 48>;
    /// let mut table = Table::<Stage2, _>::new(Heap::new(), Stage2::config())?;
    /// table.map(0x10_0000, 0, 0x10_0000, Prot::READ | Prot::WRITE, 4096)?;
    /// // A device writes to pages 1 and 40.
    /// for page in [1, 40] {
    ///     table.access(0x10_0000 + page * 4096, Prot::WRITE)?;
    /// }
    /// // A bit for each 4 KiB, then one for each 64 KiB.
    /// for (lg2, expected) in [(12, 1 << 1 | 1u64 << 40), (16, 1 << 0 | 1 << 2)] {
    ///     let mut words = [0; 4];
    ///     let mut bits = Bitmap::new(0x10_0000, lg2, &mut words);
    ///     table.read_dirty(0x10_0000, 0x10_0000, false, |iova, len| bits.mark(iova, len))?;
    ///     assert_eq!(words, [expected, 0, 0, 0]);
    /// }
    /// // Read and clear: the second time, nothing is dirty.
    /// let mut pages = 0;
    /// table.read_dirty(0x10_0000, 0x10_0000, true, |_, _| pages += 1)?;
    /// table.read_dirty(0x10_0000, 0x10_0000, true, |_, _| pages += 100)?;
    /// assert_eq!(pages, 2);
    /// # Ok::<(), io_pgtable::Error>(())
    /// ```
    pub fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        sink: impl FnMut(u64, u64),
    ) -> Result<(), Error> {
        let shared = &*self.shared;
        let (first, last) = shared.config.range::<F>(iova, len)?;
        let Some((level, tab)) = shared.top() else { return Ok(()) };
        let reach = Shared::<F, M>::reach(level, tab);
        if F::DIRTY.mask == 0 || !shared.config.track || first > reach {
            return Ok(());
        }
        let upper = iova - first;
        let mut scan = Scan { shared, clear, first, last: last.min(reach), upper, sink };
        scan.table(level, tab, first, scan.last)
    }
}

impl<F: Format, M: Memory, S: FnMut(u64, u64)> Scan<'_, F, M, S> {
    fn table(&mut self, level: u8, tab: Tab<'_>, first: u64, last: u64) -> Result<(), Error> {
        let shift = F::shift(level);
        let (from, to) = (tab.index(first, shift), tab.index(last, shift));
        if level > 0 {
            let mut index = from;
            while index <= to {
                let entry = tab.load(index);
                let base = super::entry_iova(tab, shift, first, index);
                match F::kind(level, entry) {
                    Kind::Absent => {}
                    Kind::Leaf => {
                        index = self.page(level, tab, index, entry, base);
                        continue;
                    }
                    Kind::Table => {
                        let child = self.shared.child(level, entry, base)?;
                        let end = last.min(base | Config::low(shift));
                        self.table(level - 1, child, first.max(base), end)?;
                    }
                    Kind::Reserved => return Err(Error::Malformed { iova: base, entry }),
                }
                index += 1;
            }
            return Ok(());
        }
        // A page of several entries may be dirty by one that is not asked for, so the first page and the
        // last one are looked at as a whole.
        let (mut from, mut end, mut tail) = (from, to + 1, None);
        if let Some((entry, _)) = self.several(tab, from) {
            from = self.page(0, tab, from, entry, super::entry_iova(tab, shift, first, from));
        }
        if from > to {
            return Ok(());
        }
        if let Some((entry, start)) = self.several(tab, to) {
            (end, tail) = (start.max(from), Some(entry));
        }
        self.words(tab, first, from, end);
        if let Some(entry) = tail {
            self.page(0, tab, to, entry, super::entry_iova(tab, shift, first, to));
        }
        Ok(())
    }

    /// The entry `index` of a table of level 0, and the first one of its page, if that has several.
    fn several(&self, tab: Tab<'_>, index: usize) -> Option<(u64, usize)> {
        let entry = tab.load(index);
        if F::kind(0, entry) != Kind::Leaf {
            return None;
        }
        let count = 1_usize << (F::leaf_lg2(0, entry) - F::shift(0));
        (count > 1).then_some((entry, index & !(count - 1)))
    }

    /// Reports what is dirty among entries `from` to `end` of a table of level 0 that holds `first`.
    fn words(&mut self, tab: Tab<'_>, first: u64, from: usize, end: usize) {
        let (chunks, rest) = tab.words(from..end).as_chunks::<CHUNK>();
        let (mut begin, mut index) = (from, from);
        for chunk in chunks {
            let (or, and) = sum(chunk);
            if F::DIRTY.suspect(or, and) {
                index = self.leaves(tab, first, index.max(begin), begin + CHUNK);
            }
            begin += CHUNK;
        }
        let (or, and) = sum(rest);
        if F::DIRTY.suspect(or, and) {
            self.leaves(tab, first, index.max(begin), end);
        }
    }

    /// Reports what is dirty among entries `index` to `end` of a table of level 0 that holds
    /// `first`; returns the index after the last page, which may go on beyond `end`.
    fn leaves(&mut self, tab: Tab<'_>, first: u64, mut index: usize, end: usize) -> usize {
        while index < end {
            let entry = tab.load(index);
            if F::kind(0, entry) == Kind::Leaf {
                let base = super::entry_iova(tab, F::shift(0), first, index);
                index = self.page(0, tab, index, entry, base);
            } else {
                index += 1;
            }
        }
        index
    }

    /// Reports the page that entry `index` belongs to, if one of its entries is dirty; returns the index
    /// after its last.
    fn page(&mut self, level: u8, tab: Tab<'_>, index: usize, entry: u64, base: u64) -> usize {
        let shift = F::shift(level);
        let lg2 = F::leaf_lg2(level, entry);
        let count = 1 << (lg2 - shift);
        let start = index & !(count - 1);
        let words = tab.words(start..start + count);
        let dirty = words.iter().any(|word| F::DIRTY.is_dirty(word.load(Acquire)));
        let page = base & !Config::low(lg2);
        let end = page | Config::low(lg2);
        if dirty {
            let (from, to) = (page.max(self.first), end.min(self.last));
            (self.sink)(from + self.upper, to - from + 1);
            if self.clear && self.first <= page && end <= self.last {
                words.iter().for_each(clean::<F>);
            }
        }
        start + count
    }
}

/// The disjunction and conjunction of some entries.
#[inline(always)]
fn sum(words: &[AtomicU64]) -> (u64, u64) {
    words.iter().fold((0, u64::MAX), |(or, and), word| {
        let entry = word.load(Relaxed);
        (or | entry, and & entry)
    })
}

/// Clears an entry's dirty state. A reader can only set bits meanwhile, so the loop ends.
fn clean<F: Format>(word: &AtomicU64) {
    let _ = word.fetch_update(AcqRel, Acquire, |entry| {
        F::DIRTY.is_dirty(entry).then(|| F::DIRTY.clean(entry))
    });
}
