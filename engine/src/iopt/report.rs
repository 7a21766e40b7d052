//! What is pinned where: for DMA, which turns IOPTEs back into bytes, and for people.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::Context;
use crate::dma::{Extent, Frames, LookUp};
use crate::inspect::IoasReport;
use crate::ioas::Ioas;
use crate::memory::{MmId, PAGE_SIZE};
use crate::pages::{Pages, Source};

use super::{Area, State};

impl Frames for Ioas {
    fn locked(&self, with: &mut dyn FnMut(&LookUp<'_>)) {
        let state = self.lock();
        with(&|iova| state.extent(iova));
    }
}

impl Ioas {
    /// First and last IOVA of each area, in order.
    pub fn each_area(&self, each: &mut dyn FnMut(u64, u64)) {
        for (&start, area) in &self.lock().areas {
            each(start, area.last);
        }
    }
}

impl State {
    /// The pages of each area.
    pub(crate) fn each_pages(&self, each: &mut dyn FnMut(&Arc<Pages>)) {
        for area in self.areas.values() {
            each(&area.pages);
        }
    }

    /// Each area with its first IOVA, in order.
    pub(crate) fn each_area(&self, each: &mut dyn FnMut(u64, &Area)) {
        self.areas.iter().for_each(|(&start, area)| each(start, area));
    }

    /// All that a report says of the IOAS itself.
    pub(crate) fn summary(&self) -> IoasReport {
        IoasReport {
            domains: self.domains.len(),
            accesses: self.accesses.len(),
            alignment: self.alignment,
            huge_pages: self.huge_pages,
            ..IoasReport::default()
        }
    }

    fn extent(&self, iova: u64) -> Option<Extent> {
        let (start, area) = self.area_at(iova)?;
        let byte = area.at + (iova - start);
        let run = area.pages.pinned_around(byte / PAGE_SIZE)?;
        // The bytes of the area's pages that both the area and the run have.
        let from = (run.pages.start * PAGE_SIZE).max(area.at);
        let to = (run.pages.end * PAGE_SIZE).min(area.at + area.length(start));
        Some(Extent {
            first: start + (from - area.at),
            last: start + (to - 1 - area.at),
            offset: run.at * PAGE_SIZE + (from - run.pages.start * PAGE_SIZE),
            pin: run.pin,
        })
    }
}

impl Context {
    /// All IOASes of the context, with their ids.
    pub(crate) fn each_ioas(&self, mut each: impl FnMut(&Arc<Ioas>)) {
        self.objects().each::<Ioas>(|_, ioas| each(ioas));
    }

    /// The frames that are pinned by this context: (first PFN, how many follow). A frame that was
    /// pinned for two mappings comes twice; one that several areas share through a copy, once.
    pub fn each_pinned(&self, each: &mut dyn FnMut(u64, u64)) {
        let mut seen = Vec::new();
        self.each_ioas(|ioas| {
            for area in ioas.lock().areas.values() {
                let pages = Arc::as_ptr(&area.pages);
                if let Err(at) = seen.binary_search(&pages) {
                    seen.insert(at, pages);
                    area.pages.each_pinned(&mut |_, pfn, count| each(pfn, count));
                }
            }
        });
    }

    /// Something happened to addresses of an mm (`what`, such as "unmapped"): warns about each
    /// mapping made before `when` whose pages no longer are what the process sees there. Answers how
    /// many.
    ///
    /// Takes IOAS locks: call it from a thread that no [`crate::memory::AddressSpace::pin`] waits
    /// for.
    pub fn memory_changed(
        &self,
        mm: MmId,
        addresses: &Range<u64>,
        when: Instant,
        what: &str,
    ) -> usize {
        let mut warned = 0;
        self.each_ioas(|ioas| {
            for (&start, area) in &ioas.lock().areas {
                let Source::Memory { memory, address } = area.pages.source() else { continue };
                // What was mapped since is what the process has put there since.
                if area.pages.origin().at > when {
                    continue;
                }
                let va = address + area.at;
                let end = va + area.length(start);
                if memory.id() != mm || va >= addresses.end || end <= addresses.start {
                    continue;
                }
                warned += 1;
                tracing::warn!(
                    owner = memory.describe(),
                    va = format_args!("{:#x}", va.max(addresses.start)),
                    length =
                        format_args!("{:#x}", end.min(addresses.end) - va.max(addresses.start)),
                    ioas = ioas.id(),
                    iova = format_args!("{:#x}", start + addresses.start.saturating_sub(va)),
                    call = area.pages.origin().call,
                    "memory that is mapped in an IOAS was {what}"
                );
            }
        });
        warned
    }

    /// Files have lost pages that are pinned ([`crate::memory::Pin::lost`]): warns about each mapping
    /// of such pages. Answers how many.
    ///
    /// Takes IOAS locks: call it from a thread that no [`crate::memory::AddressSpace::pin`] waits
    /// for.
    pub fn pages_lost(&self) -> usize {
        let mut warned = 0;
        self.each_ioas(|ioas| {
            for (&start, area) in &ioas.lock().areas {
                let bytes = area.at..area.at + area.length(start);
                let pages = bytes.start / PAGE_SIZE..bytes.end.div_ceil(PAGE_SIZE);
                let mut lost: Vec<Range<u64>> = Vec::new();
                area.pages.each_lost(pages, &mut |pages| match lost.last_mut() {
                    Some(last) if last.end == pages.start => last.end = pages.end,
                    _ => lost.push(pages),
                });
                for pages in lost {
                    // Both ends of the area may be inside of a page.
                    let from = (pages.start * PAGE_SIZE).max(bytes.start);
                    let to = (pages.end * PAGE_SIZE).min(bytes.end);
                    warned += 1;
                    let (va, offset) = area.pages.place(from);
                    tracing::warn!(
                        owner = area.pages.describe(),
                        pid = area.pages.pid().unwrap_or(area.pages.origin().caller),
                        va,
                        offset,
                        length = format_args!("{:#x}", to - from),
                        ioas = ioas.id(),
                        iova = format_args!("{:#x}", start + (from - bytes.start)),
                        call = area.pages.origin().call,
                        "memory that is mapped in an IOAS was taken from its file, which was truncated \
                         or punched: the device keeps the old pages"
                    );
                }
            }
        });
        warned
    }
}
