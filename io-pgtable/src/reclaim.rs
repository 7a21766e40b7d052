//! When a table page that was unlinked may be freed: once no reader can still be in it.
//!
//! Each reader owns a slot that holds 0 while it is outside, and the epoch at which it went in while it
//! is inside. The writer unlinks a table, then takes the epoch as the table's tag and raises it. The
//! page is free for reuse when every slot is 0 or above the tag. Nobody waits for anybody: what cannot
//! be freed yet is looked at again at a later operation.
//!
//! # Memory ordering
//! A reader stores its slot, then a SeqCst fence, then loads entries; the writer stores the entry that
//! unlinks, then a SeqCst fence, then loads the slots. So either the writer sees the reader inside,
//! or the reader sees the entry gone. A slot is set to 0 with Release and read with Acquire: all of the
//! reader's loads are over when the writer frees. A reader that read an epoch above the tag read it
//! with Acquire from the writer's Release, and sees the unlinked entry likewise.
#![allow(unsafe_code)] // The list of slots is a lock-free one, of raw pointers.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*, fence};

struct Slot {
    inside: AtomicU64,
    taken: AtomicBool,
    next: *mut Slot,
}

/// The epoch and the readers of one table.
pub(crate) struct Epochs {
    now: AtomicU64,
    slots: AtomicPtr<Slot>,
    readers: AtomicUsize,
}

// SAFETY: the slots are only reached through atomics, and `next` never changes once published.
unsafe impl Send for Epochs {}
// SAFETY: as above.
unsafe impl Sync for Epochs {}

impl Epochs {
    pub(crate) fn new() -> Self {
        Self { now: AtomicU64::new(1), slots: AtomicPtr::default(), readers: AtomicUsize::new(0) }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        let mut at = self.slots.load(Acquire);
        core::iter::from_fn(move || {
            // SAFETY: slots are freed only when `self` is dropped.
            let slot = unsafe { at.as_ref() }?;
            at = slot.next;
            Some(slot)
        })
    }

    /// A slot for one more reader.
    pub(crate) fn enlist(&self) -> Seat {
        self.readers.fetch_add(1, SeqCst);
        let free = self.slots().find(|slot| !slot.taken.swap(true, AcqRel)).map(NonNull::from);
        let slot = free.unwrap_or_else(|| {
            let (inside, taken) = (AtomicU64::new(0), AtomicBool::new(true));
            let slot = Box::into_raw(Box::new(Slot { inside, taken, next: ptr::null_mut() }));
            let mut head = self.slots.load(Relaxed);
            loop {
                // SAFETY: the slot is not published yet.
                unsafe { (*slot).next = head };
                match self.slots.compare_exchange_weak(head, slot, AcqRel, Relaxed) {
                    // SAFETY: a box's pointer is not null.
                    Ok(_) => break unsafe { NonNull::new_unchecked(slot) },
                    Err(now) => head = now,
                }
            }
        });
        Seat { slot, depth: Cell::new(0) }
    }

    /// Gives a slot back.
    pub(crate) fn discharge(&self, seat: &Seat) {
        seat.slot().inside.store(0, Release);
        seat.slot().taken.store(false, Release);
        self.readers.fetch_sub(1, SeqCst);
    }

    /// Whether there are readers at all. While the writer is borrowed, none can appear out of nothing: a
    /// reader comes from the writer or from another reader.
    #[inline]
    pub(crate) fn watched(&self) -> bool {
        self.readers.load(SeqCst) != 0
    }

    /// A tag for all that was unlinked before.
    pub(crate) fn tag(&self) -> u64 {
        self.now.fetch_add(1, SeqCst)
    }

    /// The highest tag whose tables no reader can be in.
    pub(crate) fn passed(&self) -> u64 {
        let newest = self.now.load(Relaxed) - 1;
        fence(SeqCst);
        let inside = self.slots().map(|slot| slot.inside.load(Acquire)).filter(|&e| e != 0);
        inside.map(|epoch| epoch - 1).fold(newest, u64::min)
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        let mut at = *self.slots.get_mut();
        while !at.is_null() {
            // SAFETY: each slot came from a box and is freed once, when no reader is left.
            at = unsafe { Box::from_raw(at) }.next;
        }
    }
}

/// A reader's place. It belongs to one thread at a time.
pub(crate) struct Seat {
    slot: NonNull<Slot>,
    depth: Cell<u32>,
}

// SAFETY: the slot is atomics only, and lives as long as the table's shared part, which every
// holder of a seat keeps alive.
unsafe impl Send for Seat {}

impl Seat {
    fn slot(&self) -> &Slot {
        // SAFETY: slots live as long as `Epochs`, which outlives its seats.
        unsafe { self.slot.as_ref() }
    }

    /// Runs `read` inside of the read section; sections nest.
    #[inline]
    pub(crate) fn within<R>(&self, epochs: &Epochs, read: impl FnOnce() -> R) -> R {
        struct Leave<'a>(&'a Seat);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                let depth = self.0.depth.get() - 1;
                self.0.depth.set(depth);
                if depth == 0 {
                    self.0.slot().inside.store(0, Release);
                }
            }
        }
        if self.depth.get() == 0 {
            self.slot().inside.store(epochs.now.load(Acquire), Relaxed);
            fence(SeqCst);
        }
        self.depth.set(self.depth.get() + 1);
        let _leave = Leave(self);
        read()
    }
}

/// Pages that wait for readers to leave: tag, physical address, bytes.
pub(crate) type Retired = Vec<(u64, u64, usize)>;
