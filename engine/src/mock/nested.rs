//! First stages of the mock IOMMU: no table, but IOTLB entries that can be invalidated.

use std::sync::atomic::{AtomicU32, Ordering};

use ioctl_abi::selftest::{
    IOMMU_HWPT_DATA_SELFTEST, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, IOMMU_TEST_INVALIDATE_FLAG_ALL,
    MOCK_NESTED_DOMAIN_IOTLB_ID_MAX, MOCK_NESTED_DOMAIN_IOTLB_NUM, iommu_hwpt_invalidate_selftest,
    iommu_hwpt_selftest,
};

use crate::driver::{HwptFlags, NestedDomain, UserArray, UserData, ViommuHandle};
use crate::{Errno, inject};

/// A nested domain. Its first stage maps every IOVA to the same address of the parent.
pub struct MockNested {
    iotlb: [AtomicU32; MOCK_NESTED_DOMAIN_IOTLB_NUM as usize],
    viommu: Option<ViommuHandle>,
}

/// The end of the first version of the driver's data.
const DATA_LEAST: usize = 4;

impl MockNested {
    /// A nested domain whose IOTLB entries hold what `data` says, in `viommu` if there is one.
    ///
    /// `EOPNOTSUPP` for flags but PASID's and for another type of data.
    pub(super) fn new(
        flags: HwptFlags,
        data: &UserData<'_>,
        viommu: Option<ViommuHandle>,
    ) -> Result<Self, Errno> {
        let flags_fit = HwptFlags::PASID.contains(flags);
        if !flags_fit || data.data_type() != IOMMU_HWPT_DATA_SELFTEST {
            return Err(Errno::EOPNOTSUPP);
        }
        let data: iommu_hwpt_selftest = data.read(IOMMU_HWPT_DATA_SELFTEST, DATA_LEAST)?;
        inject::site("mock: nested domain")?;
        Ok(Self { iotlb: std::array::from_fn(|_| AtomicU32::new(data.iotlb)), viommu })
    }

    /// What IOTLB entry `index` holds; 0 once it was invalidated.
    pub fn iotlb(&self, index: u32) -> Option<u32> {
        Some(self.iotlb.get(index as usize)?.load(Ordering::Relaxed))
    }

    /// The vIOMMU that it is part of.
    pub(super) fn viommu(&self) -> Option<&ViommuHandle> {
        self.viommu.as_ref()
    }

    fn handle(&self, request: &iommu_hwpt_invalidate_selftest) -> Result<(), Errno> {
        if request.flags & !IOMMU_TEST_INVALIDATE_FLAG_ALL != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        // The index counts even where all entries go.
        if request.iotlb_id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX {
            return Err(Errno::EINVAL);
        }
        if request.flags & IOMMU_TEST_INVALIDATE_FLAG_ALL != 0 {
            self.iotlb.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
            return Ok(());
        }
        self.iotlb[request.iotlb_id as usize].store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl NestedDomain for MockNested {
    fn invalidates(&self) -> bool {
        true
    }

    fn invalidate(&self, requests: &UserArray<'_>) -> (u32, Result<(), Errno>) {
        const TYPE: u32 = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
        super::viommu::each_request(requests, TYPE, |request| self.handle(request))
    }
}
