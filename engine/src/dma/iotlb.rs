//! The IOTLB of one port: what a warm access costs.
//!
//! A slot holds where a range of IOVAs lies in a pin. Two arrays are looked at: one indexed by
//! 4 KiB page, one by 2 MiB region for what a large IOPTE or a long transfer filled. Rights are
//! those that a walk has earned: a slot that a load filled does not serve stores, so that the
//! first store walks and sets the dirty bit.

use std::sync::Arc;

use crate::memory::Pin;

/// Slots of each array; powers of two.
const PAGES: usize = 256;
const REGIONS: usize = 128;
const PAGE_SHIFT: u32 = 12;
const REGION_SHIFT: u32 = 21;

/// One translation, end to end.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Byte of `pin` that `first` is.
    pub(super) offset: u64,
    pub(super) pin: Arc<dyn Pin>,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Slot {
    pub(super) fn offset_of(&self, iova: u64) -> u64 {
        self.offset + (iova - self.first)
    }

    fn serves(&self, iova: u64, write: bool) -> bool {
        self.first <= iova && iova <= self.last && if write { self.write } else { self.read }
    }
}

pub(super) struct Iotlb {
    pages: Box<[Option<Slot>; PAGES]>,
    regions: Box<[Option<Slot>; REGIONS]>,
    /// Whether anything was put in since it was last empty.
    used: bool,
}

impl Default for Iotlb {
    fn default() -> Self {
        Self {
            pages: Box::new([const { None }; PAGES]),
            regions: Box::new([const { None }; REGIONS]),
            used: false,
        }
    }
}

fn page_index(iova: u64) -> usize {
    (iova >> PAGE_SHIFT) as usize & (PAGES - 1)
}

fn region_index(iova: u64) -> usize {
    (iova >> REGION_SHIFT) as usize & (REGIONS - 1)
}

impl Iotlb {
    /// The slot that serves an access at `iova`.
    #[inline]
    pub(super) fn get(&self, iova: u64, write: bool) -> Option<&Slot> {
        match &self.pages[page_index(iova)] {
            Some(slot) if slot.serves(iova, write) => Some(slot),
            _ => self.regions[region_index(iova)].as_ref().filter(|s| s.serves(iova, write)),
        }
    }

    /// Keeps `slot`, which was filled for an access at `iova`.
    pub(super) fn put(&mut self, iova: u64, slot: Slot) {
        self.used = true;
        if slot.last - slot.first >= 1 << PAGE_SHIFT {
            self.regions[region_index(iova)] = Some(slot);
            // Else an older slot of the page would be found first, and may serve less.
            self.pages[page_index(iova)] = None;
        } else {
            self.pages[page_index(iova)] = Some(slot);
        }
    }

    /// Forgets what overlaps `first..=last`.
    pub(super) fn invalidate(&mut self, first: u64, last: u64) {
        if !self.used {
            return;
        }
        let mut left = false;
        for slot in self.pages.iter_mut().chain(self.regions.iter_mut()) {
            if slot.as_ref().is_some_and(|s| s.first <= last && first <= s.last) {
                *slot = None;
            }
            left |= slot.is_some();
        }
        self.used = left;
    }
}
