//! Unmap: takes entries out and says what they were.

use super::{Shared, Table, retire};
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
    pub fn unmap_with(
        &mut self,
        iova: u64,
        len: u64,
        taken: impl FnMut(Taken),
    ) -> Result<u64, Error> {
        self.unmap_into(iova, len, Each(taken))
    }

    fn unmap_into(&mut self, iova: u64, len: u64, sink: impl Sink) -> Result<u64, Error> {
        let (first, last) = self.shared.config.range::<F>(iova, len)?;
        if !self.retired.is_empty() {
            self.reclaim();
        }
        let shared = &*self.shared;
        let Some((level, tab)) = shared.top() else { return Ok(0) };
        let reach = shared.reach(level + 1);
        if first > reach {
            return Ok(0);
        }
        let last = last.min(reach);
        // Where the whole range is inside of one entry that is a table, the way is straight down.
        let (mut level, mut tab) = (level, tab);
        while level > 0 {
            let shift = F::shift(level);
            let within = Config::low(shift);
            let entry = tab.load(tab.index(first, shift));
            if (first ^ last) & !within != 0 || last - first == within {
                break;
            }
            match F::kind(level, entry) {
                Kind::Table => tab = shared.child(level, entry, first)?,
                Kind::Absent => return Ok(0),
                Kind::Leaf | Kind::Reserved => break,
            }
            level -= 1;
        }
        shared.at_boundary(level, tab, first, false)?;
        shared.at_boundary(level, tab, last, true)?;
        let (retired, solo) = (&mut self.retired, !shared.epochs.watched());
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
        let found = self.find_from(level, tab, iova)?;
        if found.kind == Kind::Leaf {
            let lg2 = F::leaf_lg2(found.level, found.entry);
            let within = Config::low(lg2);
            if iova & within != if end { within } else { 0 } {
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

    /// Takes out what `tab` maps between `first` and `last`, both in its reach.
    fn sweep(&mut self, level: u8, tab: Tab<'_>, first: u64, last: u64) -> Result<(), Error> {
        let shift = F::shift(level);
        let (from, to) = (tab.index(first, shift), tab.index(last, shift));
        let absent = F::absent(level);
        if level == 0 {
            let range = from..to + 1;
            if S::EACH {
                for (n, entry) in tab.words(range.clone()).iter().enumerate() {
                    let iova = (first & !Config::low(shift)) + ((n as u64) << shift);
                    let entry = entry.load(Relaxed);
                    if F::used(entry) != 0 {
                        self.report(0, iova, entry);
                    }
                }
            }
            let mut count = 0;
            if self.solo {
                // SAFETY: the table has no readers besides its writer.
                for word in unsafe { tab.plain(range) } {
                    count += F::used(*word);
                    *word = absent;
                }
            } else {
                for word in tab.words(range) {
                    count += F::used(word.load(Relaxed));
                    word.store(absent, Relaxed);
                }
            }
            self.bytes += count << shift;
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
                    let empty = || {
                        child
                            .words(0..child.len())
                            .iter()
                            .all(|w| w.load(Relaxed) == F::absent(level - 1))
                    };
                    if self.prune && empty() {
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
            let words = unsafe { tab.plain(0..tab.len()) };
            count = words.iter().map(|&word| F::used(word)).sum();
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
