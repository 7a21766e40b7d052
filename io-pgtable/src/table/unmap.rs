//! Unmap: takes entries out and says what they were.

use super::run::{all_are, clear, count_used};
use super::{Near, Shared, Table, retire};
use crate::raw::Tab;
use crate::reclaim::Retired;
use crate::{Config, Error, Format, Kind, Memory, Prot};
use core::sync::atomic::Ordering::*;

/// One entry that was taken out of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// First IOVA of the entry, without sign extension.
    pub iova: u64,
    /// First physical address.
    pub pa: u64,
    /// Bytes that it covered. A page of several entries is reported entry by entry.
    pub len: u64,
    /// What it permitted.
    pub prot: Prot,
    /// Whether hardware had marked it as written.
    pub dirty: bool,
}

/// Who wants to know about each entry; the walker is compiled without the question for nobody.
trait Sink {
    const EACH: bool;
    fn take(&mut self, taken: Taken);
}

struct Nobody;

impl Sink for Nobody {
    const EACH: bool = false;
    fn take(&mut self, _: Taken) {}
}

struct Each<T>(T);

impl<T: FnMut(Taken)> Sink for Each<T> {
    const EACH: bool = true;
    #[inline]
    fn take(&mut self, taken: Taken) {
        self.0(taken);
    }
}

struct Unmapper<'a, F: Format, M: Memory, S> {
    shared: &'a Shared<F, M>,
    retired: &'a mut Retired,
    sink: S,
    /// Bytes taken.
    bytes: u64,
    /// Whether to free tables that become empty although the range does not cover them.
    prune: bool,
    /// Whether there are no readers, so that entries need not be atomic.
    solo: bool,
}

impl<F: Format, M: Memory> Table<F, M> {
    /// Unmaps what is mapped within `len` bytes at `iova` and returns how many bytes that was. Tables that
    /// the range covers wholly are freed. Neither end may lie inside an entry: nothing changes then.
    pub fn unmap(&mut self, iova: u64, len: u64) -> Result<u64, Error> {
        self.unmap_into(iova, len, Nobody)
    }

    /// As [`Self::unmap`], and shows every entry taken, in order.
    ///
    /// ```
    /// # use io_pgtable::{Format, Heap, Prot, Table, X86_64};
    /// let mut table = Table::<X86_64, _>::new(Heap::new(), X86_64::config())?;
    /// let (m2, rw) = (2 << 20, Prot::READ | Prot::WRITE);
    /// table.map(m2, 4 * m2, m2 + 4096, rw, u64::MAX)?;
    /// table.access(m2 + 5, Prot::WRITE)?;
    /// let mut taken = Vec::new();
    /// let bytes = table.unmap_with(0, 8 * m2, |entry| taken.push((entry.pa, entry.len, entry.dirty)))?;
    /// assert_eq!(bytes, m2 + 4096);
    /// assert_eq!(taken, [(4 * m2, m2, true), (5 * m2, 4096, false)]);
    /// # Ok::<(), io_pgtable::Error>(())
    /// ```
    pub fn unmap_with(
        &mut self,
        iova: u64,
        len: u64,
        taken: impl FnMut(Taken),
    ) -> Result<u64, Error> {
        self.unmap_into(iova, len, Each(taken))
    }

    fn unmap_into<S: Sink>(&mut self, iova: u64, len: u64, sink: S) -> Result<u64, Error> {
        let (first, last) = self.shared.config.range::<F>(iova, len)?;
        if !self.retired.is_empty() {
            self.reclaim();
        }
        let shared = &*self.shared;
        let Some((top, tab)) = shared.top() else { return Ok(0) };
        let reach = Shared::<F, M>::reach(top, tab);
        if first > reach {
            return Ok(0);
        }
        let last = last.min(reach);
        // A table that the range covers wholly is freed, so that it does not do to be in it.
        let whole = first ^ last == Config::low(F::shift(1));
        // SAFETY: what unlinks tables forgets the one that is near.
        let near = unsafe { self.near.get::<F>(first, last) }.filter(|_| !whole);
        let (level, tab) = match near {
            Some(tab) => (0, tab),
            None => shared.common(top, tab, first, last)?,
        };
        if level > 0 {
            self.near = Near::NONE;
        } else if top > 0 {
            self.near.keep::<F>(first, tab);
        }
        shared.at_boundary(level, tab, first, false)?;
        shared.at_boundary(level, tab, last, true)?;
        let solo = !shared.epochs.watched();
        if level == 0 && solo && !S::EACH {
            // The short way of the usual case.
            let (from, to) = (tab.index(first, F::shift(0)), tab.index(last, F::shift(0)));
            // SAFETY: the table has no readers besides its writer.
            let words = unsafe { tab.cells(from..to + 1) };
            return Ok(clear(words, F::absent(0), F::used, F::all_used) << F::shift(0));
        }
        let retired = &mut self.retired;
        let mut unmapper = Unmapper { shared, retired, sink, bytes: 0, prune: false, solo };
        unmapper.sweep(level, tab, first, last)?;
        Ok(unmapper.bytes)
    }

    /// Unmaps a range of whole pages and frees every table that is empty then.
    pub(super) fn prune(&mut self, first: u64, last: u64) {
        let (shared, retired) = (&*self.shared, &mut self.retired);
        if let Some((level, tab)) = shared.top() {
            let (sink, solo) = (Nobody, !shared.epochs.watched());
            let mut unmapper = Unmapper { shared, retired, sink, bytes: 0, prune: true, solo };
            // Only a malformed entry can stop it, and the mapper came by all of these just now.
            let _ = unmapper.sweep(level, tab, first, last);
        }
    }
}

impl<F: Format, M: Memory> Shared<F, M> {
    /// Checks that the page at `iova`, below `tab`, if there is one, begins there, or ends there if `end`.
    #[inline]
    fn at_boundary(&self, level: u8, tab: Tab<'_>, iova: u64, end: bool) -> Result<(), Error> {
        let edge = |lg2| if end { Config::low(lg2) } else { 0 };
        if level == 0 && iova & Config::low(F::shift(0)) == edge(F::shift(0)) {
            // No need to know more where pages are single entries.
            let entry = tab.load(tab.index(iova, F::shift(0)));
            if F::leaf_lg2(0, entry) == F::shift(0) {
                return Ok(());
            }
        }
        self.within_page(level, tab, iova, edge)
    }

    /// [`Self::at_boundary`] where it takes a walk.
    fn within_page(
        &self,
        level: u8,
        tab: Tab<'_>,
        iova: u64,
        edge: impl Fn(u32) -> u64,
    ) -> Result<(), Error> {
        let found = self.find_from(level, tab, iova)?;
        if found.kind == Kind::Leaf {
            let lg2 = F::leaf_lg2(found.level, found.entry);
            let within = Config::low(lg2);
            if iova & within != edge(lg2) {
                return Err(Error::InsideEntry { iova: iova & !within, lg2 });
            }
        }
        Ok(())
    }
}

impl<F: Format, M: Memory, S: Sink> Unmapper<'_, F, M, S> {
    #[inline]
    fn report(&mut self, level: u8, iova: u64, entry: u64) {
        let len = 1 << F::shift(level);
        let within = Config::low(F::leaf_lg2(level, entry));
        let pa = F::leaf_pa(level, entry) & !within | iova & within;
        let dirty = F::DIRTY.is_dirty(entry);
        self.sink.take(Taken { iova, pa, len, prot: F::prot(entry), dirty });
    }

    /// Takes out entries `from` to `to` of a table of level 0, the first of which covers `first`.
    #[inline]
    fn leaves(&mut self, tab: Tab<'_>, first: u64, from: usize, to: usize) {
        let (shift, absent, range) = (F::shift(0), F::absent(0), from..to + 1);
        if S::EACH {
            for (n, entry) in tab.words(range.clone()).iter().enumerate() {
                let iova = (first & !Config::low(shift)) + ((n as u64) << shift);
                let entry = entry.load(Relaxed);
                if F::used(entry) != 0 {
                    self.report(0, iova, entry);
                }
            }
        }
        let count = if self.solo {
            // SAFETY: the table has no readers besides its writer.
            clear(unsafe { tab.cells(range) }, absent, F::used, F::all_used)
        } else {
            clear(tab.words(range), absent, F::used, F::all_used)
        };
        self.bytes += count << shift;
    }

    /// Takes out what `tab` maps between `first` and `last`, both in its reach.
    fn sweep(&mut self, level: u8, tab: Tab<'_>, first: u64, last: u64) -> Result<(), Error> {
        let shift = F::shift(level);
        let (from, to) = (tab.index(first, shift), tab.index(last, shift));
        let absent = F::absent(level);
        if level == 0 {
            self.leaves(tab, first, from, to);
            return Ok(());
        }
        for index in from..=to {
            let entry = tab.load(index);
            let base = super::entry_iova(tab, shift, first, index);
            let end = base | Config::low(shift);
            match F::kind(level, entry) {
                Kind::Absent => {}
                Kind::Leaf => {
                    tab.store(index, absent);
                    self.bytes += 1 << shift;
                    if S::EACH {
                        self.report(level, base, entry);
                    }
                }
                Kind::Table => {
                    let child = self.shared.child(level, entry, base)?;
                    let pa = F::table_pa(level, entry);
                    if first <= base && end <= last {
                        tab.store(index, absent);
                        self.dismantle(level - 1, pa, child, base)?;
                        continue;
                    }
                    self.sweep(level - 1, child, first.max(base), last.min(end))?;
                    let below = F::absent(level - 1);
                    if self.prune && all_are(child.words(0..child.len()), below) {
                        tab.store(index, absent);
                        retire(self.shared, self.retired, [(pa, 8 << child.lg2())]);
                    }
                }
                Kind::Reserved => return Err(Error::Malformed { iova: base, entry }),
            }
        }
        Ok(())
    }

    /// Counts what a table that is unlinked already mapped, and frees it.
    fn dismantle(&mut self, level: u8, pa: u64, tab: Tab<'_>, base: u64) -> Result<(), Error> {
        let shift = F::shift(level);
        let mut count = 0;
        if level == 0 && !S::EACH && self.solo {
            // SAFETY: the table has no readers besides its writer.
            let words = unsafe { tab.cells(0..tab.len()) };
            count = count_used(words, F::used, F::all_used);
        } else {
            for (index, word) in tab.words(0..tab.len()).iter().enumerate() {
                let entry = word.load(Relaxed);
                let iova = base + ((index as u64) << shift);
                match F::kind(level, entry) {
                    Kind::Leaf => {
                        count += 1;
                        if S::EACH {
                            self.report(level, iova, entry);
                        }
                    }
                    Kind::Table if level > 0 => {
                        let child = self.shared.child(level, entry, iova)?;
                        self.dismantle(level - 1, F::table_pa(level, entry), child, iova)?;
                    }
                    Kind::Table | Kind::Absent | Kind::Reserved => {}
                }
            }
        }
        self.bytes += count << shift;
        retire(self.shared, self.retired, [(pa, 8 << tab.lg2())]);
        Ok(())
    }
}
