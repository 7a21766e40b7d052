//! Paging domains of the mock IOMMU. The IOPTEs are the only record of what is mapped.

use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

use io_pgtable::{Error, MockV1, Prot as TableProt, Step, Table};
use ioctl_abi::selftest::{
    IOMMU_HWPT_DATA_SELFTEST, MOCK_APERTURE_LAST, MOCK_APERTURE_START, MOCK_HUGE_PAGE_SIZE,
    MOCK_IOMMUPT_DEFAULT, MOCK_IOMMUPT_HUGE, MOCK_PAGE_SIZE, iommu_hwpt_selftest,
};
use parking_lot::Mutex;

use super::table_memory::TableMemory;
use crate::dma::{Leaf, Ports, Walk, WalkFault};
use crate::domain::{DirtySink, Domain, Prot, map_each};
use crate::driver::{HwptFlags, PagingDomain, UserData};
use crate::memory::PAGE_SIZE;
use crate::{Errno, inject};

/// A paging domain.
pub struct MockDomain {
    table: Mutex<Table<MockV1, TableMemory>>,
    page_sizes: u64,
    aperture: RangeInclusive<u64>,
    tracks_dirty: bool,
    tracking: AtomicBool,
    ports: Ports,
}

/// The last IOVA of a table of huge pages: all that its levels reach.
const HUGE_APERTURE_LAST: u64 = (1 << 38) - 1;

/// The end of `iotlb`: the user need not choose the page-table type.
const DATA_LEAST: usize = 4;

impl MockDomain {
    /// An empty domain. `data` may choose the page-table type. `EOPNOTSUPP` for unknown flags,
    /// data and types, `ENOMEM`.
    pub(super) fn new(flags: HwptFlags, data: Option<&UserData<'_>>) -> Result<Self, Errno> {
        let known = HwptFlags::NEST_PARENT | HwptFlags::DIRTY_TRACKING | HwptFlags::PASID;
        if !known.contains(flags) {
            return Err(Errno::EOPNOTSUPP);
        }
        let table_type = match data {
            None => MOCK_IOMMUPT_DEFAULT,
            Some(data) if data.data_type() != IOMMU_HWPT_DATA_SELFTEST => {
                return Err(Errno::EOPNOTSUPP);
            }
            Some(data) => {
                let data: iommu_hwpt_selftest = data.read(IOMMU_HWPT_DATA_SELFTEST, DATA_LEAST)?;
                data.pagetable_type
            }
        };
        let config = match table_type {
            MOCK_IOMMUPT_DEFAULT => MockV1::default_pages(),
            MOCK_IOMMUPT_HUGE => MockV1::huge_pages(),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        inject::site("mock: domain")?;
        let table = Table::new(TableMemory::default(), config).map_err(|_| Errno::ENOMEM)?;
        // What it says and what its table can do are not the same: small pages are not offered.
        let (page_sizes, aperture) = match table_type {
            MOCK_IOMMUPT_HUGE => (MOCK_HUGE_PAGE_SIZE | PAGE_SIZE, 0..=HUGE_APERTURE_LAST),
            _ => (table.page_sizes(), MOCK_APERTURE_START..=MOCK_APERTURE_LAST),
        };
        Ok(Self {
            page_sizes,
            aperture,
            table: Mutex::new(table),
            tracks_dirty: flags.contains(HwptFlags::DIRTY_TRACKING),
            tracking: AtomicBool::new(false),
            ports: Ports::default(),
        })
    }

    /// `domain`, if it is the mock's.
    pub fn of(domain: &dyn PagingDomain) -> Option<&Self> {
        (domain as &dyn Any).downcast_ref()
    }

    /// Whether writes are being tracked.
    pub fn is_tracking(&self) -> bool {
        self.tracking.load(Ordering::Relaxed)
    }

    /// Marks the page at `iova` dirty, as a write of a device does, even one that may only be read.
    /// False when none is mapped.
    pub fn mark_dirty(&self, iova: u64) -> bool {
        self.table.lock().mark_dirty(iova).is_ok()
    }
}

fn table_prot(prot: Prot) -> TableProt {
    let mut table = TableProt::empty();
    table.set(TableProt::READ, prot.contains(Prot::READ));
    table.set(TableProt::WRITE, prot.contains(Prot::WRITE));
    table
}

impl Domain for MockDomain {
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
        self.map_runs(iova, &[(physical, length)], prot, page_sizes).1
    }

    fn map_runs(
        &self,
        iova: u64,
        runs: &[(u64, u64)],
        prot: Prot,
        page_sizes: u64,
    ) -> (u64, Result<(), Errno>) {
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return (0, Err(Errno::EINVAL));
        }
        // The table's own unit serves where a page of the CPU is asked for.
        let (prot, page_sizes) = (table_prot(prot), page_sizes | MOCK_PAGE_SIZE);
        let mut table = self.table.lock();
        map_each(runs, |done, physical, length| {
            let mapped = table.map(iova + done, physical, length, prot, page_sizes);
            mapped.map_err(|error| match error {
                Error::NoMemory => Errno::ENOMEM,
                Error::Exists { .. } => Errno::EADDRINUSE,
                Error::OutputTooLarge { .. } | Error::OutOfRange { .. } => Errno::ERANGE,
                _ => Errno::EINVAL,
            })
        })
    }

    fn unmap(&self, iova: u64, length: u64) {
        let mut table = self.table.lock();
        let mut result = table.unmap(iova, length);
        if let Err(Error::InsideEntry { .. }) = result {
            let ends = [Some(iova), iova.checked_add(length)];
            let cut = ends.into_iter().flatten().try_for_each(|end| table.cut(end).map(drop));
            result = cut.and_then(|()| table.unmap(iova, length));
        }
        drop(table);
        if let Err(error) = result {
            tracing::error!(iova, length, %error, "unmap of a mock domain");
        }
        self.ports.invalidate(iova, length);
    }

    fn translate(&self, iova: u64) -> Option<u64> {
        self.table.lock().translate(iova).ok().map(|found| found.pa)
    }

    fn read_dirty(&self, iova: u64, length: u64, clear: bool, each: &mut DirtySink<'_>) {
        let mut any = false;
        let table = self.table.lock();
        let read = table.read_dirty(iova, length, clear, |iova, length| {
            any = true;
            each(iova, length);
        });
        drop(table);
        if let Err(error) = read {
            tracing::error!(iova, length, %error, "dirty read of a mock domain");
        }
        if clear && any {
            self.ports.invalidate(iova, length);
        }
    }

    fn set_dirty_tracking(&self, enable: bool) -> Result<(), Errno> {
        if !self.tracks_dirty {
            return Err(Errno::EOPNOTSUPP);
        }
        self.tracking.store(enable, Ordering::Relaxed);
        self.ports.invalidate_all();
        Ok(())
    }

    fn walker(&self) -> Option<&dyn Walk> {
        Some(self)
    }
}

impl PagingDomain for MockDomain {
    fn tracks_dirty(&self) -> bool {
        self.tracks_dirty
    }
}

impl Walk for MockDomain {
    fn walk(&self, iova: u64, write: bool) -> Result<Leaf, WalkFault> {
        let wanted = if write { TableProt::WRITE } else { TableProt::READ };
        let found = self.table.lock().access(iova, wanted).map_err(|error| match error {
            Error::OutOfRange { .. } => WalkFault::OutOfRange,
            Error::Denied { .. } => WalkFault::Permission,
            _ => WalkFault::NotPresent,
        })?;
        let inside = (1 << found.lg2) - 1;
        let mut prot = Prot::empty();
        prot.set(Prot::READ, found.prot.contains(TableProt::READ));
        prot.set(Prot::WRITE, found.prot.contains(TableProt::WRITE));
        Ok(Leaf { iova: iova & !inside, last: iova | inside, physical: found.pa & !inside, prot })
    }

    fn steps(&self, iova: u64) -> Result<Vec<Step>, WalkFault> {
        let walk = self.table.lock().walk(iova).map_err(|error| match error {
            Error::OutOfRange { .. } => WalkFault::OutOfRange,
            _ => WalkFault::NotPresent,
        })?;
        Ok(walk.steps)
    }

    fn ports(&self) -> &Ports {
        &self.ports
    }
}
