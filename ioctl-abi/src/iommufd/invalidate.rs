//! Invalidation: what a user must tell after it changed a page table that it keeps itself.

use crate::selftest::iommu_hwpt_invalidate_data_type_selftest;

abi_enum! {
    /// [`iommu_hwpt_invalidate::data_type`].
    pub enum iommu_hwpt_invalidate_data_type: u32 {
        /// [`iommu_hwpt_vtd_s1_invalidate`]s.
        IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0,
        /// [`iommu_viommu_arm_smmuv3_invalidate`]s.
        IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1,
    }

    /// [`iommu_hwpt_vtd_s1_invalidate::flags`].
    pub enum iommu_hwpt_vtd_s1_invalidate_flags: u32 {
        /// Only leaf entries changed.
        IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0,
    }
}

abi_struct! {
    /// Intel VT-d: a range of a first-stage table changed; 0 and `u64::MAX` pages for all of it.
    pub struct iommu_hwpt_vtd_s1_invalidate {
        /// The first address, a multiple of 4 KiB.
        pub addr: u64 => HEX,
        /// Pages of 4 KiB.
        pub npages: u64 => HEX,
        /// How far up the levels it goes.
        pub flags: u32 => flags(&iommu_hwpt_vtd_s1_invalidate_flags),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }

    /// Arm SMMUv3: a command for the command queue.
    ///
    /// `EIO` for commands that are no invalidation or not legal.
    pub struct iommu_viommu_arm_smmuv3_invalidate {
        /// Little-endian.
        pub cmd: [u64; 2] => HEX,
    }

    /// `IOMMU_HWPT_INVALIDATE`: an array of invalidations for a nested HWPT or a vIOMMU. An
    /// empty array asks whether the type is known.
    pub struct iommu_hwpt_invalidate {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The nested HWPT, or the vIOMMU.
        pub hwpt_id: u32 => ID,
        /// The caller's array.
        pub data_uptr: u64 => POINTER,
        /// What its elements are.
        pub data_type: u32 => one_of(&[
            &iommu_hwpt_invalidate_data_type, &iommu_hwpt_invalidate_data_type_selftest,
        ]),
        /// Bytes of an element.
        pub entry_len: u32 => DECIMAL,
        /// Elements; back: how many were done.
        pub entry_num: u32 => DECIMAL.inout(),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }
}
