//! What a device's IOMMU can do: in general, and in its vendor's registers.

use crate::Release;
use crate::selftest::iommu_hw_info_type_selftest;

abi_enum! {
    /// [`iommu_hw_info_vtd::flags`].
    pub enum iommu_hw_info_vtd_flags: u32 {
        /// A nesting parent must not have read-only mappings.
        IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0,
    }

    /// [`iommu_hw_info_arm_smmuv3::flags`].
    pub enum iommu_hw_info_arm_smmuv3_flags: u32 {
        /// TLBI and CFGI, with their SYNC, must be issued twice.
        IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI = 1 << 0,
    }

    /// [`iommu_hw_info::out_data_type`].
    pub enum iommu_hw_info_type: u32 {
        /// Out: nothing.
        IOMMU_HW_INFO_TYPE_NONE = 0,
        /// In: the device's own.
        IOMMU_HW_INFO_TYPE_DEFAULT = 0,
        /// An [`iommu_hw_info_vtd`].
        IOMMU_HW_INFO_TYPE_INTEL_VTD = 1,
        /// An [`iommu_hw_info_arm_smmuv3`].
        IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2,
        /// An [`iommu_hw_info_tegra241_cmdqv`].
        IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3,
        /// An [`iommu_hw_info_amd`].
        IOMMU_HW_INFO_TYPE_AMD = 4,
    }

    /// [`iommu_hw_info::out_capabilities`].
    pub enum iommufd_hw_capabilities: u64 {
        /// Dirty tracking works.
        IOMMU_HW_CAP_DIRTY_TRACKING = 1 << 0,
        /// PASIDs know the right to execute.
        IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1,
        /// PASIDs know privileged mode.
        IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2,
        /// ATS cannot be used; without this bit it may be on.
        IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3,
    }

    /// [`iommu_hw_info::flags`].
    pub enum iommufd_hw_info_flags: u32 {
        /// `out_data_type` says on input which data the caller wants.
        IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0,
    }
}

abi_struct! {
    /// Intel VT-d.
    pub struct iommu_hw_info_vtd {
        /// Errata.
        pub flags: u32 => flags(&iommu_hw_info_vtd_flags).out(),
        /// Zero.
        pub __reserved: u32 => RESERVED.out(),
        /// The capability register (VT-d specification, 11.4.2).
        pub cap_reg: u64 => HEX.out(),
        /// The extended capability register (11.4.3).
        pub ecap_reg: u64 => HEX.out(),
    }

    /// Arm SMMUv3: raw identification registers (specification, 6.3.1 to 6.3.6).
    pub struct iommu_hw_info_arm_smmuv3 {
        /// Errata.
        pub flags: u32 => flags(&iommu_hw_info_arm_smmuv3_flags).out(),
        /// Zero.
        pub __reserved: u32 => RESERVED.out(),
        /// Features.
        pub idr: [u32; 6] => HEX.out(),
        /// Implementer and version.
        pub iidr: u32 => HEX.out(),
        /// Architecture version.
        pub aidr: u32 => HEX.out(),
    }

    /// NVIDIA Tegra241 CMDQV: fields of its PARAM register.
    pub struct iommu_hw_info_tegra241_cmdqv {
        /// Zero.
        pub flags: u32 => HEX.out(),
        /// Bits 3:0.
        pub version: u8 => DECIMAL.out(),
        /// Bits 7:4: the number of VCMDQs as a power of two.
        pub log2vcmdqs: u8 => DECIMAL.out(),
        /// Bits 15:12: the number of stream-id replacements as a power of two.
        pub log2vsids: u8 => DECIMAL.out(),
        /// Zero.
        pub __reserved: u8 => RESERVED.out(),
    }

    /// AMD: raw feature registers.
    pub struct iommu_hw_info_amd {
        /// MMIO offset 0x30.
        pub efr: u64 => HEX.out(),
        /// MMIO offset 0x1a0.
        pub efr2: u64 => HEX.out(),
    }

    /// `IOMMU_GET_HW_INFO`: asks what the IOMMU behind a device can do.
    ///
    /// The caller's buffer gets as much of the vendor's struct as fits, and zeros behind it.
    pub struct iommu_hw_info {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// How to read the rest.
        pub flags: u32 => flags(&iommufd_hw_info_flags),
        /// The device.
        pub dev_id: u32 => ID,
        /// Bytes of the caller's buffer; back: bytes that the kernel has.
        pub data_len: u32 => DECIMAL.inout(),
        /// The caller's buffer.
        pub data_uptr: u64 => POINTER,
        /// Which vendor's struct is in the buffer; with
        /// [`IOMMU_HW_INFO_FLAG_INPUT_TYPE`] also which one is wanted (the header's
        /// `in_data_type`, a union with this).
        pub out_data_type: u32 => one_of(&[&iommu_hw_info_type, &iommu_hw_info_type_selftest]).inout().alias("in_data_type"),
        /// Bits of a PASID; 0 for none.
        pub out_max_pasid_log2: u8 => DECIMAL.out().since(Release::new(6, 15)),
        /// Must be 0.
        pub __reserved: [u8; 3] => RESERVED,
        /// What it can do, whoever made it.
        pub out_capabilities: u64 =>
            flags(&iommufd_hw_capabilities).out().since(Release::new(6, 7)),
    }
}
