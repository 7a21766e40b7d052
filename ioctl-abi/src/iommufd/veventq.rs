//! Events of a vIOMMU, to be shown to its VM.

use crate::selftest::iommu_veventq_type_selftest;

abi_enum! {
    /// [`iommufd_vevent_header::flags`].
    pub enum iommu_veventq_flag: u32 {
        /// Events were lost here; no data follows.
        IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1 << 0,
    }

    /// The `type` of [`iommu_veventq_alloc`].
    pub enum iommu_veventq_type: u32 {
        /// Not used yet.
        IOMMU_VEVENTQ_TYPE_DEFAULT = 0,
        /// [`iommu_vevent_arm_smmuv3`]s.
        IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1,
        /// [`iommu_vevent_tegra241_cmdqv`]s.
        IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2,
    }
}

abi_struct! {
    /// What each event in the queue begins with.
    pub struct iommufd_vevent_header {
        /// Whether events were lost.
        pub flags: u32 => flags(&iommu_veventq_flag).out(),
        /// The event's number, from 0 to `i32::MAX` and round again. A gap counts lost events.
        pub sequence: u32 => DECIMAL.out(),
    }

    /// Arm SMMUv3: an event record with the VM's stream id (specification, 7.3).
    pub struct iommu_vevent_arm_smmuv3 {
        /// Little-endian.
        pub evt: [u64; 4] => HEX.out(),
    }

    /// NVIDIA Tegra241 CMDQV: the LVCMDQ_ERR_MAP registers.
    pub struct iommu_vevent_tegra241_cmdqv {
        /// Little-endian, a bit for each logical queue in error.
        pub lvcmdq_err_map: [u64; 2] => HEX.out(),
    }

    /// `IOMMU_VEVENTQ_ALLOC`: makes a queue for one type of a vIOMMU's events.
    ///
    /// `EEXIST` when the vIOMMU has one of this type.
    pub struct iommu_veventq_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// The vIOMMU.
        pub viommu_id: u32 => ID,
        /// Which events.
        pub r#type: u32 => one_of(&[&iommu_veventq_type, &iommu_veventq_type_selftest]),
        /// How many it holds before it loses some.
        pub veventq_depth: u32 => DECIMAL,
        /// The new object.
        pub out_veventq_id: u32 => ID.out(),
        /// The caller's new descriptor, to read events.
        pub out_veventq_fd: u32 => FD.out(),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }
}
