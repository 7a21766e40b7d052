//! The mock IOMMU: its constants and the vendor payloads of its commands.

abi_enum! {
    /// The mock page tables' formats ([`iommu_hwpt_selftest::pagetable_type`]).
    pub enum mock_iommupt: u32 {
        /// Pages of 2 KiB.
        MOCK_IOMMUPT_DEFAULT = 0,
        /// Pages of many sizes.
        MOCK_IOMMUPT_HUGE = 1,
    }

    /// The mock IOMMU's dimensions with [`MOCK_IOMMUPT_DEFAULT`].
    pub enum mock_dimensions: u64 {
        /// The first IOVA.
        MOCK_APERTURE_START = 1 << 24,
        /// The last IOVA.
        MOCK_APERTURE_LAST = (1 << 31) - 1,
        /// Bytes of a page.
        MOCK_PAGE_SIZE = 2048,
        /// Bytes of a huge page.
        MOCK_HUGE_PAGE_SIZE = 512 * MOCK_PAGE_SIZE,
    }

    /// The `flags` of `IOMMU_TEST_OP_ACCESS_PAGES`.
    pub enum mock_flags_access: u32 {
        /// The pages shall be writable.
        MOCK_FLAGS_ACCESS_WRITE = 1 << 0,
        /// Called by a fuzzer: the memory's contents are not checked.
        MOCK_FLAGS_ACCESS_SYZ = 1 << 16,
    }

    /// The `flags` of `IOMMU_TEST_OP_ACCESS_RW`.
    pub enum mock_access_rw: u32 {
        /// Write to the IOAS; without it, read.
        MOCK_ACCESS_RW_WRITE = 1 << 0,
        /// Go page by page.
        MOCK_ACCESS_RW_SLOW_PATH = 1 << 2,
    }

    /// The `flags` of `IOMMU_TEST_OP_CREATE_ACCESS`.
    pub enum mock_flags_access_create: u32 {
        /// It will pin pages.
        MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES = 1 << 0,
    }

    /// The `dev_flags` of `IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS`.
    pub enum mock_flags_device: u32 {
        /// The device cannot track dirty pages.
        MOCK_FLAGS_DEVICE_NO_DIRTY = 1 << 0,
        /// The device has PASIDs.
        MOCK_FLAGS_DEVICE_PASID = 1 << 2,
    }

    /// The IOTLB entries of a nested mock HWPT.
    pub enum mock_nested_domain_iotlb: u32 {
        /// The last one's index.
        MOCK_NESTED_DOMAIN_IOTLB_ID_MAX = 3,
        /// How many.
        MOCK_NESTED_DOMAIN_IOTLB_NUM = 4,
    }

    /// The cache entries of a mock device.
    pub enum mock_dev_cache: u32 {
        /// The last one's index.
        MOCK_DEV_CACHE_ID_MAX = 3,
        /// How many.
        MOCK_DEV_CACHE_NUM = 4,
    }

    /// PASIDs of a mock device.
    pub enum mock_pasid: u32 {
        /// One whose replacement the mock device refuses at first.
        IOMMU_TEST_PASID_RESERVED = 1024,
        /// Bits.
        MOCK_PASID_WIDTH = 20,
    }

    /// The mock's kind of `IOMMU_GET_HW_INFO` data.
    pub enum iommu_hw_info_type_selftest: u32 {
        /// An [`iommu_test_hw_info`].
        IOMMU_HW_INFO_TYPE_SELFTEST = 0xfeedbeef,
    }

    /// What the mock's registers and caches hold at first.
    pub enum mock_values: u32 {
        /// [`iommu_test_hw_info::test_reg`].
        IOMMU_HW_INFO_SELFTEST_REGVAL = 0xdeadbeef,
        /// An IOTLB entry.
        IOMMU_TEST_IOTLB_DEFAULT = 0xbadbeef,
        /// A device's cache entry.
        IOMMU_TEST_DEV_CACHE_DEFAULT = 0xbaddad,
    }

    /// The mock's kind of `IOMMU_HWPT_ALLOC` data.
    pub enum iommu_hwpt_data_type_selftest: u32 {
        /// An [`iommu_hwpt_selftest`].
        IOMMU_HWPT_DATA_SELFTEST = 0xdead,
    }

    /// The mock's kinds of `IOMMU_HWPT_INVALIDATE` data.
    pub enum iommu_hwpt_invalidate_data_type_selftest: u32 {
        /// For a nested HWPT: [`iommu_hwpt_invalidate_selftest`]s.
        IOMMU_HWPT_INVALIDATE_DATA_SELFTEST = 0xdeadbeef,
        /// For a nested HWPT: a type that does not exist.
        IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID = 0xdadbeef,
        /// For a vIOMMU: [`iommu_viommu_invalidate_selftest`]s.
        IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST = 0xdeadbeef,
        /// For a vIOMMU: a type that does not exist.
        IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID = 0xdadbeef,
    }

    /// The mock's kind of vIOMMU.
    pub enum iommu_viommu_type_selftest: u32 {
        /// One that takes an [`iommu_viommu_selftest`].
        IOMMU_VIOMMU_TYPE_SELFTEST = 0xdeadbeef,
    }

    /// The mock's kind of event queue.
    pub enum iommu_veventq_type_selftest: u32 {
        /// [`iommu_viommu_event_selftest`]s.
        IOMMU_VEVENTQ_TYPE_SELFTEST = 0xbeefbeef,
    }

    /// The mock's kind of hardware queue.
    pub enum iommu_hw_queue_type_selftest: u32 {
        /// One that does nothing.
        IOMMU_HW_QUEUE_TYPE_SELFTEST = 0xdeadbeef,
    }

    /// The hardware queues of a mock vIOMMU.
    pub enum mock_hw_queues: u32 {
        /// How many it has.
        IOMMU_TEST_HW_QUEUE_MAX = 2,
    }

    /// The `flags` of both invalidations.
    pub enum iommu_test_invalidate_flags: u32 {
        /// All entries; the index is not looked at.
        IOMMU_TEST_INVALIDATE_FLAG_ALL = 1 << 0,
    }
}

abi_struct! {
    /// The mock's `IOMMU_GET_HW_INFO` data.
    pub struct iommu_test_hw_info {
        /// Zero.
        pub flags: u32 => HEX.out(),
        /// [`IOMMU_HW_INFO_SELFTEST_REGVAL`].
        pub test_reg: u32 => HEX.out(),
    }

    /// The mock's `IOMMU_HWPT_ALLOC` data.
    pub struct iommu_hwpt_selftest {
        /// What the IOTLB entries shall hold.
        pub iotlb: u32 => HEX,
        /// The format of its page table.
        pub pagetable_type: u32 => one_of(&[&mock_iommupt]),
    }

    /// The mock's `IOMMU_HWPT_INVALIDATE` data for a nested HWPT.
    pub struct iommu_hwpt_invalidate_selftest {
        /// One entry or all.
        pub flags: u32 => flags(&iommu_test_invalidate_flags),
        /// The entry.
        pub iotlb_id: u32 => DECIMAL,
    }

    /// The mock's `IOMMU_VIOMMU_ALLOC` data.
    pub struct iommu_viommu_selftest {
        /// Any number.
        pub in_data: u32 => HEX,
        /// The same number.
        pub out_data: u32 => HEX.out(),
        /// The offset for `mmap` on the iommufd.
        pub out_mmap_offset: u64 => HEX.out(),
        /// Bytes.
        pub out_mmap_length: u64 => HEX.out(),
    }

    /// The mock's `IOMMU_HWPT_INVALIDATE` data for a vIOMMU.
    pub struct iommu_viommu_invalidate_selftest {
        /// One entry or all.
        pub flags: u32 => flags(&iommu_test_invalidate_flags),
        /// The vDEVICE by the VM's id.
        pub vdev_id: u32 => HEX,
        /// The entry.
        pub cache_id: u32 => DECIMAL,
    }

    /// An event of a mock vIOMMU.
    pub struct iommu_viommu_event_selftest {
        /// The vDEVICE by the VM's id.
        pub virt_id: u32 => HEX.out(),
    }
}
