//! The members of the union in [`iommu_test_cmd`], one for each operation.

use super::mock::*;
#[cfg(doc)]
use super::op::*;

abi_struct! {
    /// Body of [`IOMMU_TEST_OP_ADD_RESERVED`].
    pub struct iommu_test_add_reserved {
        /// The first IOVA.
        pub start: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
    }

    /// Body of [`IOMMU_TEST_OP_MOCK_DOMAIN`].
    pub struct iommu_test_mock_domain {
        /// The mock device, for the other operations.
        pub out_stdev_id: u32 => ID.out(),
        /// The HWPT that it is attached to.
        pub out_hwpt_id: u32 => ID.out(),
        /// The device as iommufd binds it, for iommufd's commands.
        pub out_idev_id: u32 => ID.out(),
    }

    /// Body of [`IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS`].
    pub struct iommu_test_mock_domain_flags {
        /// The mock device, for the other operations.
        pub out_stdev_id: u32 => ID.out(),
        /// The HWPT that it is attached to.
        pub out_hwpt_id: u32 => ID.out(),
        /// The device as iommufd binds it, for iommufd's commands.
        pub out_idev_id: u32 => ID.out(),
        /// What the device can do.
        pub dev_flags: u32 => flags(&mock_flags_device),
    }

    /// Body of [`IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`].
    pub struct iommu_test_mock_domain_replace {
        /// The new IOAS or HWPT.
        pub pt_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_MD_CHECK_MAP`].
    pub struct iommu_test_check_map {
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
        /// The memory that should be there.
        pub uptr: u64 => POINTER,
    }

    /// Body of [`IOMMU_TEST_OP_MD_CHECK_REFS`].
    pub struct iommu_test_check_refs {
        /// Bytes.
        pub length: u64 => HEX,
        /// The first page.
        pub uptr: u64 => POINTER,
        /// How often each should be pinned.
        pub refs: u32 => DECIMAL,
        /// Padding.
        pub __pad: u32 => PAD,
    }

    /// Body of [`IOMMU_TEST_OP_CREATE_ACCESS`].
    pub struct iommu_test_create_access {
        /// The caller's new descriptor of the access.
        pub out_access_fd: u32 => FD.out(),
        /// What it is for.
        pub flags: u32 => flags(&mock_flags_access_create),
    }

    /// Body of [`IOMMU_TEST_OP_DESTROY_ACCESS_PAGES`].
    pub struct iommu_test_destroy_access_pages {
        /// Which pinned pages.
        pub access_pages_id: u32 => DECIMAL,
    }

    /// Body of [`IOMMU_TEST_OP_ACCESS_PAGES`].
    pub struct iommu_test_access_pages {
        /// What for.
        pub flags: u32 => flags(&mock_flags_access),
        /// Which pinned pages they are.
        pub out_access_pages_id: u32 => DECIMAL.out(),
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
        /// The memory that should be there.
        pub uptr: u64 => POINTER,
    }

    /// Body of [`IOMMU_TEST_OP_ACCESS_RW`].
    pub struct iommu_test_access_rw {
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
        /// The caller's memory.
        pub uptr: u64 => POINTER,
        /// Which way, and how.
        pub flags: u32 => flags(&mock_access_rw),
        /// Padding.
        pub __pad: u32 => PAD,
    }

    /// Body of [`IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT`].
    pub struct iommu_test_memory_limit {
        /// Bytes; 0 for the usual.
        pub limit: u32 => DECIMAL,
    }

    /// Body of [`IOMMU_TEST_OP_ACCESS_REPLACE_IOAS`].
    pub struct iommu_test_access_replace_ioas {
        /// The new IOAS.
        pub ioas_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_DIRTY`].
    pub struct iommu_test_dirty {
        /// Those of `IOMMU_HWPT_GET_DIRTY_BITMAP`.
        pub flags: u32 => flags(&crate::iommufd::iommufd_hwpt_get_dirty_bitmap_flags),
        /// Padding.
        pub __pad: u32 => PAD,
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
        /// Bytes of a page.
        pub page_size: u64 => HEX,
        /// A bitmap: which pages.
        pub uptr: u64 => POINTER,
        /// How many were newly marked.
        pub out_nr_dirty: u64 => DECIMAL.out(),
    }

    /// Body of [`IOMMU_TEST_OP_MD_CHECK_IOTLB`].
    pub struct iommu_test_check_iotlb {
        /// Which entry.
        pub id: u32 => DECIMAL,
        /// What it should hold.
        pub iotlb: u32 => HEX,
    }

    /// Body of [`IOMMU_TEST_OP_TRIGGER_IOPF`].
    pub struct iommu_test_trigger_iopf {
        /// The device.
        pub dev_id: u32 => ID,
        /// The PASID, or all ones for none.
        pub pasid: u32 => HEX,
        /// The page request group.
        pub grpid: u32 => DECIMAL,
        /// What the device wants.
        pub perm: u32 => flags(&crate::iommufd::iommu_hwpt_pgfault_perm),
        /// Where.
        pub addr: u64 => HEX,
    }

    /// Body of [`IOMMU_TEST_OP_DEV_CHECK_CACHE`].
    pub struct iommu_test_check_dev_cache {
        /// Which entry.
        pub id: u32 => DECIMAL,
        /// What it should hold.
        pub cache: u32 => HEX,
    }

    /// Body of [`IOMMU_TEST_OP_TRIGGER_VEVENT`].
    pub struct iommu_test_trigger_vevent {
        /// The device.
        pub dev_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_PASID_ATTACH`].
    pub struct iommu_test_pasid_attach {
        /// The PASID.
        pub pasid: u32 => DECIMAL,
        /// The IOAS or HWPT.
        pub pt_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_PASID_REPLACE`].
    pub struct iommu_test_pasid_replace {
        /// The PASID.
        pub pasid: u32 => DECIMAL,
        /// The new IOAS or HWPT.
        pub pt_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_PASID_DETACH`].
    pub struct iommu_test_pasid_detach {
        /// The PASID.
        pub pasid: u32 => DECIMAL,
    }

    /// Body of [`IOMMU_TEST_OP_PASID_CHECK_HWPT`].
    pub struct iommu_test_pasid_check {
        /// The PASID.
        pub pasid: u32 => DECIMAL,
        /// The HWPT that it should be attached to; 0 for none.
        pub hwpt_id: u32 => ID,
    }

    /// Body of [`IOMMU_TEST_OP_DMABUF_GET`].
    pub struct iommu_test_dmabuf_get {
        /// Bytes.
        pub length: u32 => DECIMAL,
        /// Those of `open(2)` for the new descriptor.
        pub open_flags: u32 => HEX,
    }

    /// Body of [`IOMMU_TEST_OP_DMABUF_REVOKE`].
    pub struct iommu_test_dmabuf_revoke {
        /// The caller's descriptor.
        pub dmabuf_fd: i32 => FD,
        /// Take (1) or give back (0).
        pub revoked: u32 => DECIMAL,
    }
}
