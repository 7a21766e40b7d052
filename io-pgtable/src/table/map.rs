//! Map: what is asked for is checked, the usual small maps go a short way, and all others to the
//! [`mapper`](super::mapper). If anything fails, what was written is taken back, tables included.

use super::mapper::Mapper;
use super::run::{Run, all_are};
use super::{Near, Shared, Table, top_word};
use crate::raw::Tab;
use crate::{Config, Error, Format, Kind, Memory, Prot};
use core::sync::atomic::{Ordering::*, fence};

/// Entries that are too few for the loops of [`super::run`].
const FEW: usize = 32;

impl<F: Format, M: Memory> Table<F, M> {
    /// Maps `len` bytes at `iova` to those at `pa`, in the largest pages that `page_sizes` (bit n: 2^n
    /// bytes), the format and the alignment of both addresses allow. All three numbers have to be
    /// multiples of the smallest page size allowed, and nothing may be mapped in the range. If
    /// anything fails, the table is as it was, but for tables with nothing in them.
    ///
    /// ```
    /// # use io_pgtable::{Format, Heap, Prot, Table, VtdSecond};
    /// let mut table = Table::<VtdSecond, _>::new(Heap::new(), VtdSecond::config())?;
    /// let (m2, rw) = (2 << 20, Prot::READ | Prot::WRITE);
    /// // 4 KiB, then a page of 2 MiB, then 4 KiB: the largest that fit.
    /// table.map(m2 - 4096, m2 - 4096, m2 + 8192, rw, u64::MAX)?;
    /// let size = |iova| table.translate(iova).map(|page| 1u64 << page.lg2);
    /// assert_eq!((size(m2 - 1)?, size(m2)?, size(2 * m2)?), (4096, m2, 4096));
    /// // The same range of another memory, in pages of 4 KiB only.
    /// table.map(1 << 30, 1 << 30, m2, Prot::READ, 4096)?;
    /// assert_eq!(table.translate(1 << 30)?.lg2, 12);
    /// # Ok::<(), io_pgtable::Error>(())
    /// ```
    ///
    /// A table whose top is dynamic gains levels when an IOVA needs them:
    ///
    /// ```
    /// # use io_pgtable::{AmdV1, Format, Heap, Prot, Table};
    /// let mut table = Table::<AmdV1, _>::new(Heap::new(), AmdV1::config())?;
    /// assert_eq!(table.top().1, 3);
    /// table.map(1 << 50, 0, 4096, Prot::READ, u64::MAX)?;
    /// assert_eq!(table.top().1, 5, "the device has to be told the new top");
    /// # Ok::<(), io_pgtable::Error>(())
    /// ```
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
        let sizes = shared.sizes & page_sizes;
        if sizes == 0 {
            return Err(Error::NoPageSize { mask: page_sizes });
        }
        let page_size = 1 << sizes.trailing_zeros();
        if (iova | pa | len) & (page_size - 1) != 0 {
            return Err(Error::Unaligned { bits: iova | pa | len, page_size });
        }
        if pa.checked_add(len - 1).is_none_or(|end| end > shared.last_pa) {
            return Err(Error::OutputTooLarge { pa, len });
        }
        let attrs = F::attrs(prot, config.track)?;

        if !self.retired.is_empty() {
            self.reclaim();
        }
        let shared = &*self.shared;
        fence(Release);
        let mut done = 0;
        if !shared.epochs.watched() {
            // SAFETY: the writer has no readers, and what unlinks tables forgets this one.
            done = unsafe { shared.put_pages(&mut self.near, first, last, pa, sizes, attrs) };
            if done == 0 {
                // SAFETY: as above.
                done = unsafe { self.fill_lowest(first, last, pa, sizes, attrs) };
            }
        }
        if done == len {
            return Ok(());
        }
        self.map_rest([first, last], pa, done, sizes, attrs)
    }

    /// The short way of a map of few pages, of any sizes, that go into one table of level 0 which is
    /// there. All or nothing: returns how many bytes it mapped.
    ///
    /// # Safety
    /// There are no readers.
    pub(super) unsafe fn fill_lowest(
        &mut self,
        first: u64,
        last: u64,
        pa: u64,
        sizes: u64,
        attrs: u64,
    ) -> u64 {
        let (shared, retired) = (&*self.shared, &mut self.retired);
        let (left, shift) = (last - first + 1, F::shift(0));
        // No page may be as large as the table: that is an entry of the one above.
        let sizes = sizes & Config::low(shift + F::index_lg2(0));
        let alone = shared.top().is_none_or(|(top, _)| top == 0);
        if alone || sizes == 0 || left >> shift >> F::index_lg2(0) != 0 {
            return 0;
        }
        // SAFETY: what unlinks tables forgets the one that is near.
        let lowest = unsafe { shared.lowest(&mut self.near, first, last) };
        let Some((0, tab)) = lowest else { return 0 };
        let from = tab.index(first, shift);
        // SAFETY: the table has no readers besides its writer.
        let words = unsafe { tab.cells(from..from + (left >> shift) as usize) };
        let mut mapper =
            Mapper { shared, retired, iova: first, pa, left, sizes, attrs, solo: true };
        if words.len() <= FEW && all_are(words, F::absent(0)) {
            mapper.pages(words);
            return left;
        }
        if mapper.fill::<false>(0, tab).is_ok() {
            return left;
        }
        // The general way says what is wrong.
        let done = ((left - mapper.left) >> shift) as usize;
        words[..done].iter().for_each(|word| word.set(F::absent(0)));
        0
    }

    /// The general way of a map, of which `done` bytes are written already.
    pub(super) fn map_rest(
        &mut self,
        [first, last]: [u64; 2],
        pa: u64,
        done: u64,
        sizes: u64,
        attrs: u64,
    ) -> Result<(), Error> {
        self.near = Near::NONE;
        let len = last - first + 1;
        let before = self.shared.top.load(Relaxed);
        let mut left = len - done;
        let mut result = Ok(());
        if self.shared.config.dynamic_top {
            result = self.grow((first, last), pa, len, sizes);
        }
        if result.is_ok() {
            let (shared, retired) = (&*self.shared, &mut self.retired);
            let solo = !shared.epochs.watched();
            let (iova, pa) = (first + done, pa + done);
            let mut mapper = Mapper { shared, retired, iova, pa, left, sizes, attrs, solo };
            result = mapper.start(last);
            left = mapper.left;
        }
        if result.is_err() {
            self.take_back(first, len - left, before);
        }
        result
    }

    /// Raises the top until it reaches what is to be mapped, and twice as far as the largest page of it: a
    /// page is an entry of some table, or part of one.
    #[inline]
    fn grow(&mut self, iovas: (u64, u64), pa: u64, len: u64, sizes: u64) -> Result<(), Error> {
        let Some((level, tab)) = self.shared.top() else { return Err(Error::BadConfig) };
        let reach = Shared::<F, M>::reach(level, tab);
        if iovas.1 <= reach && len - 1 <= reach >> 1 {
            return Ok(());
        }
        let alike = (iovas.0 ^ pa).trailing_zeros().min(63 - len.leading_zeros());
        let largest = sizes & Config::low(alike + 1) | sizes & sizes.wrapping_neg();
        self.raise(iovas.1.max(Config::low(64 - largest.leading_zeros())))
    }

    /// Raises the top until it reaches `last`.
    #[cold]
    fn raise(&mut self, last: u64) -> Result<(), Error> {
        let shared = &*self.shared;
        while let Some((top, tab)) = shared.top()
            && last > Shared::<F, M>::reach(top, tab)
        {
            let ((pa, levels), level) = (self.top(), top + 1);
            let lg2 = F::index_lg2(level);
            let (new, tab) = shared.alloc(lg2)?;
            // SAFETY: the page was just allocated and nothing points at it.
            unsafe { tab.init(0..tab.len(), F::absent(level)) };
            tab.store(0, F::table(level, pa));
            shared.top.store(top_word(new, levels + 1, lg2), Release);
        }
        Ok(())
    }

    /// Undoes a map that failed after `done` bytes, and brings back the top word `before`.
    #[cold]
    fn take_back(&mut self, first: u64, done: u64, before: u64) {
        if done > 0 {
            self.prune(first, first + (done - 1));
        }
        while self.shared.top.load(Relaxed) != before {
            let Some((level, tab)) = self.shared.top() else { return };
            let (pa, levels) = self.top();
            let below = F::table_pa(level, tab.load(0));
            self.shared.top.store(top_word(below, levels - 1, F::index_lg2(level - 1)), Release);
            self.retire([(pa, 8 << tab.lg2())]);
        }
    }
}

impl<F: Format, M: Memory> Shared<F, M> {
    /// The lowest table that is there for both IOVAs, below the top if that is not the only one, and
    /// its level. One of level 0 is kept in `near`.
    ///
    /// # Safety
    /// No table was unlinked since `near` was kept.
    #[inline(always)]
    unsafe fn lowest(&self, near: &mut Near, first: u64, last: u64) -> Option<(u8, Tab<'_>)> {
        // SAFETY: passed through.
        if let Some(tab) = unsafe { near.get::<F>(first, last) } {
            return Some((0, tab));
        }
        let (top, tab) = self.top()?;
        if last > Self::reach(top, tab) {
            return None;
        }
        let (level, tab) = self.common(top, tab, first, last).ok()?;
        if level == 0 && top > 0 {
            near.keep::<F>(first, tab);
        }
        Some((level, tab))
    }

    /// The short way of the usual map: small pages, none of which could be part of a larger one,
    /// that go into one table of level 0 which is there or has just to be made. Returns how many
    /// bytes it mapped before it met something else than this, or something in the way; 0 if
    /// anything is unusual.
    ///
    /// # Safety
    /// The caller is the writer, and there are no readers. `near` is from here, or from `unmap`, and no
    /// table was unlinked since.
    #[inline(always)]
    unsafe fn put_pages(
        &self,
        near: &mut Near,
        first: u64,
        last: u64,
        pa: u64,
        sizes: u64,
        attrs: u64,
    ) -> u64 {
        let shift = F::shift(0);
        let alike = Config::low((first ^ pa).trailing_zeros() + 1);
        let straight = (pa ^ (pa + (last - first))) >> (F::LINEAR_LG2 - 1) >> 1 == 0;
        if sizes & alike != 1 << shift || !straight {
            return 0;
        }
        // SAFETY: passed through.
        let Some((level, tab)) = (unsafe { self.lowest(near, first, last) }) else { return 0 };
        let entry = F::leaf(0, shift, attrs, pa);
        let stride = F::leaf(0, shift, attrs, pa.wrapping_add(1 << shift)).wrapping_sub(entry);
        let run = Run { first: entry, stride, repeat: 0 };
        if level == 0 {
            let range = tab.index(first, shift)..tab.index(last, shift) + 1;
            // SAFETY: passed through.
            let words = unsafe { tab.cells(range) };
            return (run.put(words, F::absent(0)) as u64) << shift;
        }
        let index = tab.index(first, F::shift(level));
        let vacant = F::kind(level, tab.load(index)) == Kind::Absent;
        if level > 1 || !vacant || (first ^ last) >> F::shift(1) != 0 {
            return 0;
        }
        let Ok((pa, child)) = self.alloc(F::index_lg2(0)) else { return 0 };
        let range = child.index(first, shift)..child.index(last, shift) + 1;
        // SAFETY: the table is not linked yet.
        unsafe {
            child.init(0..range.start, F::absent(0));
            run.store(child.cells(range.clone()));
            child.init(range.end..child.len(), F::absent(0));
        }
        tab.store(index, F::table(1, pa));
        last - first + 1
    }
}
