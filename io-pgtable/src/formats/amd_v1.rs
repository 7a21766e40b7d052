//! AMD I/O page tables, "v1" (host translation).
//!
//! Source: AMD I/O Virtualization Technology (IOMMU) Specification, 48882, section 2.2.3 "I/O Page
//! Tables for Host Translations". (Its text could not be had to check the fields once more. The section,
//! PR, D, Next Level, the address, FC, IR and IW are as Linux's driver cites and defines them, and all
//! but D, which nothing set, are in the entries that Linux wrote for QEMU's AMD IOMMU, the sizes of Next
//! Level 7 among them. A, and what makes hardware set A and D, are from memory.)
//!
//! One to six levels; the top may be raised while in use, because the device table entry's Mode field
//! counts the levels. A page may have any power-of-two size: the default size of a level, or, with a
//! Next Level of 7, a size spelt in the address field and repeated over all the entries that it covers.

use crate::{Config, Dirty, Field, Format, Kind, Prot};

/// PR, bit 0: the entry is present (section 2.2.3).
const PR: u64 = 1 << 0;
/// A, bit 5: accessed, set by hardware where the device table entry's HAD field tells it to.
const A: u64 = 1 << 5;
/// D, bit 6: dirty, set by hardware likewise.
const D: u64 = 1 << 6;
/// Next Level, bits 11:9 (section 2.2.3): 0 a page of the level's size, 7 one of the size in the
/// address, else the level of the table pointed at.
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
/// FC, bit 60: force coherent: the access snoops (section 2.2.3).
const FC: u64 = 1 << 60;
/// IR, bit 61: read permission (section 2.2.3); a walk takes the AND of all its entries.
const IR: u64 = 1 << 61;
/// IW, bit 62: write permission (section 2.2.3), likewise.
const IW: u64 = 1 << 62;

/// AMD v1 as the hardware has it, with 4 KiB granules.
pub type AmdV1 = AmdGranule<12>;

/// AMD v1 with granules of 2^`GRANULE` bytes. The hardware's are 4 KiB; with others, leaves count
/// granules, as the [selftest's mock](crate::MockV1) has it.
#[derive(Debug)]
pub enum AmdGranule<const GRANULE: u32> {}

impl<const GRANULE: u32> AmdGranule<GRANULE> {
    /// A physical address as the address field holds it.
    #[inline]
    const fn field(pa: u64) -> u64 {
        (pa >> GRANULE) << 12
    }
}

impl<const GRANULE: u32> Format for AmdGranule<GRANULE> {
    const NAME: &'static str = if GRANULE == 12 { "amd_v1" } else { "mock" };
    const GRANULE_LG2: u32 = GRANULE;
    const INDEX_LG2: u32 = 9;
    const MAX_LEVELS: u8 = 6;
    const DYNAMIC_TOP: bool = true;
    // The size is spelt as a zero above ones in the address field, which has 40 bits.
    const SIZES: u64 = Config::low(40 + GRANULE) & !Config::low(GRANULE);
    const PRESENT: u64 = PR;
    /// Page Address or Next Table Address, bits 51:12 (section 2.2.3).
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const FIELDS: &'static [Field] =
        &[Field::bit(Prot::READ, IR), Field::bit(Prot::WRITE, IW), Field::bit(Prot::SNOOP, FC)];
    const ACCESSED: u64 = A;
    const DIRTY: Dirty = Dirty::bit(D);

    fn config() -> Config {
        let bits = Self::shift(Self::MAX_LEVELS - 1) + 9;
        let config = Config::new(if bits > 64 { 64 } else { bits }, 3, 40 + GRANULE);
        Config { dynamic_top: true, ..config }
    }

    #[inline]
    fn table(level: u8, pa: u64) -> u64 {
        PR | IR | IW | u64::from(level) << NEXT_LEVEL_SHIFT | pa & Self::ADDRESS
    }

    #[inline]
    fn kind(level: u8, entry: u64) -> Kind {
        if entry & PR == 0 {
            return Kind::Absent;
        }
        let lg2 = Self::leaf_lg2(level, entry);
        let sized = Self::SIZES >> (lg2 & 63) & 1 != 0;
        match (entry & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT {
            // The highest level has no default size.
            0 if sized => Kind::Leaf,
            // Larger than the level's own size, smaller than the next one's: 8 sizes.
            7 if sized && lg2.wrapping_sub(Self::shift(level) + 1) < 8 => Kind::Leaf,
            next if next == u64::from(level) => Kind::Table,
            _ => Kind::Reserved,
        }
    }

    #[inline]
    fn is_table(level: u8, entry: u64) -> bool {
        entry & (PR | NEXT_LEVEL) == PR | u64::from(level) << NEXT_LEVEL_SHIFT && level > 0
    }

    #[inline]
    fn leaf(level: u8, lg2: u32, attrs: u64, pa: u64) -> u64 {
        let extra = lg2 - Self::shift(level);
        if extra == 0 {
            return PR | attrs | Self::field(pa);
        }
        // Section 2.2.3, "Next Level 7": the lowest zero bit of the address says the size.
        let size = Self::field(Config::low(lg2 - 1)) & Self::ADDRESS;
        PR | NEXT_LEVEL | attrs | Self::field(pa) | size
    }

    #[inline]
    fn leaf_lg2(level: u8, entry: u64) -> u32 {
        if entry & NEXT_LEVEL == 0 {
            return Self::shift(level);
        }
        ((entry & Self::ADDRESS) >> 12).trailing_ones() + GRANULE + 1
    }

    #[inline]
    fn leaf_pa(_level: u8, entry: u64) -> u64 {
        ((entry & Self::ADDRESS) >> 12) << GRANULE
    }
}
