//! Map: leaves in the largest sizes allowed, written as runs.
//!
//! The walker goes down once, keeps its position in every table, and writes all the pages of one size
//! that fit the table it is in with one loop over consecutive words. Tables that are new are filled before
//! they are linked. If anything fails, what was written is taken back, tables included.

use super::{Shared, Table, retire};
use crate::raw::Tab;
use crate::reclaim::Retired;
use crate::{Config, Error, Format, Kind, Memory, Prot};
use core::sync::atomic::{Ordering::*, fence};

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

/// Stores a run of entries that starts with `first` and goes up by `stride` every 2^`repeat` words.
#[inline]
fn each_entry<W>(
    words: impl IntoIterator<Item = W>,
    first: u64,
    stride: u64,
    repeat: u32,
    store: impl Fn(W, u64),
) {
    let mut entry = first;
    if repeat == 0 {
        for word in words.into_iter() {
            store(word, entry);
            entry = entry.wrapping_add(stride);
        }
    } else {
        for (n, word) in words.into_iter().enumerate() {
            store(word, first.wrapping_add(stride.wrapping_mul((n >> repeat) as u64)));
        }
    }
}

impl<F: Format, M: Memory> Table<F, M> {
    /// Maps `len` bytes at `iova` to those at `pa`, in the largest pages that `page_sizes` (bit n: 2^n
    /// bytes), the format and the alignment of both addresses allow. All three numbers have to be
    /// multiples of the smallest page size allowed, and nothing may be mapped in the range. If
    /// anything fails, the table is as it was.
    pub fn map(
        &mut self,
        iova: u64,
        pa: u64,
        len: u64,
        prot: Prot,
        page_sizes: u64,
    ) -> Result<(), Error> {
        let shared = &*self.shared;
        let config = &shared.config;
        let (first, last) = config.range::<F>(iova, len)?;
        let sizes = config.sizes::<F>() & page_sizes;
        if sizes == 0 {
            return Err(Error::NoPageSize { mask: page_sizes });
        }
        let page_size = 1 << sizes.trailing_zeros();
        if (iova | pa | len) & (page_size - 1) != 0 {
            return Err(Error::Unaligned { bits: iova | pa | len, page_size });
        }
        if pa.checked_add(len - 1).is_none_or(|end| end > Config::low(config.oa_bits)) {
            return Err(Error::OutputTooLarge { pa, len });
        }
        let attrs = F::attrs(prot, config.track)?;

        if !self.retired.is_empty() {
            self.reclaim();
        }
        let before = self.shared.top.load(Relaxed);
        // A page is an entry of some table, or part of one: the top has to reach twice as far.
        let alike = (first ^ pa).trailing_zeros().min(63 - len.leading_zeros());
        let largest = 63 - (sizes & Config::low(alike + 1) | page_size).leading_zeros();
        let mut result = self.grow(last.max(Config::low(largest + 1)));
        let mut done = 0;
        if result.is_ok() {
            let (shared, retired) = (&*self.shared, &mut self.retired);
            let solo = !shared.epochs.watched();
            let mut mapper =
                Mapper { shared, retired, iova: first, pa, left: len, sizes, attrs, solo };
            result = mapper.start();
            done = len - mapper.left;
        }
        if result.is_err() {
            self.take_back(first, done, before);
        }
        result
    }

    /// Raises the top until it reaches `last`.
    fn grow(&mut self, last: u64) -> Result<(), Error> {
        let shared = &*self.shared;
        loop {
            let (pa, levels) = self.top();
            if !shared.config.dynamic_top || last <= shared.reach(levels) {
                return Ok(());
            }
            let level = levels;
            let (new, tab) = shared.alloc(F::index_lg2(level))?;
            // SAFETY: the page was just allocated and nothing points at it.
            unsafe { tab.init(0..tab.len(), F::absent(level)) };
            tab.store(0, F::table(level, pa));
            shared.top.store(new | u64::from(levels + 1), Release);
        }
    }

    /// Undoes a map that failed after `done` bytes, and brings back the top word `before`.
    fn take_back(&mut self, first: u64, done: u64, before: u64) {
        if done > 0 {
            self.prune(first, first + (done - 1));
        }
        while self.shared.top.load(Relaxed) != before {
            let Some((level, tab)) = self.shared.top() else { return };
            let (pa, levels) = self.top();
            let below = F::table_pa(level, tab.load(0));
            self.shared.top.store(below | u64::from(levels - 1), Release);
            self.retire([(pa, 8 << tab.lg2())]);
        }
    }
}

impl<F: Format, M: Memory> Mapper<'_, F, M> {
    fn start(&mut self) -> Result<(), Error> {
        let Some((level, tab)) = self.shared.top() else { return Err(Error::BadConfig) };
        // A page cannot be larger than what the top's entries can be part of.
        self.sizes &= Config::low(F::shift(level) + tab.lg2());
        fence(Release);
        // Where the whole range is inside of one entry that is a table, the way is straight down.
        let (mut level, mut tab) = (level, tab);
        while level > 0 {
            let shift = F::shift(level);
            let within = Config::low(shift);
            let entry = tab.load(tab.index(self.iova, shift));
            let inside = self.left - 1 < within && within - (self.iova & within) >= self.left - 1;
            if !inside || F::kind(level, entry) != Kind::Table {
                break;
            }
            tab = self.shared.child(level, entry, self.iova)?;
            level -= 1;
        }
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

    /// Writes `count` entries from `index` on as pages of 2^`lg2` bytes.
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
        if !FRESH {
            self.vacate(level, tab, index, count)?;
        }
        // Entries repeat over a page that takes several, unless each has its own address.
        let each = if F::OWN_ADDRESS { shift } else { lg2 };
        let first = F::leaf(level, lg2, self.attrs, self.pa);
        let stride = F::leaf(level, lg2, self.attrs, self.pa.wrapping_add(1 << each));
        let stride = stride.wrapping_sub(first);
        let repeat = each - shift;
        let range = index..index + count;
        if FRESH || self.solo {
            // SAFETY: the table is not linked, or has no readers besides its writer.
            let words = unsafe { tab.plain(range) };
            each_entry(words, first, stride, repeat, |word, entry| *word = entry);
        } else {
            let words = tab.words(range);
            each_entry(words, first, stride, repeat, |word, entry| word.store(entry, Relaxed));
        }
        Ok(())
    }

    /// Makes sure that entries are absent; tables with nothing mapped below them are removed.
    #[inline]
    fn vacate(&mut self, level: u8, tab: Tab<'_>, index: usize, count: usize) -> Result<(), Error> {
        let absent = F::absent(level);
        let other = if self.solo {
            // SAFETY: the table has no readers besides its writer.
            let words = unsafe { tab.plain(index..index + count) };
            words.iter().fold(0, |any, word| any | (word ^ absent))
        } else {
            let words = tab.words(index..index + count).iter();
            words.fold(0, |any, word| any | (word.load(Relaxed) ^ absent))
        };
        if other == 0 { Ok(()) } else { self.vacate_slowly(level, tab, index, count) }
    }

    #[cold]
    fn vacate_slowly(
        &mut self,
        level: u8,
        tab: Tab<'_>,
        index: usize,
        count: usize,
    ) -> Result<(), Error> {
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
