//! Copying to and from pages with the CPU, for accesses.

use crate::Errno;
use crate::inject;
use crate::memory::PAGE_SIZE;

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

    /// Copies at byte `at`. Pinned pages are reached through their pin; others through the mm, or
    /// by pinning a file's for as long as it takes.
    pub(crate) fn copy(&self, at: u64, mut transfer: Transfer<'_>) -> Result<(), Errno> {
        inject::site("pages: copy")?;
        let length = transfer.length();
        let end = at + length;
        let pages = at / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        let pinned: Vec<_> = {
            let state = self.state.lock();
            let runs = state.runs.overlapping(&pages);
            runs.map(|(first, run)| (first, run.length, run.at, run.pin.clone())).collect()
        };
        let mut done = at;
        for (first, count, in_pin, pin) in pinned {
            let from = (first * PAGE_SIZE).max(at);
            let to = ((first + count) * PAGE_SIZE).min(end);
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
