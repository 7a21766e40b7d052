//! The one table of commands: number, struct, smallest size, name, release.
//!
//! Everything that knows more than one command is derived from it: [`Command`], the ioctl numbers
//! (`IOMMU_IOAS_MAP` and the like, re-exported where the headers have them), decoding, printing
//! and the C header.
//!
//! # A new ioctl
//!
//! 1. Its struct, beside its relatives under `iommufd/`, in the file's `abi_struct!`:
//!    `size` first, no holes, and for each field what it means, such as
//!    `pub flags: u32 => flags(&my_flags)` or `pub out_id: u32 => ID.out()`.
//! 2. Its row here. `..=` names the last field of the struct as first released: a caller must
//!    have that much.
//! 3. Its handler in the engine.
//!
//! A struct that grows later gets its new fields at the end, each with
//! `.since(Release::new(..))`; the row stays as it is.
//! `cargo run -p ioctl-abi --example header` writes the C header to build a caller against.

use crate::iommufd::*;
use crate::layout::{AbiStruct, Constant, Layout, Set};
use crate::release::Release;
use crate::selftest::iommu_test_cmd;
use crate::vfio::*;

/// The letter of all these ioctls, as `_IO()` packs it: `IOMMUFD_TYPE` and `VFIO_TYPE` are equal.
pub const fn io(nr: u8) -> u32 {
    ((b';' as u32) << 8) | nr as u32
}

/// A struct that is the argument of one command.
pub trait CommandStruct: AbiStruct {
    /// The command.
    const COMMAND: Command;
}

/// What the third argument of `ioctl()` is.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Not looked at.
    None,
    /// A number, one of a set.
    Value(&'static Set),
    /// A pointer to a struct whose first word is its size.
    Struct(&'static Layout),
}

/// What a size other than ours means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// iommufd: shorter is zero-extended, longer must be zero there.
    Extensible,
    /// VFIO's `argsz`: the first `smallest` bytes count, flags and `argsz` decide on the rest.
    Argsz,
}

/// One row of the table.
#[derive(Debug)]
pub struct Info {
    /// The command.
    pub command: Command,
    /// The C name, such as `IOMMU_IOAS_MAP`.
    pub name: &'static str,
    /// The number in the lowest byte.
    pub nr: u8,
    /// The whole ioctl number.
    pub ioctl: u32,
    /// What the argument is.
    pub argument: Argument,
    /// The fewest bytes that a caller's struct may have: the first release's.
    pub smallest: usize,
    /// What other sizes mean.
    pub sizing: Sizing,
    /// The release that brought it.
    pub since: Release,
}

impl Info {
    /// The struct, for commands that have one.
    pub const fn layout(&self) -> Option<&'static Layout> {
        match self.argument {
            Argument::Struct(layout) => Some(layout),
            Argument::None | Argument::Value(_) => None,
        }
    }
}

macro_rules! argument {
    (none) => {
        Argument::None
    };
    (value $set:ident) => {
        Argument::Value(&$set)
    };
    ($struct:ident ..= $last:ident) => {
        Argument::Struct(<$struct as AbiStruct>::LAYOUT)
    };
}

macro_rules! smallest {
    (none) => {
        0
    };
    (value $set:ident) => {
        0
    };
    ($struct:ident ..= $last:ident) => {{
        const fn size_of_field<T>(_: fn(&$struct) -> &T) -> usize {
            size_of::<T>()
        }
        core::mem::offset_of!($struct, $last) + size_of_field(|from| &from.$last)
    }};
}

macro_rules! bind {
    ($command:ident, none) => {};
    ($command:ident, value $set:ident) => {};
    ($command:ident, $struct:ident ..= $last:ident) => {
        impl CommandStruct for $struct {
            const COMMAND: Command = Command::$command;
        }
    };
}

/// Rows: `Variant: IOCTL_NAME = [CMD_NAME](number), argument [..= last field of the first
/// release], since major.minor;`
macro_rules! commands {
    ($(
        $(#[$section_attribute:meta])*
        $section:ident, $sizing:ident {
            $(
                $(#[$attribute:meta])*
                $command:ident: $name:ident = $($cmd:ident)? ($nr:literal),
                [$($argument:tt)*], since $major:literal, $minor:literal;
            )*
        }
    )*) => {
        /// A command, whose discriminant is its whole ioctl number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Command {
            $($($(#[$attribute])* $command = io($nr),)*)*
        }

        /// All rows, in the table's order.
        pub static COMMANDS: &[&Info] = &[$($(Command::$command.info(),)*)*];

        impl Command {
            /// Its row.
            pub const fn info(self) -> &'static Info {
                match self {
                    $($(Self::$command => {
                        static INFO: Info = Info {
                            command: Command::$command,
                            name: stringify!($name),
                            nr: $nr,
                            ioctl: io($nr),
                            argument: argument!($($argument)*),
                            smallest: smallest!($($argument)*),
                            sizing: Sizing::$sizing,
                            since: Release::new($major, $minor),
                        };
                        &INFO
                    })*)*
                }
            }

            /// The command that the ioctl number `ioctl` names: all 32 bits count.
            pub const fn from_ioctl(ioctl: u32) -> Option<Self> {
                match ioctl {
                    $($($section::$name => Some(Self::$command),)*)*
                    _ => None,
                }
            }
        }

        $(
            $(#[$section_attribute])*
            pub mod $section {
                $(
                    #[doc = concat!("The ioctl number of [`Command::", stringify!($command), "`](super::Command).")]
                    pub const $name: u32 = super::io($nr);
                    $(
                        #[doc = concat!("The command number of [`", stringify!($name), "`].")]
                        pub const $cmd: u32 = $nr;
                    )?
                )*
            }
        )*

        $(
            $(#[$section_attribute])*
            #[allow(non_upper_case_globals)]
            pub static $section: Set = Set {
                name: concat!(stringify!($section), "_commands"),
                constants: &[$(
                    Constant { name: stringify!($name), value: io($nr) as u64 },
                    $(Constant { name: stringify!($cmd), value: $nr },)?
                )*],
            };
        )*

        $($(bind!($command, $($argument)*);)*)*
    };
}

impl Command {
    /// Its C name, such as `IOMMU_IOAS_MAP`.
    pub const fn name(self) -> &'static str {
        self.info().name
    }
}

commands! {
    /// The numbers of `linux/iommufd.h`.
    iommufd, Extensible {
        /// Destroys an object.
        Destroy: IOMMU_DESTROY = IOMMUFD_CMD_DESTROY(0x80), [iommu_destroy ..= id], since 6, 2;
        /// Makes an IOAS.
        IoasAlloc: IOMMU_IOAS_ALLOC = IOMMUFD_CMD_IOAS_ALLOC(0x81),
            [iommu_ioas_alloc ..= out_ioas_id], since 6, 2;
        /// Keeps ranges of an IOAS usable.
        IoasAllowIovas: IOMMU_IOAS_ALLOW_IOVAS = IOMMUFD_CMD_IOAS_ALLOW_IOVAS(0x82),
            [iommu_ioas_allow_iovas ..= allowed_iovas], since 6, 2;
        /// Maps what another IOAS maps.
        IoasCopy: IOMMU_IOAS_COPY = IOMMUFD_CMD_IOAS_COPY(0x83),
            [iommu_ioas_copy ..= src_iova], since 6, 2;
        /// Asks which ranges of an IOAS are usable.
        IoasIovaRanges: IOMMU_IOAS_IOVA_RANGES = IOMMUFD_CMD_IOAS_IOVA_RANGES(0x84),
            [iommu_ioas_iova_ranges ..= out_iova_alignment], since 6, 2;
        /// Maps the caller's memory.
        IoasMap: IOMMU_IOAS_MAP = IOMMUFD_CMD_IOAS_MAP(0x85), [iommu_ioas_map ..= iova], since 6, 2;
        /// Unmaps a range.
        IoasUnmap: IOMMU_IOAS_UNMAP = IOMMUFD_CMD_IOAS_UNMAP(0x86),
            [iommu_ioas_unmap ..= length], since 6, 2;
        /// Sets or gets an option.
        Option: IOMMU_OPTION = IOMMUFD_CMD_OPTION(0x87), [iommu_option ..= val64], since 6, 2;
        /// Sets or gets the IOAS of the VFIO compatibility.
        VfioIoas: IOMMU_VFIO_IOAS = IOMMUFD_CMD_VFIO_IOAS(0x88),
            [iommu_vfio_ioas ..= __reserved], since 6, 2;
        /// Makes an HWPT.
        HwptAlloc: IOMMU_HWPT_ALLOC = IOMMUFD_CMD_HWPT_ALLOC(0x89),
            [iommu_hwpt_alloc ..= __reserved], since 6, 6;
        /// Asks what a device's IOMMU can do.
        GetHwInfo: IOMMU_GET_HW_INFO = IOMMUFD_CMD_GET_HW_INFO(0x8a),
            [iommu_hw_info ..= __reserved], since 6, 6;
        /// Turns dirty tracking on or off.
        HwptSetDirtyTracking:
            IOMMU_HWPT_SET_DIRTY_TRACKING = IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING(0x8b),
            [iommu_hwpt_set_dirty_tracking ..= __reserved], since 6, 7;
        /// Reads, and clears, the dirty bits of a range.
        HwptGetDirtyBitmap: IOMMU_HWPT_GET_DIRTY_BITMAP = IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP(0x8c),
            [iommu_hwpt_get_dirty_bitmap ..= data], since 6, 7;
        /// Invalidates caches behind a user's page table or vIOMMU.
        HwptInvalidate: IOMMU_HWPT_INVALIDATE = IOMMUFD_CMD_HWPT_INVALIDATE(0x8d),
            [iommu_hwpt_invalidate ..= __reserved], since 6, 8;
        /// Makes a queue of I/O page faults.
        FaultQueueAlloc: IOMMU_FAULT_QUEUE_ALLOC = IOMMUFD_CMD_FAULT_QUEUE_ALLOC(0x8e),
            [iommu_fault_alloc ..= out_fault_fd], since 6, 11;
        /// Maps a file's memory.
        IoasMapFile: IOMMU_IOAS_MAP_FILE = IOMMUFD_CMD_IOAS_MAP_FILE(0x8f),
            [iommu_ioas_map_file ..= iova], since 6, 13;
        /// Makes a vIOMMU.
        ViommuAlloc: IOMMU_VIOMMU_ALLOC = IOMMUFD_CMD_VIOMMU_ALLOC(0x90),
            [iommu_viommu_alloc ..= out_viommu_id], since 6, 13;
        /// Makes a vDEVICE.
        VdeviceAlloc: IOMMU_VDEVICE_ALLOC = IOMMUFD_CMD_VDEVICE_ALLOC(0x91),
            [iommu_vdevice_alloc ..= virt_id], since 6, 13;
        /// Charges the pinned pages to the calling process.
        IoasChangeProcess: IOMMU_IOAS_CHANGE_PROCESS = IOMMUFD_CMD_IOAS_CHANGE_PROCESS(0x92),
            [iommu_ioas_change_process ..= __reserved], since 6, 13;
        /// Makes a queue of a vIOMMU's events.
        VeventqAlloc: IOMMU_VEVENTQ_ALLOC = IOMMUFD_CMD_VEVENTQ_ALLOC(0x93),
            [iommu_veventq_alloc ..= out_veventq_fd], since 6, 15;
        /// Gives the hardware a queue in guest memory.
        HwQueueAlloc: IOMMU_HW_QUEUE_ALLOC = IOMMUFD_CMD_HW_QUEUE_ALLOC(0x94),
            [iommu_hw_queue_alloc ..= length], since 6, 17;
        /// Asks for the physical address behind an IOVA without an IOMMU.
        IoasNoiommuGetPa: IOMMU_IOAS_NOIOMMU_GET_PA = IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA(0x95),
            [iommu_ioas_noiommu_get_pa ..= out_phys], since 7, 3;
    }

    /// The number of `iommufd_test.h`.
    selftest, Extensible {
        /// Drives the mock devices.
        Test: IOMMU_TEST_CMD = (0xa0), [iommu_test_cmd ..= last], since 6, 2;
    }

    /// The numbers of `linux/vfio.h` that a container answers.
    vfio, Argsz {
        /// Asks for the version of the API.
        VfioGetApiVersion: VFIO_GET_API_VERSION = (100), [none], since 3, 6;
        /// Asks whether an extension is there.
        VfioCheckExtension: VFIO_CHECK_EXTENSION = (101), [value vfio_extension], since 3, 6;
        /// Chooses the container's kind of IOMMU.
        VfioSetIommu: VFIO_SET_IOMMU = (102), [value vfio_extension], since 3, 6;
        /// Asks what the container's IOMMU can do.
        VfioIommuGetInfo: VFIO_IOMMU_GET_INFO = (112),
            [vfio_iommu_type1_info ..= iova_pgsizes], since 3, 6;
        /// Maps the caller's memory.
        VfioIommuMapDma: VFIO_IOMMU_MAP_DMA = (113), [vfio_iommu_type1_dma_map ..= size], since 3, 6;
        /// Unmaps a range.
        VfioIommuUnmapDma: VFIO_IOMMU_UNMAP_DMA = (114),
            [vfio_iommu_type1_dma_unmap ..= size], since 3, 6;
        /// Allows mappings (SPAPR TCE only).
        VfioIommuEnable: VFIO_IOMMU_ENABLE = (115), [none], since 3, 13;
        /// Forbids mappings (SPAPR TCE only).
        VfioIommuDisable: VFIO_IOMMU_DISABLE = (116), [none], since 3, 13;
        /// Starts, stops or reads the log of dirty pages.
        VfioIommuDirtyPages: VFIO_IOMMU_DIRTY_PAGES = (117),
            [vfio_iommu_type1_dirty_bitmap ..= flags], since 5, 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::HEADERS;
    use crate::layout::How;

    #[test]
    fn numbers_are_unique_and_found() {
        for (index, info) in COMMANDS.iter().enumerate() {
            assert_eq!(Command::from_ioctl(info.ioctl), Some(info.command));
            assert_eq!(info.ioctl, info.command as u32);
            assert_eq!(info.ioctl & 0xff, u32::from(info.nr));
            let others = COMMANDS.iter().skip(index + 1);
            assert!(others.clone().all(|other| other.name != info.name));
            // The direction and size bits of an ioctl number count, too.
            assert_eq!(Command::from_ioctl(info.ioctl | 1 << 30), None, "{}", info.name);
            assert_eq!(Command::from_ioctl(info.ioctl | 1 << 16), None, "{}", info.name);
            assert!(info.since <= crate::release::CURRENT);
        }
        assert_eq!(Command::from_ioctl(io(0x9f)), None);
        assert_eq!(Command::from_ioctl(0), None);
    }

    #[test]
    fn a_command_struct_begins_with_its_size_and_the_smallest_ends_with_a_field() {
        for info in COMMANDS {
            let Some(layout) = info.layout() else {
                assert_eq!(info.smallest, 0);
                continue;
            };
            assert!(matches!(layout.fields[0].show.how, How::Size), "{}", layout.name);
            assert_eq!((layout.fields[0].offset, layout.fields[0].size), (0, 4));
            assert!(layout.fields.iter().any(|field| field.end() == info.smallest));
        }
    }

    /// What came with a later release can be missing; what came with the first cannot.
    #[test]
    fn later_fields_are_behind_the_smallest_size() {
        for info in COMMANDS {
            for field in info.layout().map_or(&[][..], |layout| layout.fields) {
                let later = field.show.since.is_some();
                // Bytes that were reserved at first may have got a meaning since.
                let behind = field.offset >= info.smallest;
                let reused = field.name == "out_max_pasid_log2";
                let filler = matches!(field.show.how, How::Pad) || field.size == 0;
                let optional = info.sizing == Sizing::Argsz;
                // Linux takes the struct of IOMMU_VEVENTQ_ALLOC without its last padding.
                let padding = info.command == Command::VeventqAlloc && field.name == "__reserved";
                assert!(
                    filler || reused || optional || padding || later == behind,
                    "{}: {}",
                    info.name,
                    field.name
                );
            }
        }
    }

    #[test]
    fn fields_follow_each_other_without_gaps() {
        for layout in HEADERS.iter().flat_map(|header| header.structs()) {
            let mut end = 0;
            for field in layout.fields {
                assert_eq!(field.offset, end, "{}: {}", layout.name, field.name);
                end = field.end();
            }
            assert_eq!(end, layout.size, "{}", layout.name);
        }
    }
}
