//! Dirty tracking: which pages devices wrote to.

abi_enum! {
    /// [`iommu_hwpt_set_dirty_tracking::flags`].
    pub enum iommufd_hwpt_set_dirty_tracking_flags: u32 {
        /// On; without it, off.
        IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1,
    }

    /// [`iommu_hwpt_get_dirty_bitmap::flags`].
    pub enum iommufd_hwpt_get_dirty_bitmap_flags: u32 {
        /// Leave the bits of the IOPTEs as they are.
        IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1,
    }
}

abi_struct! {
    /// `IOMMU_HWPT_SET_DIRTY_TRACKING`: turns dirty tracking of an HWPT on or off.
    ///
    /// `EOPNOTSUPP` when the HWPT cannot or the flag is not known.
    pub struct iommu_hwpt_set_dirty_tracking {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// On or off.
        pub flags: u32 => flags(&iommufd_hwpt_set_dirty_tracking_flags),
        /// The HWPT.
        pub hwpt_id: u32 => ID,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }

    /// `IOMMU_HWPT_GET_DIRTY_BITMAP`: ors the dirty bits of a range into the caller's bitmap and
    /// clears them.
    ///
    /// `EINVAL` while tracking is off or for a bad alignment.
    pub struct iommu_hwpt_get_dirty_bitmap {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The HWPT.
        pub hwpt_id: u32 => ID,
        /// Whether to clear.
        pub flags: u32 => flags(&iommufd_hwpt_get_dirty_bitmap_flags),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The IOVA of the first bit.
        pub iova: u64 => HEX,
        /// Bytes of the range.
        pub length: u64 => HEX,
        /// Bytes that one bit stands for.
        pub page_size: u64 => HEX,
        /// The caller's bitmap, of 64-bit words.
        pub data: u64 => POINTER,
    }
}
