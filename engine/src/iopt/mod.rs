//! The I/O page table of an IOAS: which IOVAs may be used, what is mapped at them, and the domains
//! and accesses that see it.
//!
//! - [`ranges`]: reserved and allowed IOVAs, alignment.
//! - `gaps`: the free ones, to choose from.
//! - `area`, [`map`]: what is mapped, and mapping, copying and unmapping it.
//! - [`domains`]: domains that mirror the mappings.
//! - [`access`]: kernel users (external drivers without an IOMMU, hardware queues) that pin pages
//!   or copy bytes by IOVA.
//! - [`report`]: what is pinned where, for DMA and for people.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Domain;
use crate::quota::Quota;

pub mod access;
mod area;
pub mod domains;
mod gaps;
pub mod map;
pub mod ranges;
pub mod report;
#[cfg(test)]
mod tests;

pub use access::{Access, AccessId, AccessUser, Frames};
pub(crate) use area::{Area, Piece};

use gaps::Gaps;

/// Who asked for a reserved range, so that it can be given back by who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(u64);

impl Owner {
    /// One that nobody else has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the lock of an IOAS guards.
pub(crate) struct State {
    /// Areas by their first IOVA. They do not overlap.
    areas: BTreeMap<u64, Area>,
    /// What neither an area nor a reserved range covers.
    gaps: Gaps,
    /// Ranges that must not be mapped, with who asked for it. They may overlap.
    reserved: Vec<(Owner, RangeInclusive<u64>)>,
    /// Ranges that must stay usable: sorted, apart; empty for no promise.
    allowed: Vec<RangeInclusive<u64>>,
    domains: Vec<Attached>,
    accesses: Vec<Access>,
    /// IOVAs and lengths are multiples of this.
    alignment: u64,
    huge_pages: bool,
    /// What the user whose areas these are may have.
    quota: Option<Arc<Quota>>,
}

struct Attached {
    domain: Arc<dyn Domain>,
    owner: Owner,
}

impl Default for State {
    fn default() -> Self {
        Self {
            areas: BTreeMap::new(),
            gaps: Gaps::default(),
            reserved: Vec::new(),
            allowed: Vec::new(),
            domains: Vec::new(),
            accesses: Vec::new(),
            alignment: 1,
            huge_pages: true,
            quota: None,
        }
    }
}

impl State {
    /// Nothing is mapped; areas are counted in `quota`.
    pub(crate) fn within(quota: Option<Arc<Quota>>) -> Self {
        Self { quota, ..Self::default() }
    }

    /// The area that has `iova`, with its start.
    fn area_at(&self, iova: u64) -> Option<(u64, &Area)> {
        let (&start, area) = self.areas.range(..=iova).next_back()?;
        (area.last >= iova).then_some((start, area))
    }

    /// The first area that overlaps `range`.
    fn first_in(&self, range: &RangeInclusive<u64>) -> Option<(u64, &Area)> {
        self.area_at(*range.start()).or_else(|| {
            let (&start, area) = self.areas.range(range.clone()).next()?;
            Some((start, area))
        })
    }

    /// The areas that cover `range` without a hole, each with its start and its part of the range;
    /// nothing when there is a hole.
    fn contiguous(&self, range: &RangeInclusive<u64>) -> Option<Vec<Part<'_>>> {
        let (parts, whole) = self.up_to_hole(range);
        whole.then_some(parts)
    }

    /// The parts of areas in `range` up to the first hole, and whether there is none.
    fn up_to_hole(&self, range: &RangeInclusive<u64>) -> (Vec<Part<'_>>, bool) {
        let mut parts = Vec::new();
        let mut at = *range.start();
        let Some((first, _)) = self.area_at(at) else { return (parts, false) };
        for (&start, area) in self.areas.range(first..) {
            if start > at {
                break;
            }
            let last = area.last.min(*range.end());
            parts.push(Part { start, area, iovas: at..=last });
            if last == *range.end() {
                return (parts, true);
            }
            at = last + 1;
        }
        (parts, false)
    }
}

/// A range's part of an area.
struct Part<'a> {
    start: u64,
    area: &'a Area,
    iovas: RangeInclusive<u64>,
}
