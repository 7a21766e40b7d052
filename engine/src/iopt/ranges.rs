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

    /// `IOMMU_OPTION_HUGE_PAGES`.
    pub fn huge_pages(&self) -> bool {
        self.lock().huge_pages
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
                self.reserved.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    fn reserve_one(&mut self, owner: Owner, range: &RangeInclusive<u64>) -> Result<(), Errno> {
        if self.allowed.iter().any(|allowed| overlap(allowed, range)) {
            return Err(Errno::EADDRINUSE);
        }
        inject::site("iopt: reserved range")?;
        self.reserved.push((owner, range.clone()));
        Ok(())
    }

    pub(super) fn unreserve(&mut self, owner: Owner) {
        self.reserved.retain(|(of, _)| *of != owner);
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
