//! Copying to and from pages with the CPU, for accesses.

use std::ops::Range;
use std::sync::Arc;

use crate::Errno;
use crate::inject;
use crate::memory::{PAGE_SIZE, Pin};

use super::{Pages, Source};

/// A copy between a kernel user and the memory behind IOVAs.
pub enum Transfer<'a> {
    /// Out of the memory.
    Read(&'a mut [u8]),
    /// Into the memory.
    Write(&'a [u8]),
}

impl Transfer<'_> {
    /// Bytes to copy.
    pub fn length(&self) -> u64 {
        match self {
            Self::Read(into) => into.len() as u64,
            Self::Write(from) => from.len() as u64,
        }
    }

    /// The `length` bytes from byte `at`.
    pub(crate) fn part(&mut self, at: u64, length: u64) -> Transfer<'_> {
        let range = at as usize..(at + length) as usize;
        match self {
            Self::Read(into) => Transfer::Read(&mut into[range]),
            Self::Write(from) => Transfer::Write(&from[range]),
        }
    }
}

/// Pages that a pin holds.
struct Piece {
    first: u64,
    count: u64,
    /// The first page's number in the pin.
    in_pin: u64,
    pin: Arc<dyn Pin>,
}

/// Pages that are pinned for one copy.
struct Lent {
    first: u64,
    count: u64,
    pin: Arc<dyn Pin>,
}

impl Lent {
    fn piece(&self) -> Piece {
        Piece { first: self.first, count: self.count, in_pin: 0, pin: self.pin.clone() }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pin.release(0..self.count);
    }
}

/// The pages of `length` bytes at byte `at`.
fn touched(at: u64, length: u64) -> Range<u64> {
    at / PAGE_SIZE..(at + length).div_ceil(PAGE_SIZE)
}

impl Pages {
    /// Copies at byte `at` by way of the mm, whatever is pinned. Of a mm that nobody has any more
    /// what is pinned is left.
    pub(crate) fn copy_by_address(&self, at: u64, mut transfer: Transfer<'_>) -> Result<(), Errno> {
        inject::site("pages: copy")?;
        let length = transfer.length();
        let copied = self.copy_unpinned(at, transfer.part(0, length));
        match &self.source {
            Source::Memory { memory, .. } if copied == Err(Errno::EFAULT) && memory.gone() => {
                self.copy(at, transfer)
            }
            _ => copied,
        }
    }

    /// Copies at byte `at`. Pinned pages are reached through their pin; others through the mm. Of a
    /// file, which may end before, all are pinned before the first byte is copied.
    pub(crate) fn copy(&self, at: u64, transfer: Transfer<'_>) -> Result<(), Errno> {
        if let Source::File { .. } = self.source {
            return self.copy_by_pin(at, transfer);
        }
        inject::site("pages: copy")?;
        let pinned = self.pieces(&touched(at, transfer.length()));
        self.copy_by_pins(at, transfer, &pinned)
    }

    /// Copies at byte `at` by way of pins alone: pages that have none get one for as long as it
    /// takes, all before the first byte is copied. Nobody is charged for these, as in the kernel.
    pub(crate) fn copy_by_pin(&self, at: u64, transfer: Transfer<'_>) -> Result<(), Errno> {
        if matches!(self.source, Source::Dmabuf { .. }) {
            return self.copy(at, transfer);
        }
        let touched = touched(at, transfer.length());
        let holes = self.state.lock().runs.holes(&touched);
        let mut lent = Vec::with_capacity(holes.len());
        for pages in holes {
            inject::site("pages: pin")?;
            let count = pages.end - pages.start;
            lent.push(Lent { first: pages.start, count, pin: self.pin_pages(pages.start, count)? });
        }
        inject::site("pages: copy")?;
        let mut pinned = self.pieces(&touched);
        pinned.extend(lent.iter().map(Lent::piece));
        pinned.sort_by_key(|piece| piece.first);
        self.copy_by_pins(at, transfer, &pinned)
    }

    /// What is pinned of `pages`, in order.
    fn pieces(&self, pages: &Range<u64>) -> Vec<Piece> {
        let state = self.state.lock();
        let runs = state.runs.overlapping(pages);
        runs.map(|(first, run)| Piece {
            first,
            count: run.length,
            in_pin: run.at,
            pin: run.pin.clone(),
        })
        .collect()
    }

    /// Copies at byte `at`: what `pinned` has, which is in order, by way of that.
    fn copy_by_pins(
        &self,
        at: u64,
        mut transfer: Transfer<'_>,
        pinned: &[Piece],
    ) -> Result<(), Errno> {
        let end = at + transfer.length();
        let mut done = at;
        for Piece { first, count, in_pin, pin } in pinned {
            let from = (first * PAGE_SIZE).max(done);
            let to = ((first + count) * PAGE_SIZE).min(end);
            // Somebody may have pinned meanwhile what was lent to us.
            if to <= from {
                continue;
            }
            self.copy_unpinned(done, transfer.part(done - at, from - done))?;
            let offset = in_pin * PAGE_SIZE + (from - first * PAGE_SIZE);
            match transfer.part(from - at, to - from) {
                Transfer::Read(into) => pin.read(offset, into)?,
                Transfer::Write(bytes) => pin.write(offset, bytes)?,
            }
            done = to;
        }
        self.copy_unpinned(done, transfer.part(done - at, end - done))
    }

    fn copy_unpinned(&self, at: u64, transfer: Transfer<'_>) -> Result<(), Errno> {
        let length = transfer.length();
        if length == 0 {
            return Ok(());
        }
        match &self.source {
            Source::Memory { memory, address } => match transfer {
                Transfer::Read(into) => memory.read(address + at, into),
                Transfer::Write(from) => memory.write(address + at, from),
            },
            Source::File { .. } => {
                let first = at / PAGE_SIZE;
                let count = (at + length).div_ceil(PAGE_SIZE) - first;
                let pin = self.pin_pages(first, count)?;
                let copied = match transfer {
                    Transfer::Read(into) => pin.read(at - first * PAGE_SIZE, into),
                    Transfer::Write(from) => pin.write(at - first * PAGE_SIZE, from),
                };
                pin.release(0..count);
                copied
            }
            Source::Dmabuf { .. } => Err(Errno::EINVAL),
        }
    }
}
