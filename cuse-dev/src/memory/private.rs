//! Kernel pins of a caller's private memory: ranges registered with rings of its mm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::unbounded;
use engine::Errno;
use engine::memory::PAGE_SIZE;

use super::Host;
use super::helper::{Helper, Wanted};
use super::mm::Mm;
use super::pfn::Frames;
use super::ring::Ring;

/// Bytes that one slot holds at most. (The kernel allows 1 GiB; of smaller pieces the frames can
/// be read while the next piece is being pinned.)
const PIECE: u64 = 128 << 20;

/// A pinned range.
struct Slot {
    ring: Arc<Ring>,
    slot: u32,
    pages: u64,
    /// Pages that are not released; the last one clears the slot.
    left: AtomicU64,
}

/// A pinned range of private memory, in pieces.
pub(crate) struct Registered {
    address: u64,
    slots: Vec<Slot>,
    /// [`Mm::counted`].
    counted: Arc<AtomicU64>,
}

impl Slot {
    /// Unpins all of it.
    fn clear(&self, counted: &AtomicU64) {
        self.ring.clear(self.slot);
        counted.fetch_sub(self.pages, Ordering::Relaxed);
    }
}

impl Registered {
    /// Pins `length` bytes from `address`, all or nothing, and finds their frames.
    pub(crate) fn new(
        host: &Host,
        mm: &Arc<Mm>,
        helper: &Helper,
        address: u64,
        length: u64,
    ) -> Result<(Self, Frames), Errno> {
        let ranges = (0..length)
            .step_by(PIECE as usize)
            .map(|start| (address + start, PIECE.min(length - start)));
        let wanted = helper.slots(mm, ranges)?;
        let (done, results) = unbounded();
        let give_back =
            |from: usize| wanted[from..].iter().for_each(|one| one.ring.give_back(one.slot));
        let report = move |result| {
            let _ = done.send(result);
        };
        if let Err(error) = helper.pin(mm, wanted.clone(), report) {
            give_back(0);
            return Err(error);
        }
        let slots = Vec::with_capacity(wanted.len());
        let mut pinned = Self { address, slots, counted: mm.counted.clone() };
        let mut frames = Frames::default();
        let mut failed = None;
        for one in &wanted {
            // A slot that failed holds nothing, and no later one was tried; those before are
            // cleared by dropping.
            if let Err(error) = results.recv().unwrap_or(Err(Errno::EAGAIN)) {
                give_back(pinned.slots.len());
                return Err(error);
            }
            let Wanted { ring, slot, address, length } = one.clone();
            let pages = length / PAGE_SIZE;
            mm.counted.fetch_add(pages, Ordering::Relaxed);
            pinned.slots.push(Slot { ring, slot, pages, left: AtomicU64::new(pages) });
            if failed.is_none() {
                let pages = length / PAGE_SIZE;
                failed = mm.add_frames(host, &mut frames, address, pages).err();
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        frames.shrink();
        Ok((pinned, frames))
    }

    /// Copies from byte `offset`.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < into.len() {
            let (slot, at, most) = self.locate(offset + done as u64)?;
            let length = most.min(into.len() - done);
            slot.ring.read(slot.slot, at, &mut into[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// Copies to byte `offset`.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < from.len() {
            let (slot, at, most) = self.locate(offset + done as u64)?;
            let length = most.min(from.len() - done);
            slot.ring.write(slot.slot, at, &from[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// The slot of byte `offset`, the address there, and how many bytes follow in the slot.
    fn locate(&self, offset: u64) -> Result<(&Slot, u64, usize), Errno> {
        let slot = self.slots.get((offset / PIECE) as usize).ok_or(Errno::EFAULT)?;
        if slot.left.load(Ordering::Acquire) == 0 {
            return Err(Errno::EFAULT);
        }
        Ok((slot, self.address + offset, (PIECE - offset % PIECE) as usize))
    }

    /// Lets the bytes `start..end` go.
    pub(crate) fn release(&self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let index = at / PIECE;
            let stop = ((index + 1) * PIECE).min(end);
            let pages = (stop - at) / PAGE_SIZE;
            if let Some(slot) = self.slots.get(index as usize)
                && pages > 0
                && slot.left.fetch_sub(pages, Ordering::AcqRel) == pages
            {
                slot.clear(&self.counted);
            }
            at = stop;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for slot in &self.slots {
            if slot.left.swap(0, Ordering::AcqRel) != 0 {
                slot.clear(&self.counted);
            }
        }
    }
}
