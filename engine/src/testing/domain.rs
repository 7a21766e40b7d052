//! A domain that is a map, and panics at what an IOAS must not do.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::domain::{DirtySink, Domain, Prot};
use crate::{Errno, inject};

/// A domain. What is mapped is kept as it was mapped, piece by piece.
pub struct TestDomain {
    aperture: RangeInclusive<u64>,
    page_sizes: u64,
    mapped: Mutex<BTreeMap<u64, (u64, u64, Prot)>>,
    calls: AtomicU64,
}

impl TestDomain {
    /// One with an aperture and a bitmap of page sizes.
    pub fn new(aperture: RangeInclusive<u64>, page_sizes: u64) -> Arc<Self> {
        let (mapped, calls) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { aperture, page_sizes, mapped, calls })
    }

    /// How many calls of map there were.
    pub fn map_calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Bytes that are mapped.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped.lock().values().map(|(_, length, _)| length).sum()
    }
}

impl Domain for TestDomain {
    fn aperture(&self) -> RangeInclusive<u64> {
        self.aperture.clone()
    }

    fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    fn map(
        &self,
        iova: u64,
        physical: u64,
        length: u64,
        prot: Prot,
        page_sizes: u64,
    ) -> Result<(), Errno> {
        inject::site("test domain: map")?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let granule = 1 << self.page_sizes.trailing_zeros();
        assert_ne!(page_sizes & granule, 0, "the granularity is always allowed");
        assert_eq!((iova | physical | length) & (granule - 1), 0, "misaligned");
        assert!(length > 0);
        let last = iova + (length - 1);
        assert!(self.aperture.contains(&iova) && self.aperture.contains(&last));
        let mut mapped = self.mapped.lock();
        let before = mapped.range(..=last).next_back();
        assert!(before.is_none_or(|(at, (_, l, _))| at + (l - 1) < iova), "mapped twice");
        mapped.insert(iova, (physical, length, prot));
        Ok(())
    }

    fn unmap(&self, iova: u64, length: u64) {
        let mut mapped = self.mapped.lock();
        let last = iova + (length - 1);
        let pieces: Vec<_> = mapped
            .range(..=last)
            .filter(|(at, (_, l, _))| *at + (l - 1) >= iova)
            .map(|(&at, &piece)| (at, piece))
            .collect();
        let mut bytes = 0;
        for (at, (physical, piece, prot)) in pieces {
            mapped.remove(&at);
            let end = at + (piece - 1);
            if at < iova {
                mapped.insert(at, (physical, iova - at, prot));
            }
            if end > last {
                mapped.insert(last + 1, (physical + (last + 1 - at), end - last, prot));
            }
            bytes += end.min(last) - at.max(iova) + 1;
        }
        assert_eq!(bytes, length, "something of what is unmapped was not mapped");
    }

    fn translate(&self, iova: u64) -> Option<u64> {
        let mapped = self.mapped.lock();
        let (at, (physical, length, _)) = mapped.range(..=iova).next_back()?;
        (iova - at < *length).then(|| physical + (iova - at))
    }

    fn read_dirty(&self, _: u64, _: u64, _: bool, _: &mut DirtySink<'_>) {}

    fn set_dirty_tracking(&self, _: bool) -> Result<(), Errno> {
        Ok(())
    }
}
