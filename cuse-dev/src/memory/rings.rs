//! The rings that pin for one mm, and their free slots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Errno;
use engine::memory::PAGE_SIZE;
use parking_lot::Mutex;

use super::ring::{MOST_SLOTS, Ring};

/// What a range's pages are, which decides how it is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// Small pages.
    Small,
    /// Huge ones.
    Huge,
}

impl Grain {
    /// Bytes that one slot holds at most.
    ///
    /// The kernel allows 1 GiB. What it knows of 4096 small pages fits the processor's cache, so that
    /// their frames are read at once for half of what it costs later; a call is a few per cent of
    /// what pinning them costs. Huge ones are few, and for each the kernel looks through all that
    /// other slots have: so all go into one. (Where large pages of smaller sizes are among them it looks
    /// through what the slot has, too, and a GiB takes a quarter of a second.)
    pub(super) fn piece(self) -> u64 {
        match self {
            Self::Small => 16 << 20,
            Self::Huge => 1 << 30,
        }
    }

    /// Slots of the first ring; each further one has twice as many. For every huge page that it
    /// pins the kernel looks through all slots of the ring, used or not: few make that cheap for who
    /// maps much at once, and who maps a million pieces needs no thousand rings.
    fn fewest_slots(self) -> u32 {
        match self {
            Self::Small => 256,
            Self::Huge => 16,
        }
    }
}

/// Rings of one mm, more as slots are needed: those of small pages and those of huge ones.
#[derive(Default)]
pub(super) struct Rings {
    small: Mutex<Vec<Arc<Ring>>>,
    huge: Mutex<Vec<Arc<Ring>>>,
}

/// A range to be pinned in a slot. The slot is given back when it is dropped.
pub(super) struct Wanted {
    pub(super) ring: Arc<Ring>,
    pub(super) slot: u32,
    pub(super) address: u64,
    pub(super) length: u64,
    kept: bool,
}

/// A pinned range.
pub(super) struct Slot {
    pub(super) ring: Arc<Ring>,
    pub(super) slot: u32,
    pages: u64,
    /// Pages that are not released; the last one clears the slot.
    left: AtomicU64,
}

impl Rings {
    /// Free slots for `length` bytes from `address`, of as few rings as may be.
    pub(super) fn slots(
        &self,
        address: u64,
        length: u64,
        grain: Grain,
        new_ring: impl Fn(u32) -> Result<Ring, Errno>,
    ) -> Result<Vec<Wanted>, Errno> {
        let rings = match grain {
            Grain::Small => &self.small,
            Grain::Huge => &self.huge,
        };
        let (mut rings, piece) = (rings.lock(), grain.piece());
        let mut wanted = Vec::with_capacity(length.div_ceil(piece) as usize);
        for start in (0..length).step_by(piece as usize) {
            let found = rings.iter().rev().find_map(|ring| Some((ring.clone(), ring.take_slot()?)));
            let (ring, slot) = match found {
                Some(found) => found,
                None => {
                    let slots = grain.fewest_slots() << rings.len().min(10);
                    let ring = Arc::new(new_ring(slots.min(MOST_SLOTS))?);
                    rings.push(ring.clone());
                    let slot = ring.take_slot().ok_or(Errno::ENOMEM)?;
                    (ring, slot)
                }
            };
            let (address, length) = (address + start, piece.min(length - start));
            wanted.push(Wanted { ring, slot, address, length, kept: false });
        }
        Ok(wanted)
    }
}

impl Wanted {
    /// It is pinned: so it stays until the slot is cleared.
    pub(super) fn pinned(mut self) -> Slot {
        self.kept = true;
        let (ring, slot, pages) = (self.ring.clone(), self.slot, self.length / PAGE_SIZE);
        Slot { ring, slot, pages, left: AtomicU64::new(pages) }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if !self.kept {
            self.ring.give_back(self.slot);
        }
    }
}

impl Slot {
    /// Bytes that it holds; none if all are released.
    pub(super) fn holds(&self) -> bool {
        self.left.load(Ordering::Acquire) != 0
    }

    /// Releases `pages` of it. The last ones unpin all: answers how many that are.
    pub(super) fn release(&self, pages: u64) -> u64 {
        if self.left.fetch_sub(pages, Ordering::AcqRel) != pages {
            return 0;
        }
        self.ring.clear(self.slot);
        self.pages
    }

    /// Releases what is left: answers how many pages were unpinned.
    pub(super) fn release_all(&self) -> u64 {
        if self.left.swap(0, Ordering::AcqRel) == 0 {
            return 0;
        }
        self.ring.clear(self.slot);
        self.pages
    }

    /// Pages that it was made for.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }
}
