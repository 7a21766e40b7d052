//! One table: its writer, its readers, and what they share.
//!
//! A table has one writer, the [`Table`], whose changing operations take `&mut self`, and any number of
//! [`Reader`]s, which translate and set accessed and dirty bits from other threads meanwhile, as a
//! device's DMA does. The operations are in the modules below this one.
//!
//! # Memory ordering
//! - Every entry that a reader can reach is one aligned 64-bit atomic; a reader sees the old entry or
//!   the new one, never a mixture.
//! - Without readers, the writer takes words as plain memory. That there are none it sees by a SeqCst
//!   load of their number, which a reader lowers after its last access; and a new one can only be made
//!   from the writer, which is borrowed meanwhile, or from another reader.
//! - A new table is filled before the entry that points at it is stored with Release; a reader loads
//!   entries with Acquire. So a table is complete when it can be seen.
//! - `map` issues a Release fence before the leaves' relaxed stores: whoever translates through one of
//!   them sees what the mapper wrote into the page before.
//! - A table that was unlinked is reused only when every reader that could be inside has left (see
//!   `reclaim`). `unmap` does not wait: a reader that got a translation earlier may still use it. Use
//!   [`Table::barrier`] to learn when that is over, before the page is given to someone else.
//! - Accessed and dirty bits are set by compare-and-exchange of the entry that was checked, so a bit
//!   cannot appear in an entry that changed meanwhile. After setting one, a reader looks whether the
//!   entry is still the one its IOVA leads to, with a SeqCst fence between; `cut` and `merge`
//!   replace an entry first and look for bits in the old one afterwards, again with a fence between. So
//!   a write's mark is in the old entry in time to be carried over, or set again in the new one.
#![allow(unsafe_code)] // Turns physical addresses of its own pages into tables, and frees them.

mod dirty;
mod map;
mod mapper;
mod read;
mod resize;
mod run;
#[cfg(test)]
mod tests;
mod unmap;

use crate::raw::Tab;
use crate::reclaim::{Epochs, Retired, Seat};
use crate::{Config, Error, Format, Kind, Memory};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::*};

pub use read::{Step, Translation, Walk};
pub use unmap::Taken;

/// The bits of the top word that count levels.
const LEVELS: u64 = 0xf;
/// The bits above them hold the log2 of the top table's entries.
const ROOM_SHIFT: u32 = 4;
/// All bits of the top word that are not address; every table is aligned to more.
const SHAPE: u64 = 0x1ff;

/// The top word for `levels` levels with a top table of 2^`lg2` entries at `pa`.
fn top_word(pa: u64, levels: u8, lg2: u32) -> u64 {
    pa | u64::from(lg2) << ROOM_SHIFT | u64::from(levels)
}

/// What the writer and the readers share.
struct Shared<F, M: Memory> {
    memory: M,
    config: Config,
    /// The page sizes that `config` and the format allow together.
    sizes: u64,
    /// The last physical address that a leaf may hold.
    last_pa: u64,
    /// The bits of an IOVA that are translated.
    iovas: u64,
    /// Physical address and size of the top table and number of levels, in one word so that they change
    /// together; 0 once the table is gone.
    top: AtomicU64,
    epochs: Epochs,
    /// What the writer could not free when it was dropped.
    orphans: AtomicPtr<Retired>,
    format: PhantomData<fn() -> F>,
}

impl<F: Format, M: Memory> Shared<F, M> {
    /// The top table and its level; `None` once the writer is gone.
    #[inline]
    fn top(&self) -> Option<(u8, Tab<'_>)> {
        let word = self.top.load(Acquire);
        let level = ((word & LEVELS) as u8).checked_sub(1)?;
        Some((level, self.tab(word & !SHAPE, ((word & SHAPE) >> ROOM_SHIFT) as u32)?))
    }

    /// The table at `pa` with 2^`lg2` entries, if it is in memory.
    #[inline]
    fn tab(&self, pa: u64, lg2: u32) -> Option<Tab<'_>> {
        let words = self.memory.at(pa, 8 << lg2)?;
        // SAFETY: `Memory::at` vouches for the words of a page that was allocated; `pa` comes from
        // an entry or the top word, which this crate wrote with such pages only, and pages are
        // freed only when no reader can hold them. All accesses are atomic but for those
        // through `Tab::cells`, whose callers are alone.
        Some(unsafe { Tab::new(words, lg2) })
    }

    /// The table below `entry` of a table of `level`.
    #[inline]
    fn child(&self, level: u8, entry: u64, iova: u64) -> Result<Tab<'_>, Error> {
        self.tab(F::table_pa(level, entry), F::index_lg2(level - 1))
            .ok_or(Error::Malformed { iova, entry })
    }

    /// The last IOVA that a top table of `level` has an entry for.
    #[inline]
    fn reach(level: u8, tab: Tab<'_>) -> u64 {
        Config::low(F::shift(level) + tab.lg2())
    }

    /// Takes a page for a table of 2^`lg2` entries, with any contents.
    fn alloc(&self, lg2: u32) -> Result<(u64, Tab<'_>), Error> {
        let pa = self.memory.alloc(8 << lg2).ok_or(Error::NoMemory)?;
        let tab = self.tab(pa, lg2).ok_or(Error::NoMemory)?;
        Ok((pa, tab))
    }

    /// Frees a page of a table of 2^`lg2` entries.
    ///
    /// # Safety
    /// The page came from `alloc` with the same size, and no reader can be in it.
    unsafe fn free(&self, pa: u64, bytes: usize) {
        // SAFETY: passed through.
        unsafe { self.memory.free(pa, bytes) };
    }

    /// Frees a table that was never linked, and all below it.
    fn discard(&self, level: u8, pa: u64, tab: Tab<'_>) {
        self.each_table(level, pa, tab, &mut |pa, bytes| {
            // SAFETY: no entry that a reader can reach ever pointed here.
            unsafe { self.free(pa, bytes) };
        });
    }

    /// Visits every table below and including `tab`, children first.
    fn each_table(&self, level: u8, pa: u64, tab: Tab<'_>, f: &mut impl FnMut(u64, usize)) {
        if level > 0 {
            for index in 0..tab.len() {
                let entry = tab.load(index);
                if F::kind(level, entry) == Kind::Table
                    && let Ok(child) = self.child(level, entry, 0)
                {
                    self.each_table(level - 1, F::table_pa(level, entry), child, f);
                }
            }
        }
        f(pa, 8 << tab.lg2());
    }
}

impl<F, M: Memory> Drop for Shared<F, M> {
    fn drop(&mut self) {
        let orphans = *self.orphans.get_mut();
        if !orphans.is_null() {
            // SAFETY: the writer made the pointer from a box, once.
            for (_, pa, bytes) in *unsafe { Box::from_raw(orphans) } {
                // SAFETY: the writer retired these pages; the last reader is gone with `self`.
                unsafe { self.memory.free(pa, bytes) };
            }
        }
    }
}

/// A page table of format `F` with its pages in `M`. See the module for what may happen at the same time.
pub struct Table<F: Format, M: Memory> {
    shared: Arc<Shared<F, M>>,
    retired: Retired,
    near: Near,
}

/// Where the writer was: the table of level 0 that its last short map or unmap found, because the
/// next one is often there, too. Whatever may unlink a table forgets it.
struct Near {
    /// The IOVAs of the table, as the index of its entry in all of level 1.
    region: u64,
    words: NonNull<u64>,
}

// SAFETY: the pointer is into a page of the table's memory, which is Send and Sync; it is only followed
// by whoever has the whole table, mutably.
unsafe impl Send for Near {}
// SAFETY: as above.
unsafe impl Sync for Near {}

impl Near {
    /// No table: no region is that far.
    const NONE: Self = Self { region: u64::MAX, words: NonNull::dangling() };

    /// Keeps `tab`, a table of level 0 that is not the top.
    #[inline]
    fn keep<F: Format>(&mut self, iova: u64, tab: Tab<'_>) {
        *self = Self { region: iova >> F::shift(1), words: tab.start() };
    }

    /// The table that was kept, if it holds both IOVAs.
    ///
    /// # Safety
    /// No table was unlinked from the one with this memory since it was kept.
    #[inline]
    unsafe fn get<'m, F: Format>(&self, first: u64, last: u64) -> Option<Tab<'m>> {
        let here = first >> F::shift(1) == self.region && last >> F::shift(1) == self.region;
        // SAFETY: the words were those of a table of level 0, which is linked still; `Memory` keeps a
        // page at one place.
        here.then(|| unsafe { Tab::new(self.words, F::index_lg2(0)) })
    }
}

/// A point in time that readers have to pass. From [`Table::barrier`].
#[derive(Clone, Copy, Debug)]
pub struct Barrier(u64);

impl<F: Format, M: Memory> Table<F, M> {
    /// An empty table; takes one page from `memory`.
    pub fn new(memory: M, config: Config) -> Result<Self, Error> {
        config.check::<F>()?;
        let (epochs, orphans) = (Epochs::new(), AtomicPtr::default());
        let top = AtomicU64::new(0);
        let (sizes, last_pa) = (config.sizes::<F>(), Config::low(config.oa_bits));
        let format = PhantomData;
        let iovas = Config::low(config.iova_bits);
        let shared = Shared { memory, config, sizes, last_pa, iovas, top, epochs, orphans, format };
        let (level, lg2) = (config.levels - 1, config.room_lg2::<F>(config.levels));
        let (pa, tab) = shared.alloc(lg2)?;
        // SAFETY: the page was just allocated and nothing points at it.
        unsafe { tab.init(0..tab.len(), F::absent(level)) };
        shared.top.store(top_word(pa, config.levels, lg2), Release);
        Ok(Self { shared: Arc::new(shared), retired: Retired::new(), near: Near::NONE })
    }

    /// The table's shape.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The memory that holds the pages.
    pub fn memory(&self) -> &M {
        &self.shared.memory
    }

    /// The page sizes that this table can use: bit n stands for 2^n bytes.
    pub fn page_sizes(&self) -> u64 {
        self.shared.sizes
    }

    /// Physical address of the top table and the number of levels now: what a driver gives its device.
    pub fn top(&self) -> (u64, u8) {
        let word = self.shared.top.load(Relaxed);
        (word & !SHAPE, (word & LEVELS) as u8)
    }

    /// Pages and bytes that the table takes, those that wait for readers to leave among them.
    pub fn footprint(&self) -> (usize, usize) {
        let (mut pages, mut bytes) = (self.retired.len(), 0);
        bytes += self.retired.iter().map(|(_, _, bytes)| bytes).sum::<usize>();
        if let Some((level, tab)) = self.shared.top() {
            self.shared.each_table(level, self.top().0, tab, &mut |_, size| {
                pages += 1;
                bytes += size;
            });
        }
        (pages, bytes)
    }

    /// Shows every page: its physical address and its words.
    pub(crate) fn each_page(&self, mut f: impl FnMut(u64, alloc::vec::Vec<u64>)) {
        let Some((level, tab)) = self.shared.top() else { return };
        self.shared.each_table(level, self.top().0, tab, &mut |pa, bytes| {
            if let Some(tab) = self.shared.tab(pa, (bytes / 8).trailing_zeros()) {
                f(pa, (0..tab.len()).map(|index| tab.load(index)).collect());
            }
        });
    }

    /// A handle for another thread.
    pub fn reader(&self) -> Reader<F, M> {
        Reader { seat: self.shared.epochs.enlist(), shared: self.shared.clone() }
    }

    /// A barrier after everything that was changed so far.
    pub fn barrier(&mut self) -> Barrier {
        Barrier(self.shared.epochs.tag())
    }

    /// Whether no reader can still use what it found before the barrier was made. Never waits.
    pub fn passed(&self, barrier: Barrier) -> bool {
        self.shared.epochs.passed() >= barrier.0
    }

    /// Frees the pages that no reader can be in any more; returns how many have to wait longer.
    /// The changing operations do it by themselves.
    pub fn reclaim(&mut self) -> usize {
        if !self.retired.is_empty() {
            let passed = self.shared.epochs.passed();
            let shared = &self.shared;
            self.retired.retain(|&(tag, pa, bytes)| {
                if tag <= passed {
                    // SAFETY: the page was unlinked before it got its tag, and all readers passed it.
                    unsafe { shared.free(pa, bytes) };
                }
                tag > passed
            });
        }
        self.retired.len()
    }

    /// Frees pages that were unlinked, or keeps them until readers have left.
    fn retire(&mut self, pages: impl IntoIterator<Item = (u64, usize)>) {
        retire(&self.shared, &mut self.retired, pages);
    }
}

fn retire<F: Format, M: Memory>(
    shared: &Shared<F, M>,
    retired: &mut Retired,
    pages: impl IntoIterator<Item = (u64, usize)>,
) {
    if shared.epochs.watched() {
        let tag = shared.epochs.tag();
        retired.extend(pages.into_iter().map(|(pa, bytes)| (tag, pa, bytes)));
    } else {
        for (pa, bytes) in pages {
            // SAFETY: the caller unlinked the page, and there is no reader.
            unsafe { shared.free(pa, bytes) };
        }
    }
}

impl<F: Format, M: Memory> Drop for Table<F, M> {
    fn drop(&mut self) {
        let Some((level, tab)) = self.shared.top() else { return };
        let top = self.shared.top.swap(0, AcqRel) & !SHAPE;
        let mut pages = alloc::vec::Vec::new();
        self.shared.each_table(level, top, tab, &mut |pa, bytes| pages.push((pa, bytes)));
        self.retire(pages);
        if self.reclaim() > 0 {
            let orphans = Box::new(core::mem::take(&mut self.retired));
            self.shared.orphans.store(Box::into_raw(orphans), Release);
        }
    }
}

/// A view of a table from another thread. It belongs to one thread at a time; clone it for more.
pub struct Reader<F: Format, M: Memory> {
    shared: Arc<Shared<F, M>>,
    seat: Seat,
}

impl<F: Format, M: Memory> Clone for Reader<F, M> {
    fn clone(&self) -> Self {
        Self { seat: self.shared.epochs.enlist(), shared: self.shared.clone() }
    }
}

impl<F: Format, M: Memory> Drop for Reader<F, M> {
    fn drop(&mut self) {
        self.shared.epochs.discharge(&self.seat);
    }
}

/// The first IOVA of entry `index` of `tab`, the table that holds `iova`.
#[inline]
fn entry_iova(tab: Tab<'_>, shift: u32, iova: u64, index: usize) -> u64 {
    (iova & !Config::low(shift + tab.lg2())) + ((index as u64) << shift)
}
