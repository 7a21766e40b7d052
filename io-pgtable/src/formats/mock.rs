//! The page tables of the iommufd selftest's mock IOMMU.
//!
//! Source: `drivers/iommu/iommufd/iommufd_test.h` of Linux 7.3: MOCK_PAGE_SIZE is 2 KiB and
//! MOCK_HUGE_PAGE_SIZE 512 of those. The suites see entries only through the uAPI, so the words are
//! AMD v1's with addresses that count 2 KiB granules.

use crate::{AmdGranule, Config, Format};

/// The mock's format: AMD v1 with 2 KiB granules.
pub type MockV1 = AmdGranule<11>;

impl MockV1 {
    /// MOCK_IOMMUPT_DEFAULT: every size that the format has.
    pub fn default_pages() -> Config {
        // Entries of at most 64 GiB, as the real one says in VFIO_IOMMU_GET_INFO.
        let config = Self::config();
        Config { page_sizes: config.page_sizes & ((1 << 37) - 1), ..config }
    }

    /// MOCK_IOMMUPT_HUGE: pages of 4 KiB, of two entries, and of MOCK_HUGE_PAGE_SIZE. The dirty tests count on
    /// a 2 MiB page being two.
    pub fn huge_pages() -> Config {
        Config {
            page_sizes: 1 << (Self::GRANULE_LG2 + 1) | 1 << (Self::GRANULE_LG2 + 9),
            ..Self::config()
        }
    }
}
