//! Simulated page frame numbers: the same page has the same number at each look.
//!
//! Numbers are given out for 512 pages at a time, as much as a huge page has, and stay what they
//! are as long as any page among them is held. A page is known by its *place*: where the file behind
//! shared memory has it, or at which address of its mm it is. (Another page that is put at an
//! address while the one before it is held gets the same number: who may not read frames cannot
//! tell them apart.) Numbers are contiguous where the pages are part of a huge one; others stand
//! alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

const PAGE: u64 = engine::memory::PAGE_SIZE;
/// 4K pages in a huge page of the processor.
pub(super) const HUGE: u64 = 512;

/// Where simulated numbers begin: past 1 TiB of simulated physical memory.
const FIRST: u64 = 1 << 28;
/// Physical addresses have at most 52 bits; simulated ones begin anew before that.
const END: u64 = 1 << 39;
/// Numbers of a block: every second one of pages that stand alone.
const SPAN: u64 = 2 * HUGE;

/// 4K pages in a block of a file's hole: 64 GiB.
pub(super) const HOLE: u64 = 1 << 24;

/// What pages are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Space {
    /// The addresses of the mm with this number.
    Memory(u64),
    /// The file on this device with this inode.
    File(u64, u64),
    /// The same, for what it does not have.
    Hole(u64, u64),
}

/// A page, whoever looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    space: Space,
    page: u64,
}

impl Place {
    /// The page at `address` of an mm.
    pub(crate) fn memory(mm: u64, address: u64) -> Self {
        Self { space: Space::Memory(mm), page: address / PAGE }
    }

    /// The page at byte `offset` of the file with that device and inode.
    pub(crate) fn file(id: (u64, u64), offset: u64) -> Self {
        Self { space: Space::File(id.0, id.1), page: offset / PAGE }
    }

    /// The same place in what the file does not have: counted in blocks of [`HOLE`] pages.
    pub(super) fn hole(self) -> Self {
        match self.space {
            Space::File(device, inode) => Self { space: Space::Hole(device, inode), ..self },
            _ => self,
        }
    }

    /// The page `pages` further.
    pub(super) fn after(self, pages: u64) -> Self {
        Self { page: self.page + pages, ..self }
    }

    /// The block that it is in.
    pub(super) fn block(self) -> BlockId {
        BlockId(self.space, self.page / self.span())
    }

    /// Which page of the block it is.
    pub(super) fn in_block(self) -> u64 {
        self.page % self.span()
    }

    /// Pages of the block.
    pub(super) fn span(self) -> u64 {
        if matches!(self.space, Space::Hole(..)) { HOLE } else { HUGE }
    }
}

/// Names a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlockId(Space, u64);

/// The numbers of 512 pages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    base: u64,
    huge: bool,
}

impl Block {
    /// Whether its pages follow each other.
    pub(super) fn huge(&self) -> bool {
        self.huge
    }

    /// The number of page `page` of it.
    pub(super) fn frame(&self, page: u64) -> u64 {
        self.base + if self.huge { page } else { 2 * page }
    }
}

/// All blocks of which a page is held.
pub(super) struct Blocks {
    known: Mutex<HashMap<BlockId, Weak<Block>>>,
    next: AtomicU64,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { known: Mutex::default(), next: AtomicU64::new(FIRST) }
    }
}

impl Blocks {
    /// The block `id`; a new one is as `huge` says.
    pub(super) fn get(&self, id: BlockId, huge: impl FnOnce() -> bool) -> Arc<Block> {
        let mut known = self.known.lock();
        if let Some(block) = known.get(&id).and_then(Weak::upgrade) {
            return block;
        }
        if known.len() == known.capacity() {
            known.retain(|_, block| block.strong_count() > 0);
        }
        let block = match id.0 {
            Space::Hole(..) => Arc::new(Block { base: self.reserve(HOLE), huge: true }),
            _ => self.fresh(huge()),
        };
        known.insert(id, Arc::downgrade(&block));
        block
    }

    /// A block of pages that nobody can look at again.
    pub(super) fn fresh(&self, huge: bool) -> Arc<Block> {
        Arc::new(Block { base: self.reserve(SPAN), huge })
    }

    /// `span` numbers, from a multiple of that.
    fn reserve(&self, span: u64) -> u64 {
        let start = |next: u64| match next.next_multiple_of(span) {
            start if start + span > END => FIRST.next_multiple_of(span),
            start => start,
        };
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(start(next) + span));
        let (Ok(next) | Err(next)) = taken;
        start(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_never_meet() {
        let blocks = Blocks::default();
        let mut last = 0;
        for huge in [true, false, true, true] {
            let block = blocks.fresh(huge);
            assert!(block.frame(0) > last + 1);
            last = block.frame(HUGE - 1);
        }
    }

    #[test]
    fn files_and_mms_differ() {
        let blocks = Blocks::default();
        let get = |place: Place| blocks.get(place.block(), || false);
        let memory = get(Place::memory(1, 0));
        assert_eq!(get(Place::memory(1, PAGE)), memory);
        assert_ne!(get(Place::memory(2, 0)), memory);
        assert_ne!(get(Place::file((1, 0), 0)), memory);
        assert_ne!(get(Place::memory(1, HUGE * PAGE)), memory);
    }

    #[test]
    fn numbers_begin_anew_at_the_end() {
        let blocks = Blocks::default();
        blocks.next.store(END - SPAN, Ordering::Relaxed);
        assert_eq!(blocks.fresh(true).base, END - SPAN);
        assert_eq!(blocks.fresh(true).base, FIRST);
        assert_eq!(blocks.fresh(true).base, FIRST + SPAN);
    }

    #[test]
    fn holes_are_large_and_aligned() {
        let blocks = Blocks::default();
        let small = blocks.fresh(false);
        let place = Place::file((1, 2), 5 * PAGE).hole();
        let hole = blocks.get(place.block(), || false);
        assert!(hole.huge() && hole.base.is_multiple_of(HOLE) && hole.base > small.base);
        assert_eq!(blocks.get(place.after(HOLE - 6).block(), || false), hole);
        assert_ne!(blocks.get(place.after(HOLE - 5).block(), || false), hole);
        assert!(blocks.fresh(false).base >= hole.base + HOLE);
    }
}
