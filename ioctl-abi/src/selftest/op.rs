//! `IOMMU_TEST_CMD`: one struct whose body's shape the field `op` decides.
//!
//! In C the body is a union of anonymous structs. Here it is plain words, and each operation's
//! member is a struct of its own ([`TestBody`]) that [`iommu_test_cmd::body`] reads and
//! [`iommu_test_cmd::set_body`] writes.

use zerocopy::IntoBytes;

use super::body::*;
use crate::layout::{AbiStruct, Layout};

/// Bytes of the body: those of the largest member, `dirty`.
pub const TEST_BODY_SIZE: usize = 48;

abi_struct! {
    /// `IOMMU_TEST_CMD`: one operation on the mock devices.
    pub struct iommu_test_cmd {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Which operation.
        pub op: u32 => one_of(&[&iommu_test_op]),
        /// The object that it is about; which kind depends on `op`.
        pub id: u32 => ID.inout(),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The union.
        pub body: [u64; TEST_BODY_SIZE / 8] => TEST_BODY.inout(),
        /// Nothing; it ends the struct's first release.
        pub last: u32 => HEX,
        /// Padding.
        pub __pad: u32 => PAD,
    }
}

impl iommu_test_cmd {
    /// The body as the operation `T` sees it.
    pub fn body<T: TestBody>(&self) -> T {
        const { assert!(size_of::<T>() <= TEST_BODY_SIZE) }
        let mut body = T::default();
        let len = size_of::<T>();
        body.as_mut_bytes().copy_from_slice(&self.body.as_bytes()[..len]);
        body
    }

    /// Puts `body` in; what of the union it does not cover stays.
    pub fn set_body<T: TestBody>(&mut self, body: &T) {
        const { assert!(size_of::<T>() <= TEST_BODY_SIZE) }
        self.body.as_mut_bytes()[..size_of::<T>()].copy_from_slice(body.as_bytes());
    }
}

/// A member of the union in [`iommu_test_cmd`].
pub trait TestBody: AbiStruct {
    /// The operation that it belongs to.
    const OP: u32;
}

/// One operation of `IOMMU_TEST_CMD`.
#[derive(Debug)]
pub struct TestOp {
    /// The value of `op`.
    pub op: u32,
    /// Its C name.
    pub name: &'static str,
    /// The name of the union's member, and its layout; an operation may use none.
    pub body: Option<(&'static str, &'static Layout)>,
}

impl TestOp {
    /// The operation numbered `op`.
    pub fn find(op: u32) -> Option<&'static Self> {
        TEST_OPS.iter().find(|found| found.op == op)
    }
}

/// Rows: `NAME = number, struct (member of the union);`, where the struct may be missing.
macro_rules! test_ops {
    ($(
        $(#[$attribute:meta])*
        $name:ident = $op:literal $(, $body:ident ($member:ident))?;
    )*) => {
        abi_enum! {
            /// [`iommu_test_cmd::op`].
            pub enum iommu_test_op: u32 {
                $($(#[$attribute])* $name = $op,)*
            }
        }

        /// All operations by number.
        pub static TEST_OPS: &[TestOp] = &[$(TestOp {
            op: $op,
            name: stringify!($name),
            body: test_ops!(@body $($body $member)?),
        },)*];

        $($(impl TestBody for $body {
            const OP: u32 = $name;
        })?)*
    };
    (@body) => { None };
    (@body $body:ident $member:ident) => {
        Some((stringify!($member), <$body as AbiStruct>::LAYOUT))
    };
}

test_ops! {
    /// Reserves IOVAs of the IOAS `id`.
    IOMMU_TEST_OP_ADD_RESERVED = 1, iommu_test_add_reserved (add_reserved);
    /// Makes a mock device and attaches it to the IOAS or HWPT `id`; back: `id` is the device.
    IOMMU_TEST_OP_MOCK_DOMAIN = 2, iommu_test_mock_domain (mock_domain);
    /// Checks that the HWPT `id` maps what the caller's memory is.
    IOMMU_TEST_OP_MD_CHECK_MAP = 3, iommu_test_check_map (check_map);
    /// Checks how often the caller's pages are pinned.
    IOMMU_TEST_OP_MD_CHECK_REFS = 4, iommu_test_check_refs (check_refs);
    /// Makes an access on the IOAS `id`.
    IOMMU_TEST_OP_CREATE_ACCESS = 5, iommu_test_create_access (create_access);
    /// Unpins pages of the access `id`.
    IOMMU_TEST_OP_DESTROY_ACCESS_PAGES = 6, iommu_test_destroy_access_pages (destroy_access_pages);
    /// Pins pages through the access `id`.
    IOMMU_TEST_OP_ACCESS_PAGES = 7, iommu_test_access_pages (access_pages);
    /// Copies through the access `id`.
    IOMMU_TEST_OP_ACCESS_RW = 8, iommu_test_access_rw (access_rw);
    /// Limits the memory that handling one batch of pages may take.
    IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT = 9, iommu_test_memory_limit (memory_limit);
    /// Moves the mock device `id` to another IOAS or HWPT.
    IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE = 10, iommu_test_mock_domain_replace (mock_domain_replace);
    /// Moves the access `id` to another IOAS.
    IOMMU_TEST_OP_ACCESS_REPLACE_IOAS = 11, iommu_test_access_replace_ioas (access_replace_ioas);
    /// Like `IOMMU_TEST_OP_MOCK_DOMAIN`, with flags for the device.
    IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS = 12, iommu_test_mock_domain_flags (mock_domain_flags);
    /// Marks pages of the HWPT `id` dirty.
    IOMMU_TEST_OP_DIRTY = 13, iommu_test_dirty (dirty);
    /// Checks an IOTLB entry of the nested HWPT `id`.
    IOMMU_TEST_OP_MD_CHECK_IOTLB = 14, iommu_test_check_iotlb (check_iotlb);
    /// Raises a page fault.
    IOMMU_TEST_OP_TRIGGER_IOPF = 15, iommu_test_trigger_iopf (trigger_iopf);
    /// Checks a cache entry of the device `id`.
    IOMMU_TEST_OP_DEV_CHECK_CACHE = 16, iommu_test_check_dev_cache (check_dev_cache);
    /// Raises an event of a vIOMMU.
    IOMMU_TEST_OP_TRIGGER_VEVENT = 17, iommu_test_trigger_vevent (trigger_vevent);
    /// Attaches a PASID of the mock device `id`.
    IOMMU_TEST_OP_PASID_ATTACH = 18, iommu_test_pasid_attach (pasid_attach);
    /// Moves a PASID of the mock device `id`.
    IOMMU_TEST_OP_PASID_REPLACE = 19, iommu_test_pasid_replace (pasid_replace);
    /// Detaches a PASID of the mock device `id`.
    IOMMU_TEST_OP_PASID_DETACH = 20, iommu_test_pasid_detach (pasid_detach);
    /// Checks which HWPT a PASID of the mock device `id` is attached to.
    IOMMU_TEST_OP_PASID_CHECK_HWPT = 21, iommu_test_pasid_check (pasid_check);
    /// Makes a dma-buf; its descriptor is the ioctl's result.
    IOMMU_TEST_OP_DMABUF_GET = 22, iommu_test_dmabuf_get (dmabuf_get);
    /// Takes a dma-buf's memory away, or gives it back.
    IOMMU_TEST_OP_DMABUF_REVOKE = 23, iommu_test_dmabuf_revoke (dmabuf_revoke);
}
