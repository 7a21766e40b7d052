//! Cut and merge: the size of entries changes while they stay mapped.
//!
//! At every moment each IOVA of the range has the same translation and permissions as before, for any
//! reader, and no dirty mark is lost: a page that is cut passes its marks on to its parts, and pages that
//! are merged add theirs up. Hardware that caches entries has to be told afterwards. (An Arm SMMU
//! without BBML2 wants the old entry to be broken first; that is for its driver to do.)

use super::mapper::Mapper;
use super::{Near, Shared, Table, entry_iova, retire};
use crate::raw::Tab;
use crate::reclaim::Retired;
use crate::{Config, Error, Format, Kind, Memory};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::*, fence};

impl<F: Format, M: Memory> Table<F, M> {
    /// Makes `at` a boundary between entries: a page that has it inside is replaced by the largest
    /// ones that lie before and after it. Returns whether anything had to change. Without memory for
    /// tables, nothing does.
    ///
    /// ```
    /// # use io_pgtable::{Error, Format, Heap, Prot, Table, VtdSecond};
    /// let mut table = Table::<VtdSecond, _>::new(Heap::new(), VtdSecond::config())?;
    /// let (g1, rw) = (1 << 30, Prot::READ | Prot::WRITE);
    /// table.map(g1, g1, g1, rw, u64::MAX)?;
    /// // The first half cannot go while one entry maps all.
    /// assert_eq!(table.unmap(g1, g1 / 2), Err(Error::InsideEntry { iova: g1, lg2: 30 }));
    /// assert!(table.cut(g1 + g1 / 2)?);
    /// assert_eq!(table.translate(g1)?.lg2, 21, "the largest pages on each side of the border");
    /// // And back, to larger entries.
    /// assert_eq!(table.merge(g1, g1, u64::MAX), Ok(1));
    /// assert_eq!(table.translate(g1)?.lg2, 30);
    /// table.cut(g1 + g1 / 2)?;
    /// assert_eq!(table.unmap(g1, g1 / 2)?, g1 / 2);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn cut(&mut self, at: u64) -> Result<bool, Error> {
        let (iova, _) = self.shared.config.range::<F>(at, 1)?;
        self.reclaim();
        self.near = Near::NONE;
        let (shared, retired) = (&*self.shared, &mut self.retired);
        let sizes = shared.sizes;
        let page_size = 1 << sizes.trailing_zeros();
        if iova & (page_size - 1) != 0 {
            return Err(Error::Unaligned { bits: at, page_size });
        }
        let Some(found) = shared.find(iova)? else { return Ok(false) };
        if found.kind != Kind::Leaf {
            return Ok(false);
        }
        let (level, tab, entry) = (found.level, found.tab, found.entry);
        let (shift, lg2) = (F::shift(level), F::leaf_lg2(level, entry));
        let within = Config::low(lg2);
        if iova & within == 0 {
            return Ok(false);
        }
        let count = 1 << (lg2 - shift);
        let start = found.index & !(count - 1);
        let words = tab.words(start..start + count);
        let page = Page { first: iova & !within, pa: F::leaf_pa(level, entry) & !within, lg2 };
        let marks = marks::<F>(words);

        // Entries whose parts are too small for this level become tables. All of these are made before
        // anything changes, so that a lack of memory changes nothing.
        let mut tables = Vec::new();
        let covers = Config::low(shift);
        let parts = (0..count).map(|n| page.first + ((n as u64) << shift));
        let parts = parts.map(|here| (here, page.part(here, iova, sizes)));
        for (here, _) in parts.clone().filter(|(_, part)| part.1 < shift) {
            let borders = if here < iova && iova <= here | covers { iova } else { here };
            let attrs = attrs::<F>(entry, marks);
            match Self::build(
                shared,
                retired,
                &page,
                level - 1,
                [here, borders, here | covers],
                attrs,
            ) {
                Ok(table) => tables.push(table),
                Err(error) => {
                    for (pa, child) in tables {
                        shared.discard(level - 1, pa, child);
                    }
                    return Err(error);
                }
            }
        }
        let mut tables = tables.into_iter();
        for ((here, part), word) in parts.zip(words) {
            if part.1 < shift {
                let Some((below, child)) = tables.next() else { break };
                shared.replace(level, word, entry, below, child, marks);
                continue;
            }
            let pa = page.pa + if F::OWN_ADDRESS { here - page.first } else { part.0 - page.first };
            rewrite(word, |old| F::leaf(level, part.1, attrs::<F>(old, marks), pa));
        }
        Ok(true)
    }

    /// A table, not linked yet, that maps its part of the page as before, with a border at the second
    /// of the three addresses, the first and the last of what it covers being the others.
    fn build<'s>(
        shared: &'s Shared<F, M>,
        retired: &mut Retired,
        page: &Page,
        level: u8,
        [first, at, last]: [u64; 3],
        attrs: u64,
    ) -> Result<(u64, Tab<'s>), Error> {
        let (below, child) = shared.alloc(F::index_lg2(level))?;
        let sizes = shared.sizes;
        let pa = |iova| page.pa + (iova - page.first);
        let left = if at > first { at - first } else { last - first + 1 };
        let (iova, start, solo) = (first, pa(first), false);
        let mut mapper = Mapper { shared, retired, iova, pa: start, left, sizes, attrs, solo };
        let mut filled = mapper.fill::<true>(level, child);
        if at > first && filled.is_ok() {
            (mapper.iova, mapper.pa, mapper.left) = (at, pa(at), last - at + 1);
            filled = mapper.fill::<false>(level, child);
        }
        match filled {
            Ok(()) => Ok((below, child)),
            Err(error) => {
                shared.discard(level, below, child);
                Err(error)
            }
        }
    }

    /// Joins pages within `len` bytes at `iova` to the largest that `page_sizes` (bit n: 2^n bytes) and
    /// the format allow, where they follow each other in physical memory and permit the same.
    /// Tables that are not needed any more are freed. Takes no memory; returns how many larger pages
    /// were made.
    pub fn merge(&mut self, iova: u64, len: u64, page_sizes: u64) -> Result<usize, Error> {
        let (first, last) = self.shared.config.range::<F>(iova, len)?;
        self.reclaim();
        self.near = Near::NONE;
        let (shared, retired) = (&*self.shared, &mut self.retired);
        let Some((level, tab)) = shared.top() else { return Ok(0) };
        let reach = Shared::<F, M>::reach(level, tab);
        if first > reach {
            return Ok(0);
        }
        let sizes = shared.sizes & page_sizes;
        let mut merger = Merger { shared, retired, sizes, made: 0 };
        merger.table(level, tab, first, last.min(reach))?;
        Ok(merger.made)
    }
}

/// The page that is cut.
struct Page {
    first: u64,
    pa: u64,
    lg2: u32,
}

impl Page {
    /// The first IOVA and the log2 size of the part that holds `here` when the page is cut at `at`.
    fn part(&self, here: u64, at: u64, sizes: u64) -> (u64, u32) {
        let last = if here < at { at - 1 } else { self.first | Config::low(self.lg2) };
        let mut iova = if here < at { self.first } else { at };
        loop {
            let left = last - iova + 1;
            let offset = iova - self.first;
            let aligned = (iova | (self.pa + offset)).trailing_zeros().min(self.lg2 - 1);
            let fits = 63 - left.leading_zeros();
            let lg2 = 63 - (sizes & Config::low(aligned.min(fits) + 1)).leading_zeros();
            if here - iova < 1 << lg2 {
                return (iova, lg2);
            }
            iova += 1 << lg2;
        }
    }
}

/// Accessed and dirty state of one or more entries.
#[derive(Clone, Copy, Default)]
struct Marks {
    accessed: bool,
    dirty: bool,
}

impl Marks {
    fn with<F: Format>(self, entry: u64) -> Self {
        let accessed = self.accessed || entry & F::ACCESSED != 0;
        Self { accessed, dirty: self.dirty || F::DIRTY.is_dirty(entry) }
    }

    /// The entry with these marks added.
    fn on<F: Format>(self, entry: u64) -> u64 {
        let entry = if self.accessed { entry | F::ACCESSED } else { entry };
        if self.dirty { F::DIRTY.mark(entry) } else { entry }
    }
}

/// What some entries are marked with together.
fn marks<F: Format>(words: &[AtomicU64]) -> Marks {
    words.iter().fold(Marks::default(), |marks, word| marks.with::<F>(word.load(Acquire)))
}

/// The attributes of `entry`, with `marks` added.
fn attrs<F: Format>(entry: u64, marks: Marks) -> u64 {
    marks.on::<F>(F::leaf_attrs(entry))
}

/// Replaces an entry by one made of it. A reader can only add marks meanwhile, so the loop ends.
fn rewrite(word: &AtomicU64, new: impl Fn(u64) -> u64) {
    let _ = word.fetch_update(AcqRel, Acquire, |old| Some(new(old)));
}

impl<F: Format, M: Memory> Shared<F, M> {
    /// Puts a table in the place of an entry that was `old`, whose parts carry `marks`.
    fn replace(
        &self,
        level: u8,
        word: &AtomicU64,
        old: u64,
        below: u64,
        child: Tab<'_>,
        marks: Marks,
    ) {
        let (mut old, table) = (old, F::table(level, below));
        // A reader can still mark the old entry: then the parts get the mark before they are shown.
        while let Err(now) = word.compare_exchange(old, table, AcqRel, Acquire) {
            old = now;
            self.mark_all(level - 1, child, marks.with::<F>(now));
        }
    }

    /// Adds marks to every leaf below `tab`.
    fn mark_all(&self, level: u8, tab: Tab<'_>, marks: Marks) {
        for word in tab.words(0..tab.len()) {
            let entry = word.load(Acquire);
            match F::kind(level, entry) {
                Kind::Leaf => rewrite(word, |entry| marks.on::<F>(entry)),
                Kind::Table if level > 0 => {
                    if let Ok(child) = self.child(level, entry, 0) {
                        self.mark_all(level - 1, child, marks);
                    }
                }
                Kind::Table | Kind::Absent | Kind::Reserved => {}
            }
        }
    }
}

struct Merger<'a, F: Format, M: Memory> {
    shared: &'a Shared<F, M>,
    retired: &'a mut Retired,
    sizes: u64,
    made: usize,
}

impl<F: Format, M: Memory> Merger<'_, F, M> {
    fn table(&mut self, level: u8, tab: Tab<'_>, first: u64, last: u64) -> Result<(), Error> {
        let shift = F::shift(level);
        let (from, to) = (tab.index(first, shift), tab.index(last, shift));
        if level > 0 {
            for index in from..=to {
                let entry = tab.load(index);
                if F::kind(level, entry) != Kind::Table {
                    continue;
                }
                let base = entry_iova(tab, shift, first, index);
                let end = base | Config::low(shift);
                let child = self.shared.child(level, entry, base)?;
                self.table(level - 1, child, first.max(base), last.min(end))?;
                if first <= base && end <= last && self.sizes >> shift & 1 != 0 {
                    self.collapse(level, tab.at(index), entry, child);
                }
            }
        }
        for lg2 in (shift + 1..(shift + tab.lg2()).min(64)).rev() {
            if self.sizes >> lg2 & 1 != 0 {
                self.join(level, tab, lg2, first, last);
            }
        }
        Ok(())
    }

    /// Replaces the table that `entry` points at by one page, if its pages make one.
    fn collapse(&mut self, level: u8, word: &AtomicU64, entry: u64, child: Tab<'_>) {
        let shift = F::shift(level);
        let words = child.words(0..child.len());
        let Some(first) = uniform::<F>(level - 1, words, shift, u32::MAX) else { return };
        let page = F::leaf(level, shift, attrs::<F>(first.1, marks::<F>(words)), first.0);
        word.store(page, Release);
        // Readers that were in the old table may have marked it after it was looked at; see the
        // module `table` for why this finds every mark.
        fence(SeqCst);
        let late = marks::<F>(words);
        rewrite(word, |page| late.on::<F>(page));
        let pa = F::table_pa(level, entry);
        retire(self.shared, self.retired, [(pa, 8 << child.lg2())]);
        self.made += 1;
    }

    /// Joins entries of one table to pages of 2^`lg2` bytes that take several.
    fn join(&mut self, level: u8, tab: Tab<'_>, lg2: u32, first: u64, last: u64) {
        let shift = F::shift(level);
        let count = 1 << (lg2 - shift);
        let end = tab.index(last, shift);
        let mut start = tab.index(first, shift) & !(count - 1);
        while start <= end {
            let words = tab.words(start..start + count);
            let base = entry_iova(tab, shift, first, start);
            let inside = first <= base && base | Config::low(lg2) <= last;
            if inside && let Some((pa, _)) = uniform::<F>(level, words, lg2, lg2) {
                for (n, word) in words.iter().enumerate() {
                    let own = pa + if F::OWN_ADDRESS { (n as u64) << shift } else { 0 };
                    rewrite(word, |old| F::leaf(level, lg2, F::leaf_attrs(old), own));
                }
                self.made += 1;
            }
            start += count;
        }
    }
}

/// If `words` are leaves, all smaller than 2^`below`, that follow each other in physical memory from
/// an address aligned to 2^`lg2` on and permit the same: that address, and the first leaf.
fn uniform<F: Format>(level: u8, words: &[AtomicU64], lg2: u32, below: u32) -> Option<(u64, u64)> {
    let shift = F::shift(level);
    let permits = |entry| F::DIRTY.clean(F::leaf_attrs(entry) & !F::ACCESSED);
    let mut first = None;
    for (n, word) in words.iter().enumerate() {
        let entry = word.load(Acquire);
        if F::kind(level, entry) != Kind::Leaf || F::leaf_lg2(level, entry) >= below {
            return None;
        }
        let within = Config::low(F::leaf_lg2(level, entry));
        let pa = F::leaf_pa(level, entry) & !within | ((n as u64) << shift) & within;
        let (base, leaf) = *first.get_or_insert((pa, entry));
        let follows = base.checked_add((n as u64) << shift) == Some(pa);
        if base & Config::low(lg2) != 0 || !follows || permits(entry) != permits(leaf) {
            return None;
        }
    }
    first
}
