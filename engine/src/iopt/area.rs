//! An area: IOVAs that are mapped to a stretch of [`Pages`].

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use crate::Errno;
use crate::domain::{Domain, Prot};
use crate::inject;
use crate::memory::PAGE_SIZE;
use crate::pages::Pages;
use crate::quota::Taken;

/// Mapped IOVAs. The first one is its key.
pub(crate) struct Area {
    pub(super) last: u64,
    /// The byte of `pages` that the first IOVA is.
    pub(super) at: u64,
    pub(crate) pages: Arc<Pages>,
    pub(crate) prot: Prot,
    /// Pins that accesses have in it.
    pub(crate) accesses: u32,
    /// Hardware queues in it: it can't be unmapped.
    pub(crate) locks: u32,
    /// An `IOMMU_IOAS_COPY` made it.
    pub(crate) copied: bool,
    /// The domains map it, and its pages are pinned for them.
    pub(super) filled: bool,
    /// It is being unmapped: no new pins.
    pub(crate) leaving: bool,
    /// Its place in its user's quota.
    pub(super) taken: Taken,
}

/// A piece of pages to be mapped: what an area will be.
pub(crate) struct Piece {
    pub(crate) pages: Arc<Pages>,
    pub(crate) at: u64,
    pub(crate) length: u64,
    /// Another area has the same pages.
    pub(crate) copied: bool,
}

impl Area {
    /// The byte of its pages that the first IOVA is.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn length(&self, start: u64) -> u64 {
        // Never all of the address space: lengths are below U64_MAX.
        self.last - start + 1
    }

    /// The pages under the whole area, which starts at `start`.
    pub(crate) fn all_pages(&self, start: u64) -> Range<u64> {
        self.pages_of(start, &(start..=self.last))
    }

    /// The pages under `iovas` of the area.
    pub(super) fn pages_of(&self, start: u64, iovas: &RangeInclusive<u64>) -> Range<u64> {
        let first = self.at + (iovas.start() - start);
        let last = self.at + (iovas.end() - start);
        first / PAGE_SIZE..last / PAGE_SIZE + 1
    }

    /// Whether it suits IOVAs that are multiples of `alignment`.
    pub(super) fn aligned(&self, start: u64, alignment: u64) -> bool {
        (start | self.length(start) | (self.at % PAGE_SIZE)) & (alignment - 1) == 0
    }

    /// Pins `pages` of it for a domain that is to map them.
    pub(super) fn acquire(&self, pages: Range<u64>) -> Result<(), Errno> {
        self.pages.acquire(pages).map_err(|error| {
            // Linux maps what it has pinned before it charges for it, and no IOMMU maps without a
            // right.
            let rights = self.prot.intersects(Prot::READ | Prot::WRITE);
            if error == Errno::ENOMEM && !rights { Errno::EINVAL } else { error }
        })
    }

    /// Maps it in `domain`, contiguous frames in one go. All or nothing.
    pub(super) fn map(&self, start: u64, domain: &dyn Domain, huge: bool) -> Result<(), Errno> {
        inject::site("area: batch")?;
        let sizes = if huge { u64::MAX } else { 2 * PAGE_SIZE - 1 } & domain.page_sizes();
        let (runs, prot) = ([(0, 0); BATCH], self.prot);
        let mut filler = Filler { domain, prot, sizes, iova: start, runs, waiting: 0 };
        let mut left = self.length(start);
        let mut skip = self.at % PAGE_SIZE;
        let mut result = Ok(());
        self.pages.frames(self.all_pages(start), &mut |pfn, count| {
            if result.is_ok() && left > 0 {
                let length = (count * PAGE_SIZE - skip).min(left);
                result = filler.add(pfn * PAGE_SIZE + skip, length);
                left -= length;
                skip = 0;
            }
        });
        let result = result.and_then(|()| filler.flush());
        if result.is_err() && filler.iova > start {
            domain.unmap(start, filler.iova - start);
        }
        result
    }
}

/// Runs of frames that a domain is given at once.
const BATCH: usize = 64;

/// Joins frames that follow each other before they are mapped.
struct Filler<'a> {
    domain: &'a dyn Domain,
    prot: Prot,
    sizes: u64,
    /// Up to here all is mapped.
    iova: u64,
    /// Physical addresses and bytes that wait for `iova`.
    runs: [(u64, u64); BATCH],
    /// How many.
    waiting: usize,
}

impl Filler<'_> {
    fn add(&mut self, physical: u64, length: u64) -> Result<(), Errno> {
        if let Some((first, bytes)) = self.runs[..self.waiting].last_mut()
            && *first + *bytes == physical
        {
            *bytes += length;
            return Ok(());
        }
        if self.waiting == BATCH {
            self.flush()?;
        }
        self.runs[self.waiting] = (physical, length);
        self.waiting += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let runs = &self.runs[..self.waiting];
        let (done, result) = self.domain.map_runs(self.iova, runs, self.prot, self.sizes);
        self.iova += done;
        self.waiting = 0;
        result
    }
}
