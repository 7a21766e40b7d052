//! Which IOVAs may be used: reserved and allowed ranges, and the alignment that domains and
//! accesses ask for.

use std::ops::RangeInclusive;

use crate::Errno;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;

use super::{Owner, State};

pub(super) fn overlap(a: &RangeInclusive<u64>, b: &RangeInclusive<u64>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

impl Ioas {
    /// Keeps `ranges` from being mapped as long as `owner` asks for it: a device's reserved
    /// regions, or the selftest's. All or nothing; `EADDRINUSE` when one is mapped or was allowed.
    pub fn reserve(&self, owner: Owner, ranges: &[RangeInclusive<u64>]) -> Result<(), Errno> {
        self.lock().reserve(owner, ranges)
    }

    /// Gives back all that `owner` reserved.
    pub fn unreserve(&self, owner: Owner) {
        self.lock().unreserve(owner);
    }

    /// What IOVAs and lengths must be multiples of.
    pub fn iova_alignment(&self) -> u64 {
        self.lock().alignment
    }

    /// What may be mapped, by rising start, and the alignment: `IOMMU_IOAS_IOVA_RANGES`.
    pub fn usable(&self) -> (Vec<RangeInclusive<u64>>, u64) {
        let state = self.lock();
        (state.usable(), state.alignment)
    }

    /// Replaces the ranges that must stay usable; they are sorted and apart. `EADDRINUSE` when one
    /// is reserved now.
    pub(crate) fn allow(&self, allowed: Vec<RangeInclusive<u64>>) -> Result<(), Errno> {
        let mut state = self.lock();
        let taken = |range| state.reserved.iter().any(|(_, reserved)| overlap(reserved, range));
        if allowed.iter().any(taken) {
            return Err(Errno::EADDRINUSE);
        }
        // What touches is one: a mapping may lie across the border.
        state.allowed = Vec::with_capacity(allowed.len());
        for range in allowed {
            match state.allowed.last_mut() {
                Some(before) if before.end().checked_add(1) == Some(*range.start()) => {
                    *before = *before.start()..=*range.end();
                }
                _ => state.allowed.push(range),
            }
        }
        Ok(())
    }

    /// `IOMMU_OPTION_HUGE_PAGES`.
    pub fn huge_pages(&self) -> bool {
        self.lock().huge_pages
    }

    /// Sets [`Ioas::huge_pages`]. Without it all is mapped, and must be aligned, by page:
    /// `EADDRINUSE` when some mapping is not, `EINVAL` when domains map something already.
    pub(crate) fn set_huge_pages(&self, huge: bool) -> Result<(), Errno> {
        let mut state = self.lock();
        if state.huge_pages == huge {
            return Ok(());
        }
        if !huge && !state.domains.is_empty() && !state.areas.is_empty() {
            return Err(Errno::EINVAL);
        }
        state.huge_pages = huge;
        let alignment = state.wanted_alignment(None);
        if let Err(error) = state.check_alignment(alignment) {
            state.huge_pages = !huge;
            return Err(error);
        }
        state.alignment = alignment;
        Ok(())
    }
}

impl State {
    pub(super) fn reserve(
        &mut self,
        owner: Owner,
        ranges: &[RangeInclusive<u64>],
    ) -> Result<(), Errno> {
        let before = self.reserved.len();
        for range in ranges {
            if let Err(error) = self.reserve_one(owner, range) {
                let taken = self.reserved.split_off(before);
                self.give_back(taken);
                return Err(error);
            }
        }
        Ok(())
    }

    fn reserve_one(&mut self, owner: Owner, range: &RangeInclusive<u64>) -> Result<(), Errno> {
        if self.first_in(range).is_some() || self.allowed.iter().any(|a| overlap(a, range)) {
            return Err(Errno::EADDRINUSE);
        }
        inject::site("iopt: reserved range")?;
        self.reserved.push((owner, range.clone()));
        self.gaps.take(range);
        Ok(())
    }

    pub(super) fn unreserve(&mut self, owner: Owner) {
        let gone = self.reserved.extract_if(.., |(of, _)| *of == owner).collect();
        self.give_back(gone);
    }

    /// Frees what of `gone` no other reserved range covers. No area does.
    fn give_back(&mut self, gone: Vec<(Owner, RangeInclusive<u64>)>) {
        let mut free: Vec<_> = gone.into_iter().map(|(_, range)| range).collect();
        for (_, kept) in &self.reserved {
            free = free.iter().flat_map(|range| without(range, kept)).flatten().collect();
        }
        for range in union(free) {
            self.gaps.give(&range);
        }
    }

    /// What may be mapped: everything but the reserved ranges, by rising start.
    fn usable(&self) -> Vec<RangeInclusive<u64>> {
        let reserved = union(self.reserved.iter().map(|(_, range)| range.clone()).collect());
        let mut usable = Vec::with_capacity(reserved.len() + 1);
        let mut next = Some(0);
        for range in reserved {
            if let Some(start) = next.filter(|start| start < range.start()) {
                usable.push(start..=range.start() - 1);
            }
            next = range.end().checked_add(1);
        }
        usable.extend(next.map(|start| start..=u64::MAX));
        usable
    }

    /// `EADDRINUSE` when a mapping does not suit `alignment`.
    pub(super) fn check_alignment(&self, alignment: u64) -> Result<(), Errno> {
        let suits = alignment <= self.alignment
            || self.areas.iter().all(|(&start, area)| area.aligned(start, alignment));
        if suits { Ok(()) } else { Err(Errno::EADDRINUSE) }
    }

    /// The alignment that domains (with `with` as one more), accesses and the huge page option ask
    /// for together.
    pub(super) fn wanted_alignment(&self, with: Option<u64>) -> u64 {
        let domains = self.domains.iter().map(|a| granule(a.domain.page_sizes()));
        let accesses = self.accesses.iter().map(super::Access::alignment);
        let option = if self.huge_pages { 1 } else { PAGE_SIZE };
        domains.chain(accesses).chain(with).chain([option]).max().unwrap_or(1)
    }
}

/// The smallest page of a `page_sizes` bitmap.
pub(super) fn granule(page_sizes: u64) -> u64 {
    1 << page_sizes.trailing_zeros().min(63)
}

/// The parts of `range` before and after `cut`.
fn without(
    range: &RangeInclusive<u64>,
    cut: &RangeInclusive<u64>,
) -> [Option<RangeInclusive<u64>>; 2] {
    if !overlap(range, cut) {
        return [Some(range.clone()), None];
    }
    let before = (range.start() < cut.start()).then(|| *range.start()..=cut.start() - 1);
    let after = (range.end() > cut.end()).then(|| cut.end() + 1..=*range.end());
    [before, after]
}

/// Sorted ranges that cover the same and do not touch.
fn union(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut union: Vec<RangeInclusive<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match union.last_mut() {
            Some(last) if last.end().checked_add(1).is_none_or(|next| *range.start() <= next) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => union.push(range),
        }
    }
    union
}
