//! The IOAS: a space of IOVAs and what is mapped in it.

abi_enum! {
    /// The `flags` of maps and copies.
    pub enum iommufd_ioas_map_flags: u32 {
        /// The caller chose the IOVA; without it the kernel does.
        IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
        /// Devices may write.
        IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
        /// Devices may read.
        IOMMU_IOAS_MAP_READABLE = 1 << 2,
    }
}

abi_struct! {
    /// `IOMMU_IOAS_ALLOC`: makes an empty IOAS.
    pub struct iommu_ioas_alloc {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// The new IOAS.
        pub out_ioas_id: u32 => ID.out(),
    }

    /// A range of IOVAs.
    pub struct iommu_iova_range {
        /// The first.
        pub start: u64 => HEX,
        /// The last, included.
        pub last: u64 => HEX,
    }

    /// `IOMMU_IOAS_IOVA_RANGES`: which IOVAs can be mapped now. Attaching a device may narrow
    /// them, detaching it may widen them.
    ///
    /// `EMSGSIZE` when the array is too short; `num_iovas` then says what it takes.
    pub struct iommu_ioas_iova_ranges {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// Elements of the array; back: how many ranges there are.
        pub num_iovas: u32 => DECIMAL.inout(),
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The caller's array of [`iommu_iova_range`].
        pub allowed_iovas: u64 => POINTER,
        /// What IOVAs and lengths of mappings must be a multiple of, in bytes.
        pub out_iova_alignment: u64 => DECIMAL.out(),
    }

    /// `IOMMU_IOAS_ALLOW_IOVAS`: promises that these ranges stay usable, in place of what was
    /// promised before. Devices that would narrow them can then not be attached, and the kernel
    /// chooses IOVAs inside them only.
    ///
    /// `EADDRINUSE` when a range is not usable now.
    pub struct iommu_ioas_allow_iovas {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// Elements of the array.
        pub num_iovas: u32 => DECIMAL,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The caller's array of [`iommu_iova_range`].
        pub allowed_iovas: u64 => POINTER,
    }

    /// `IOMMU_IOAS_MAP`: pins the caller's memory and maps it.
    ///
    /// `EEXIST` when something is mapped there, `EINVAL` for a bad alignment or a reserved
    /// range, `ENOSPC` when no free IOVA is found, `EFAULT` for bad memory, `ENOMEM` past the
    /// limit on pinned pages.
    pub struct iommu_ioas_map {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Rights, and who chooses the IOVA.
        pub flags: u32 => flags(&iommufd_ioas_map_flags),
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The first byte's address in the caller.
        pub user_va: u64 => POINTER,
        /// Bytes.
        pub length: u64 => HEX,
        /// Where it goes; back: where it went.
        pub iova: u64 => HEX.inout(),
    }

    /// `IOMMU_IOAS_NOIOMMU_GET_PA`: the physical address behind an IOVA, for devices that do DMA
    /// without an IOMMU.
    pub struct iommu_ioas_noiommu_get_pa {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Must be 0.
        pub flags: u32 => HEX,
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// Must be 0.
        pub __reserved: u32 => RESERVED,
        /// The IOVA, which must be mapped.
        pub iova: u64 => HEX,
        /// Most bytes to look at, not 0; back: bytes that are physically contiguous.
        pub length: u64 => HEX.inout(),
        /// The physical address.
        pub out_phys: u64 => HEX.out(),
    }

    /// `IOMMU_IOAS_MAP_FILE`: like [`iommu_ioas_map`], with a memfd's (or dma-buf's) pages.
    pub struct iommu_ioas_map_file {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Rights, and who chooses the IOVA.
        pub flags: u32 => flags(&iommufd_ioas_map_flags),
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// The caller's descriptor of the file.
        pub fd: i32 => FD,
        /// The first byte's offset in the file.
        pub start: u64 => HEX,
        /// Bytes.
        pub length: u64 => HEX,
        /// Where it goes; back: where it went.
        pub iova: u64 => HEX.inout(),
    }

    /// `IOMMU_IOAS_COPY`: maps in one IOAS what is mapped in another (or the same) one, sharing
    /// the pins.
    ///
    /// `ENOENT` when the source is not wholly mapped.
    pub struct iommu_ioas_copy {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// Rights, and who chooses the IOVA.
        pub flags: u32 => flags(&iommufd_ioas_map_flags),
        /// The IOAS to map in.
        pub dst_ioas_id: u32 => ID,
        /// The IOAS that has the mapping.
        pub src_ioas_id: u32 => ID,
        /// Bytes.
        pub length: u64 => HEX,
        /// Where it goes; back: where it went.
        pub dst_iova: u64 => HEX.inout(),
        /// Where it is.
        pub src_iova: u64 => HEX,
    }

    /// `IOMMU_IOAS_UNMAP`: unmaps every mapping in a range; 0 and `u64::MAX` for all there is.
    ///
    /// `ENOENT` when nothing is mapped there or the range would cut a mapping.
    pub struct iommu_ioas_unmap {
        /// Bytes of the struct.
        pub size: u32 => SIZE,
        /// The IOAS.
        pub ioas_id: u32 => ID,
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes; back: bytes that were unmapped.
        pub length: u64 => HEX.inout(),
    }
}
