//! The HWPT: one I/O page table of the hardware, the kernel's own or one that a user keeps in its
//! memory (nested), with each vendor's description of the latter.

use crate::Release;
use crate::selftest::iommu_hwpt_data_type_selftest;

abi_enum! {
    /// [`iommu_hwpt_alloc::flags`].
    pub enum iommufd_hwpt_alloc_flags: u32 {
        /// It shall be the parent of nested ones.
        IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0,
        /// Only devices that can track dirty pages may attach.
        IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1,
        /// `fault_id` is valid.
        IOMMU_HWPT_FAULT_ID_VALID = 1 << 2,
        /// It shall be attachable to PASIDs. `EOPNOTSUPP` where the IOMMU has none.
        IOMMU_HWPT_ALLOC_PASID = 1 << 3,
    }

    /// [`iommu_hwpt_vtd_s1::flags`].
    pub enum iommu_hwpt_vtd_s1_flags: u64 {
        /// Supervisor requests.
        IOMMU_VTD_S1_SRE = 1 << 0,
        /// The extended-access flag.
        IOMMU_VTD_S1_EAFE = 1 << 1,
        /// Write protection.
        IOMMU_VTD_S1_WPE = 1 << 2,
    }

    /// [`iommu_hwpt_alloc::data_type`]: what `data_uptr` points at.
    pub enum iommu_hwpt_data_type: u32 {
        /// Nothing.
        IOMMU_HWPT_DATA_NONE = 0,
        /// An [`iommu_hwpt_vtd_s1`].
        IOMMU_HWPT_DATA_VTD_S1 = 1,
        /// An [`iommu_hwpt_arm_smmuv3`].
        IOMMU_HWPT_DATA_ARM_SMMUV3 = 2,
        /// An [`iommu_hwpt_amd_guest`].
        IOMMU_HWPT_DATA_AMD_GUEST = 3,
    }
}

abi_struct! {
    /// Intel VT-d: a first-stage page table in the user's memory.
    pub struct iommu_hwpt_vtd_s1 {
        /// Attributes of its entries.
        pub flags: u64 => flags(&iommu_hwpt_vtd_s1_flags),
        /// The table's address.
        pub pgtbl_addr: u64 => HEX,
        /// Bits of an address that it translates.
        pub addr_width: u32 => DECIMAL,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }

    /// Arm SMMUv3: the first two words of a stream table entry.
    ///
    /// `EIO` for a word that is not legal or has a field that users may not set.
    pub struct iommu_hwpt_arm_smmuv3 {
        /// Little-endian (SMMUv3 specification, 5.2).
        pub ste: [u64; 2] => HEX,
    }

    /// AMD: a guest's device table entry.
    pub struct iommu_hwpt_amd_guest {
        /// As the guest wrote it.
        pub dte: [u64; 4] => HEX,
    }

    /// `IOMMU_HWPT_ALLOC`: makes an HWPT for a device: from an IOAS one that the kernel keeps
    /// equal to it, from a nesting parent or a vIOMMU one that the user keeps.
    ///
    /// `EOPNOTSUPP` for flags or data that the device's IOMMU does not know.
    pub struct iommu_hwpt_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// What it shall be good for.
        pub flags: u32 => flags(&iommufd_hwpt_alloc_flags),
        /// The device.
        pub dev_id: u32 => ID,
        /// The IOAS, nesting parent or vIOMMU.
        pub pt_id: u32 => ID,
        /// The new HWPT.
        pub out_hwpt_id: u32 => ID.out(),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// What `data_uptr` points at.
        pub data_type: u32 => one_of(&[&iommu_hwpt_data_type, &iommu_hwpt_data_type_selftest]).since(Release::new(6, 7)),
        /// Bytes there.
        pub data_len: u32 => DECIMAL.since(Release::new(6, 7)),
        /// The vendor's description of the page table.
        pub data_uptr: u64 => POINTER.since(Release::new(6, 7)),
        /// The fault queue that its faults go to.
        pub fault_id: u32 => ID.since(Release::new(6, 11)),
        /// Must be 0.
        pub __reserved2: u32 => RESERVED.since(Release::new(6, 11)),
    }
}
