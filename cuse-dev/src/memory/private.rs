//! Kernel pins: ranges registered with rings, which read and write them whatever becomes of the
//! addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::unbounded;
use engine::Errno;
use engine::memory::PAGE_SIZE;

use super::Host;
use super::helper::Helper;
use super::mm::Mm;
use super::pfn::Frames;
use super::rings::{Grain, Slot, Wanted};

/// A pinned range, in pieces.
pub(crate) struct Registered {
    address: u64,
    /// Bytes of a piece; the last one may have less.
    piece: u64,
    slots: Vec<Slot>,
    /// [`Mm::counted`].
    counted: Option<Arc<AtomicU64>>,
}

impl Registered {
    /// Nothing yet, from `address`.
    pub(super) fn empty(address: u64, grain: Grain, counted: Option<Arc<AtomicU64>>) -> Self {
        Self { address, piece: grain.piece(), slots: Vec::new(), counted }
    }

    /// The next piece is pinned.
    pub(super) fn push(&mut self, piece: Wanted) {
        let slot = piece.pinned();
        if let Some(counted) = &self.counted {
            counted.fetch_add(slot.pages(), Ordering::Relaxed);
        }
        self.slots.push(slot);
    }

    /// Pins `length` bytes from `address` of `mm`, all or nothing, and finds their frames.
    pub(crate) fn new(
        host: &Host,
        mm: &Arc<Mm>,
        helper: &Helper,
        address: u64,
        length: u64,
    ) -> Result<(Self, Frames), Errno> {
        let (done, results) = unbounded();
        let report = move |result| {
            let _ = done.send(result);
        };
        let grain = mm.grain(host, address, length);
        helper.pin(mm, helper.slots(mm, address, length, grain)?, report);
        let mut pinned = Self::empty(address, grain, Some(mm.counted.clone()));
        let mut frames = Frames::with_room_for(length / PAGE_SIZE);
        let mut failed = None;
        for result in results {
            // The pieces before one that failed are cleared by dropping.
            let piece = result?;
            let (from, pages) = (piece.address, piece.length / PAGE_SIZE);
            pinned.push(piece);
            if failed.is_none() {
                failed = mm.add_frames(host, &mut frames, from, pages).err();
            }
        }
        match failed {
            Some(error) => Err(error),
            None if frames.pages() != length / PAGE_SIZE => Err(Errno::EAGAIN),
            None => {
                frames.shrink();
                Ok((pinned, frames))
            }
        }
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
        let slot = self.slots.get((offset / self.piece) as usize).ok_or(Errno::EFAULT)?;
        if !slot.holds() {
            return Err(Errno::EFAULT);
        }
        Ok((slot, self.address + offset, (self.piece - offset % self.piece) as usize))
    }

    /// Lets the bytes `start..end` go.
    pub(crate) fn release(&self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let index = at / self.piece;
            let stop = ((index + 1) * self.piece).min(end);
            let pages = (stop - at) / PAGE_SIZE;
            if let Some(slot) = self.slots.get(index as usize)
                && pages > 0
            {
                self.uncount(slot.release(pages));
            }
            at = stop;
        }
    }

    fn uncount(&self, pages: u64) {
        if let Some(counted) = &self.counted {
            counted.fetch_sub(pages, Ordering::Relaxed);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for slot in &self.slots {
            self.uncount(slot.release_all());
        }
    }
}
