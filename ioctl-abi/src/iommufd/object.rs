//! Commands that concern objects of every kind: destroying, options, the VFIO compatibility's
//! IOAS and whom pins are charged to.

abi_enum! {
    /// [`iommu_option::option_id`].
    pub enum iommufd_option: u32 {
        /// Whom pinned pages are charged to: 0 the user, 1 the process. Of the whole context, so
        /// that `object_id` is 0. Setting it takes `CAP_SYS_RESOURCE`.
        IOMMU_OPTION_RLIMIT_MODE = 0,
        /// 1: an IOPTE may cover many contiguous pages. 0: one page each. Of one IOAS.
        IOMMU_OPTION_HUGE_PAGES = 1,
    }

    /// [`iommu_option::op`].
    pub enum iommufd_option_ops: u16 {
        /// Take `val64`.
        IOMMU_OPTION_OP_SET = 0,
        /// Return it in `val64`.
        IOMMU_OPTION_OP_GET = 1,
    }

    /// [`iommu_vfio_ioas::op`].
    pub enum iommufd_vfio_ioas_op: u16 {
        /// Which IOAS is it? `ENODEV` when there is none.
        IOMMU_VFIO_IOAS_GET = 0,
        /// Make it this one.
        IOMMU_VFIO_IOAS_SET = 1,
        /// Make it none.
        IOMMU_VFIO_IOAS_CLEAR = 2,
    }
}

abi_struct! {
    /// `IOMMU_DESTROY`: destroys an object of any kind.
    ///
    /// `ENOENT` when there is no such object, `EBUSY` while another object or a device uses it.
    pub struct iommu_destroy {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The object.
        pub id: u32 => ID,
    }

    /// `IOMMU_OPTION`: sets or gets one value of a context or an object.
    ///
    /// `EOPNOTSUPP` for an option that is not known, `EPERM` without the right to set it.
    pub struct iommu_option {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Which one.
        pub option_id: u32 => one_of(&[&iommufd_option]),
        /// Set or get.
        pub op: u16 => one_of(&[&iommufd_option_ops]),
        /// Must be 0.
        pub __reserved: u16 => RESERVED,
        /// The object, or 0 for the context's options.
        pub object_id: u32 => ID,
        /// The value.
        pub val64: u64 => DECIMAL.inout(),
    }

    /// `IOMMU_VFIO_IOAS`: which IOAS the VFIO ioctls on this context work on.
    pub struct iommu_vfio_ioas {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The IOAS, given or returned.
        pub ioas_id: u32 => ID.inout(),
        /// What to do.
        pub op: u16 => one_of(&[&iommufd_vfio_ioas_op]),
        /// Must be 0.
        pub __reserved: u16 => RESERVED,
    }

    /// `IOMMU_IOAS_CHANGE_PROCESS`: charges every pinned page of the context to the calling
    /// process from now on.
    ///
    /// `EINVAL` when something was mapped by address rather than by file; then nothing changes.
    pub struct iommu_ioas_change_process {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
    }
}
