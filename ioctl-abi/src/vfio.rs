//! The VFIO container's ioctls (`include/uapi/linux/vfio.h`) that iommufd's compatibility layer
//! answers, on `/dev/vfio/vfio` and on `/dev/iommu`.
//!
//! Sizes follow VFIO's rule, not iommufd's: `argsz` must cover the first release's struct, and
//! what comes after it is announced by flags.

pub use crate::command::vfio::*;

abi_enum! {
    /// What the commands' numbers are made from, and the version.
    pub enum vfio_numbers: u32 {
        /// What `VFIO_GET_API_VERSION` returns.
        VFIO_API_VERSION = 0,
        /// The letter of VFIO's ioctls.
        VFIO_TYPE = b';' as u32,
        /// The number of VFIO's first ioctl.
        VFIO_BASE = 100,
    }

    /// What `VFIO_CHECK_EXTENSION` asks for and `VFIO_SET_IOMMU` chooses.
    pub enum vfio_extension: u32 {
        /// The first interface: unmapping may split a mapping.
        VFIO_TYPE1_IOMMU = 1,
        /// POWER's TCE tables.
        VFIO_SPAPR_TCE_IOMMU = 2,
        /// The second interface: mappings are unmapped whole.
        VFIO_TYPE1v2_IOMMU = 3,
        /// The IOMMU makes all DMA coherent.
        VFIO_DMA_CC_IOMMU = 4,
        /// POWER's error handling.
        VFIO_EEH = 5,
        /// Once: nesting. No longer given out.
        __VFIO_RESERVED_TYPE1_NESTING_IOMMU = 6,
        /// POWER's TCE tables with preregistered memory.
        VFIO_SPAPR_TCE_v2_IOMMU = 7,
        /// Devices without an IOMMU.
        VFIO_NOIOMMU_IOMMU = 8,
        /// `VFIO_DMA_UNMAP_FLAG_ALL` works.
        VFIO_UNMAP_ALL = 9,
        /// The `VADDR` flags work.
        VFIO_UPDATE_VADDR = 10,
    }

    /// [`vfio_iommu_type1_info::flags`].
    pub enum vfio_iommu_info_flags: u32 {
        /// `iova_pgsizes` is valid.
        VFIO_IOMMU_INFO_PGSIZES = 1 << 0,
        /// `cap_offset` is valid.
        VFIO_IOMMU_INFO_CAPS = 1 << 1,
    }

    /// [`vfio_info_cap_header::id`] in the chain of `VFIO_IOMMU_GET_INFO`.
    pub enum vfio_iommu_type1_info_caps: u16 {
        /// A [`vfio_iommu_type1_info_cap_iova_range`].
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1,
        /// A [`vfio_iommu_type1_info_cap_migration`].
        VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2,
        /// A [`vfio_iommu_type1_info_dma_avail`].
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3,
    }

    /// [`vfio_iommu_type1_dma_map::flags`].
    pub enum vfio_dma_map_flags: u32 {
        /// The device may read.
        VFIO_DMA_MAP_FLAG_READ = 1 << 0,
        /// The device may write.
        VFIO_DMA_MAP_FLAG_WRITE = 1 << 1,
        /// Only tells the mapping's new address in the caller.
        VFIO_DMA_MAP_FLAG_VADDR = 1 << 2,
    }

    /// [`vfio_iommu_type1_dma_unmap::flags`].
    pub enum vfio_dma_unmap_flags: u32 {
        /// A [`vfio_bitmap`] follows, to receive the dirty bits.
        VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0,
        /// Everything; `iova` and `size` must be 0.
        VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1,
        /// Only forgets the address in the caller.
        VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2,
    }

    /// [`vfio_iommu_type1_dirty_bitmap::flags`], exactly one.
    pub enum vfio_iommu_dirty_pages_flags: u32 {
        /// Start logging.
        VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0,
        /// Stop logging.
        VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1,
        /// Read the log; a [`vfio_iommu_type1_dirty_bitmap_get`] follows.
        VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2,
    }
}

abi_struct! {
    /// What each member of a chain of capabilities begins with.
    pub struct vfio_info_cap_header {
        /// Which capability.
        pub id: u16 => one_of(&[&vfio_iommu_type1_info_caps]).out(),
        /// Of this capability's layout.
        pub version: u16 => DECIMAL.out(),
        /// The next one's offset from the start of the whole answer; 0 ends the chain.
        pub next: u32 => DECIMAL.out(),
    }

    /// `VFIO_IOMMU_GET_INFO`: what the container's IOMMU can do.
    ///
    /// A caller whose `argsz` leaves no room for the chain of capabilities is told the size it
    /// takes in `argsz`, with a `cap_offset` of 0, and asks again.
    pub struct vfio_iommu_type1_info {
        /// In: bytes of the caller's buffer. Out: bytes that the whole answer takes.
        pub argsz: u32 => SIZE.inout(),
        /// Which fields are valid.
        pub flags: u32 => flags(&vfio_iommu_info_flags).out(),
        /// A bit for each page size: bit 12 for 4 KiB.
        pub iova_pgsizes: u64 => HEX.out(),
        /// The first capability's offset from the start of the struct; 0 for none.
        pub cap_offset: u32 => DECIMAL.out().since(crate::Release::new(5, 9)),
        /// Zero.
        pub pad: u32 => RESERVED.out(),
    }

    /// Ranges of IOVA in [`vfio_iommu_type1_info_cap_iova_range`].
    pub struct vfio_iova_range {
        /// The first IOVA.
        pub start: u64 => HEX.out(),
        /// The last IOVA, included.
        pub end: u64 => HEX.out(),
    }

    /// The capability that lists the usable IOVAs.
    pub struct vfio_iommu_type1_info_cap_iova_range {
        /// Its place in the chain.
        pub header: vfio_info_cap_header =>
            nested(<vfio_info_cap_header as crate::AbiStruct>::LAYOUT).out(),
        /// How many ranges follow.
        pub nr_iovas: u32 => DECIMAL.out(),
        /// Zero.
        pub reserved: u32 => RESERVED.out(),
        /// The ranges; none of them is in the struct itself.
        pub iova_ranges: [vfio_iova_range; 0] => HEX.out(),
    }

    /// The capability that tells about the log of dirty pages.
    pub struct vfio_iommu_type1_info_cap_migration {
        /// Its place in the chain.
        pub header: vfio_info_cap_header =>
            nested(<vfio_info_cap_header as crate::AbiStruct>::LAYOUT).out(),
        /// Zero.
        pub flags: u32 => HEX.out(),
        /// Padding.
        pub __pad: u32 => PAD,
        /// A bit for each page size that can be logged.
        pub pgsize_bitmap: u64 => HEX.out(),
        /// The largest bitmap, in bytes.
        pub max_dirty_bitmap_size: u64 => DECIMAL.out(),
    }

    /// The capability that tells how many more mappings fit.
    pub struct vfio_iommu_type1_info_dma_avail {
        /// Its place in the chain.
        pub header: vfio_info_cap_header =>
            nested(<vfio_info_cap_header as crate::AbiStruct>::LAYOUT).out(),
        /// Mappings that still fit.
        pub avail: u32 => DECIMAL.out(),
    }

    /// `VFIO_IOMMU_MAP_DMA`: maps the caller's memory at `iova`.
    pub struct vfio_iommu_type1_dma_map {
        /// Bytes of the struct.
        pub argsz: u32 => SIZE,
        /// Who may do what.
        pub flags: u32 => flags(&vfio_dma_map_flags),
        /// The first byte's address in the caller.
        pub vaddr: u64 => POINTER,
        /// Where it goes.
        pub iova: u64 => HEX,
        /// Bytes.
        pub size: u64 => HEX,
    }

    /// A bitmap of pages in the caller's memory.
    pub struct vfio_bitmap {
        /// Bytes of a page.
        pub pgsize: u64 => HEX,
        /// Bytes of the bitmap.
        pub size: u64 => HEX,
        /// Where it is.
        pub data: u64 => POINTER,
    }

    /// `VFIO_IOMMU_UNMAP_DMA`: unmaps a range; a [`vfio_bitmap`] may follow.
    pub struct vfio_iommu_type1_dma_unmap {
        /// Bytes of the struct.
        pub argsz: u32 => SIZE,
        /// What exactly to do.
        pub flags: u32 => flags(&vfio_dma_unmap_flags),
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes, and back: bytes that were unmapped.
        pub size: u64 => HEX.inout(),
        /// The [`vfio_bitmap`], not in the struct itself.
        pub data: [u8; 0] => HEX,
    }

    /// `VFIO_IOMMU_DIRTY_PAGES`: the log of dirty pages.
    pub struct vfio_iommu_type1_dirty_bitmap {
        /// Bytes of the struct with what follows it.
        pub argsz: u32 => SIZE,
        /// What to do.
        pub flags: u32 => flags(&vfio_iommu_dirty_pages_flags),
        /// The [`vfio_iommu_type1_dirty_bitmap_get`], not in the struct itself.
        pub data: [u8; 0] => HEX,
    }

    /// What follows [`vfio_iommu_type1_dirty_bitmap`] to read the log.
    pub struct vfio_iommu_type1_dirty_bitmap_get {
        /// The first IOVA.
        pub iova: u64 => HEX,
        /// Bytes of the range.
        pub size: u64 => HEX,
        /// Where the bits go.
        pub bitmap: vfio_bitmap => nested(<vfio_bitmap as crate::AbiStruct>::LAYOUT),
    }
}
