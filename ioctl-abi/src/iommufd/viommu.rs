//! vIOMMUs: a VM's slice of an IOMMU, its devices and its hardware queues.

use crate::Release;
use crate::selftest::{iommu_hw_queue_type_selftest, iommu_viommu_type_selftest};

abi_enum! {
    /// The `type` of [`iommu_viommu_alloc`].
    pub enum iommu_viommu_type: u32 {
        /// Not used yet.
        IOMMU_VIOMMU_TYPE_DEFAULT = 0,
        /// Arm SMMUv3.
        IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1,
        /// Arm SMMUv3 with NVIDIA's Tegra241 CMDQV: backed by a VINTF whose HYP_OWN is 0.
        IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2,
    }

    /// The `type` of [`iommu_hw_queue_alloc`].
    pub enum iommu_hw_queue_type: u32 {
        /// Not used yet.
        IOMMU_HW_QUEUE_TYPE_DEFAULT = 0,
        /// A VCMDQ of Tegra241 CMDQV: indices are taken upwards from 0 and given back downwards,
        /// the length is a power of two from 32 bytes, the base is a multiple of it.
        IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1,
    }
}

abi_struct! {
    /// What a vIOMMU for Tegra241 CMDQV returns: where to `mmap` page 0 of its VINTF.
    pub struct iommu_viommu_tegra241_cmdqv {
        /// The offset for `mmap` on the iommufd.
        pub out_vintf_mmap_offset: u64 => HEX.out(),
        /// Bytes.
        pub out_vintf_mmap_length: u64 => HEX.out(),
    }

    /// `IOMMU_VIOMMU_ALLOC`: makes a vIOMMU out of a device's IOMMU and a nesting parent.
    ///
    /// `EOPNOTSUPP` for a type that the device's IOMMU does not know.
    pub struct iommu_viommu_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// What it shall be.
        pub r#type: u32 => one_of(&[&iommu_viommu_type, &iommu_viommu_type_selftest]),
        /// A device behind the IOMMU.
        pub dev_id: u32 => ID,
        /// The nesting parent.
        pub hwpt_id: u32 => ID,
        /// The new vIOMMU.
        pub out_viommu_id: u32 => ID.out(),
        /// Bytes at `data_uptr`.
        pub data_len: u32 => DECIMAL.since(Release::new(6, 17)),
        /// Must be 0.
        pub __reserved: u32 => RESERVED.since(Release::new(6, 17)),
        /// The vendor's struct.
        pub data_uptr: u64 => POINTER.since(Release::new(6, 17)),
    }

    /// `IOMMU_VDEVICE_ALLOC`: makes a device known to a vIOMMU by the id that the VM uses.
    ///
    /// `EEXIST` when the device has one or the id is taken.
    pub struct iommu_vdevice_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The vIOMMU.
        pub viommu_id: u32 => ID,
        /// The device.
        pub dev_id: u32 => ID,
        /// The new vDEVICE.
        pub out_vdevice_id: u32 => ID.out(),
        /// The VM's id: a stream id (SMMUv3), a device id (AMD), a requester id (VT-d).
        pub virt_id: u64 => HEX,
    }

    /// `IOMMU_HW_QUEUE_ALLOC`: gives the hardware a queue in guest memory, which is pinned.
    pub struct iommu_hw_queue_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// The vIOMMU.
        pub viommu_id: u32 => ID,
        /// What it shall be.
        pub r#type: u32 => one_of(&[&iommu_hw_queue_type, &iommu_hw_queue_type_selftest]),
        /// Which one of its type.
        pub index: u32 => DECIMAL,
        /// The new queue.
        pub out_hw_queue_id: u32 => ID.out(),
        /// Its address in the guest, an IOVA of the nesting parent.
        pub nesting_parent_iova: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
    }
}
