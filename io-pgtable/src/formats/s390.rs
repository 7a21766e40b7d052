//! s390 DMA tables: region, segment and page tables.
//!
//! Source: z/Architecture Principles of Operation, SA22-7832, chapter 3, "Dynamic Address
//! Translation", sections "Region-Table Entries", "Segment-Table Entries" and "Page-Table Entries"; a
//! PCI function's DMA is translated through the same tables. (The manual's text could not be had to
//! check the citations once more. I and P of a page are as IBM's documentation of z/VM's control
//! blocks has them, and every bit is as in Linux's header of these tables, `asm/pci_dma.h`.)
//!
//! The manual numbers bits from the left; below, they are counted as everywhere else, with the manual's
//! in parentheses. An entry is invalid by a bit that is *set*, so empty tables are not zeroes. DMA has
//! 4 KiB pages only.

use crate::{Config, Dirty, Field, Format, Kind, Prot};

/// I (53), page table ("Page-Table Entries"): the page is invalid.
const PAGE_INVALID: u64 = 1 << 10;
/// P (54), page table ("Page-Table Entries"): no writes.
const PROTECT: u64 = 1 << 9;
/// Page-frame real address (0-51) of a page table's entry; table origin of a region's.
const FRAME: u64 = !0xfff;
/// Page-table origin (0-52) of a segment table's entry ("Segment-Table Entries"): page tables are 2 KiB.
const PAGE_TABLE: u64 = !0x7ff;
/// I (58), region and segment tables ("Region-Table Entries"): the entry is invalid.
const INVALID: u64 = 1 << 5;
/// TT (60-61), likewise: what table the entry is in: 0 segment, 1 region third, 2 region second, 3
/// region first.
const TYPE_SHIFT: u32 = 2;
const TYPE: u64 = 3 << TYPE_SHIFT;
/// TL (62-63), region tables, likewise: the length of the table below; 3 says that it is whole.
const LENGTH: u64 = 3;

/// s390 DMA tables.
#[derive(Debug)]
pub enum S390 {}

const fn table_type(level: u8) -> u64 {
    (level as u64 - 1) << TYPE_SHIFT
}

impl Format for S390 {
    const NAME: &'static str = "s390";
    const INDEX_LG2: u32 = 11;
    const MAX_LEVELS: u8 = 5;
    const SIZES: u64 = 1 << 12;
    const FIELDS: &'static [Field] = &[Field {
        care: Prot::READ.union(Prot::WRITE),
        mask: PROTECT,
        values: &[(Prot::READ, PROTECT), (Prot::READ.union(Prot::WRITE), 0)],
    }];
    const ACCESSED: u64 = 0;
    const DIRTY: Dirty = Dirty::NONE;

    fn config() -> Config {
        Config::new(42, 3, 64)
    }

    #[inline]
    fn shift(level: u8) -> u32 {
        // 256 pages in a segment, then 2048 entries in each table above.
        if level == 0 { 12 } else { 9 + 11 * level as u32 }
    }

    #[inline]
    fn index_lg2(level: u8) -> u32 {
        if level == 0 { 8 } else { 11 }
    }

    fn hw_level(level: u8) -> i8 {
        level as i8
    }

    #[inline]
    fn absent(level: u8) -> u64 {
        if level == 0 { PAGE_INVALID } else { INVALID | table_type(level) }
    }

    #[inline]
    fn table(level: u8, pa: u64) -> u64 {
        if level == 1 { pa & PAGE_TABLE } else { pa & FRAME | table_type(level) | LENGTH }
    }

    #[inline]
    fn kind(level: u8, entry: u64) -> Kind {
        if level == 0 {
            return if entry & PAGE_INVALID == 0 { Kind::Leaf } else { Kind::Absent };
        }
        if entry & INVALID != 0 {
            Kind::Absent
        } else if entry & TYPE == table_type(level) {
            Kind::Table
        } else {
            Kind::Reserved
        }
    }

    #[inline]
    fn used(entry: u64) -> u64 {
        !entry >> PAGE_INVALID.trailing_zeros() & 1
    }

    #[inline]
    fn all_used(_and: u64, or: u64) -> bool {
        or & PAGE_INVALID == 0
    }

    #[inline]
    fn table_pa(level: u8, entry: u64) -> u64 {
        entry & if level == 1 { PAGE_TABLE } else { FRAME }
    }

    #[inline]
    fn leaf(_level: u8, _lg2: u32, attrs: u64, pa: u64) -> u64 {
        pa & FRAME | attrs
    }

    #[inline]
    fn leaf_pa(_level: u8, entry: u64) -> u64 {
        entry & FRAME
    }
}
