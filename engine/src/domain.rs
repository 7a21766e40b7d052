//! A domain: one I/O page table of a simulated IOMMU, as an IOAS fills it.

use std::ops::RangeInclusive;

use crate::Errno;

bitflags::bitflags! {
    /// What a mapping allows, with the uAPI's meaning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Prot: u32 {
        /// Devices may read.
        const READ = 1;
        /// Devices may write.
        const WRITE = 2;
        /// Coherent with the CPU's caches.
        const CACHE = 4;
    }
}

/// A run of dirty bytes: IOVA and length.
pub type DirtySink<'a> = dyn FnMut(u64, u64) + 'a;

/// A paging domain. Its page table is the only place that says what is mapped where.
///
/// Physical addresses are PFNs times the engine's page size. All ranges are inside the aperture.
pub trait Domain: Send + Sync {
    /// First and last IOVA that it can map, both inclusive.
    fn aperture(&self) -> RangeInclusive<u64>;

    /// The page sizes that it supports, as a bitmap (bit 12 for 4 KiB). The lowest is its
    /// granularity.
    fn page_sizes(&self) -> u64;

    /// Maps `length` bytes at `iova` to `physical` in the largest pages that fit and that
    /// `page_sizes` (a mask) allows. `ENOMEM` when a table can't be had: nothing is mapped then.
    fn map(
        &self,
        iova: u64,
        physical: u64,
        length: u64,
        prot: Prot,
        page_sizes: u64,
    ) -> Result<(), Errno>;

    /// Maps `runs`, each a physical address and bytes, one after another from `iova` on, as
    /// [`Domain::map`] does. Answers how many bytes are mapped, which are whole runs, and what went
    /// wrong with the next one.
    fn map_runs(
        &self,
        iova: u64,
        runs: &[(u64, u64)],
        prot: Prot,
        page_sizes: u64,
    ) -> (u64, Result<(), Errno>) {
        map_each(runs, |done, physical, length| {
            self.map(iova + done, physical, length, prot, page_sizes)
        })
    }

    /// Unmaps `length` bytes at `iova`; both must be bounds of what was mapped. Cuts larger pages.
    fn unmap(&self, iova: u64, length: u64);

    /// The physical address at `iova`.
    fn translate(&self, iova: u64) -> Option<u64>;

    /// Reports dirty pages of a range; `clear` makes them clean.
    fn read_dirty(&self, iova: u64, length: u64, clear: bool, each: &mut DirtySink<'_>);

    /// Whether writes are tracked.
    fn set_dirty_tracking(&self, enable: bool) -> Result<(), Errno>;

    /// Makes all mappings cache coherent from now on, if it can.
    fn enforce_cache_coherency(&self) -> bool {
        false
    }

    /// The table as DMA walks it; none when the simulated IOMMU has no device side.
    fn walker(&self) -> Option<&dyn crate::dma::Walk> {
        None
    }
}

/// Calls `map` (bytes before, physical address, bytes) for each of `runs` until one fails. Answers as
/// [`Domain::map_runs`] does.
pub(crate) fn map_each(
    runs: &[(u64, u64)],
    mut map: impl FnMut(u64, u64, u64) -> Result<(), Errno>,
) -> (u64, Result<(), Errno>) {
    let mut done = 0;
    for &(physical, length) in runs {
        if let Err(error) = map(done, physical, length) {
            return (done, Err(error));
        }
        done += length;
    }
    (done, Ok(()))
}
