//! Arm 64-bit tables (VMSAv8-64, "LPAE"), stage 1 and stage 2.
//!
//! Source: Arm Architecture Reference Manual, DDI 0487, section D8.3 "Translation table descriptor
//! formats" (D8.3.1.1 tables, D8.3.1.2 blocks and pages, with their attribute fields), D8.4 "Memory
//! access control", D8.5 "Hardware updates to the translation tables", D8.6 "Memory region
//! attributes", D8.7.1 "The Contiguous bit"; the SMMUv3 (IHI 0070) walks the same tables. Granules of
//! 4, 16 and 64 KiB; output addresses of 48 or 52 bits (FEAT_LPA, FEAT_LPA2). The manual counts levels
//! from the top: 3 is the lowest, and with 52 bits of 4 KiB granules the first is -1.
//!
//! The fields were checked against the text of D8.3, D8.6 and D8.7 (D8-48 to D8-53, D8-96 and D8-104
//! are the tables that say most); of D8.4 and D8.5 only the titles were. Permissions are the manual's Direct ones; in stage 2, memory types are
//! those of HCR_EL2.FWB clear. What is RES0 is not looked at.

use crate::{Config, Dirty, Field, Format, Kind, Prot};

/// Bit 0: valid (D8.3.1).
const VALID: u64 = 1 << 0;
/// Bit 1: a table above level 3, a page at level 3; clear: a block (D8.3.1).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx\[2:0\], bits 4:2 of stage 1 (D8.3.1.2): an index of MAIR. The numbers are Linux's SMMU drivers':
/// 0 Normal Non-cacheable, 1 Normal Write-Back, 2 Device-nGnRE.
const ATTR_SHIFT: u32 = 2;
/// MemAttr\[3:0\], bits 5:2 of stage 2: 0b1111 Normal Write-Back, 0b0101 Normal Non-cacheable, 0b0001
/// Device-nGnRE (D8.6.5 "Stage 2 memory type and Cacheability attributes when FWB is disabled").
const MEM_ATTR_SHIFT: u32 = 2;
/// AP\[1\], bit 6 of stage 1: accesses without privilege (D8.4.1).
const AP_1: u64 = 1 << 6;
/// AP\[2\], bit 7 of stage 1: read-only (D8.4.1); with DBM, not written yet (D8.5).
const AP_2: u64 = 1 << 7;
/// S2AP\[0\], bit 6 of stage 2: read permission (D8.4.2).
const S2AP_0: u64 = 1 << 6;
/// S2AP\[1\], bit 7 of stage 2: write permission (D8.4.2); with DBM, written already (D8.5).
const S2AP_1: u64 = 1 << 7;
/// SH\[1:0\], bits 9:8: Inner Shareable (D8.3.1.2). With 52 bits of 4 or 16 KiB granules, TCR has it
/// instead (D8.6.7).
const SH_INNER: u64 = 3 << 8;
/// AF, bit 10: Access flag (D8.5).
const AF: u64 = 1 << 10;
/// nG, bit 11 of stage 1: the translation belongs to one ASID (D8.3.1.2).
const NG: u64 = 1 << 11;
/// DBM, bit 51: hardware turns a write to the page into a change of AP\[2\] or S2AP\[1\] (D8.5).
const DBM: u64 = 1 << 51;
/// Contiguous, bit 52: one of a group of entries that map one larger page (D8.7.1).
const CONTIGUOUS: u64 = 1 << 52;
/// PXN, bit 53, and UXN, bit 54, of stage 1: no execution (D8.4.1).
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
/// XN\[1:0\], bits 54:53 of stage 2: 0b10 is no execution, with and without FEAT_XNX (D8.4.2).
const S2_XN: u64 = 3 << 53;
const S2_XN_NEVER: u64 = 2 << 53;

const MEMORY_TYPE: Prot = Prot::NONCACHED.union(Prot::DEVICE);

/// Arm 64-bit, of stage 1 or 2, with granules of 2^`GRANULE` bytes (12, 14, 16) and output addresses
/// of `OA` bits (48, 52).
#[derive(Debug)]
pub enum Lpae<const STAGE: u8, const GRANULE: u32, const OA: u32> {}

impl<const STAGE: u8, const GRANULE: u32, const OA: u32> Lpae<STAGE, GRANULE, OA> {
    /// 52 bits with 4 or 16 KiB granules (FEAT_LPA2).
    const LPA2: bool = OA > 48 && GRANULE < 16;

    /// The address field's part that is where the address has it.
    const STRAIGHT: u64 = Config::low(if Self::LPA2 { 50 } else { 48 }) & !Config::low(GRANULE);

    /// log2 of the entries in a contiguous group of `level`; 0 where there are none (D8.7.1).
    #[inline]
    const fn group_lg2(level: u8) -> u32 {
        match (GRANULE, level) {
            (12, 0..=2) => 4,
            (14, 0) => 7,
            (14, 1) | (16, 0..=1) => 5,
            _ => 0,
        }
    }

    /// An address as the descriptor holds it (D8.3.1): the upper bits are in bits 15:12 with 64 KiB
    /// granules, in bits 9:8 with the others.
    #[inline]
    const fn field(pa: u64) -> u64 {
        if Self::LPA2 {
            pa & Self::STRAIGHT | (pa >> 50 & 3) << 8
        } else if OA > 48 {
            pa & Self::STRAIGHT | (pa >> 48 & 0xf) << 12
        } else {
            pa & Self::STRAIGHT
        }
    }

    #[inline]
    const fn address(entry: u64) -> u64 {
        if Self::LPA2 {
            entry & Self::STRAIGHT | (entry >> 8 & 3) << 50
        } else if OA > 48 {
            entry & Self::STRAIGHT | (entry >> 12 & 0xf) << 48
        } else {
            entry & Self::STRAIGHT
        }
    }

    /// The page sizes: a page, the blocks that there are (D8.3.1.2), and their contiguous groups.
    const fn sizes() -> u64 {
        let blocks = match (GRANULE, OA) {
            (12, 48) => 3,
            (12, _) => 4,
            (14, 48) | (16, 48) => 2,
            _ => 3,
        };
        let (mut sizes, mut level) = (0, 0);
        while level < blocks {
            let shift = GRANULE + level as u32 * (GRANULE - 3);
            sizes |= 1 << shift | 1 << (shift + Self::group_lg2(level));
            level += 1;
        }
        sizes
    }
}

impl<const STAGE: u8, const GRANULE: u32, const OA: u32> Format for Lpae<STAGE, GRANULE, OA> {
    const NAME: &'static str = if STAGE == 1 { "lpae_s1" } else { "lpae_s2" };
    const GRANULE_LG2: u32 = GRANULE;
    const MAX_LEVELS: u8 = if GRANULE == 12 && OA > 48 { 5 } else { 4 };
    const LINEAR_LG2: u32 = if Self::LPA2 { 50 } else { 48 };
    const OWN_ADDRESS: bool = true;
    const SIZES: u64 = Self::sizes();
    const PRESENT: u64 = VALID;
    const FIELDS: &'static [Field] = if STAGE == 1 {
        &[
            // What is valid can be read.
            Field { care: Prot::READ, mask: 0, values: &[(Prot::READ, 0)] },
            Field {
                care: Prot::WRITE,
                mask: DBM | AP_2,
                values: &[
                    (Prot::WRITE, DBM | AP_2),
                    (Prot::WRITE, DBM),
                    (Prot::WRITE, 0),
                    (Prot::empty(), AP_2),
                ],
            },
            Field {
                care: Prot::PRIVILEGED,
                mask: AP_1,
                values: &[(Prot::empty(), AP_1), (Prot::PRIVILEGED, 0)],
            },
            Field {
                care: Prot::EXECUTE,
                mask: UXN | PXN,
                values: &[(Prot::empty(), UXN | PXN), (Prot::EXECUTE, 0)],
            },
            Field {
                care: MEMORY_TYPE,
                mask: 7 << ATTR_SHIFT,
                values: &[
                    (Prot::empty(), 1 << ATTR_SHIFT),
                    (Prot::NONCACHED, 0),
                    (Prot::DEVICE, 2 << ATTR_SHIFT),
                ],
            },
        ]
    } else {
        &[
            Field::bit(Prot::READ, S2AP_0),
            Field {
                care: Prot::WRITE,
                mask: DBM | S2AP_1,
                values: &[
                    (Prot::WRITE, DBM),
                    (Prot::WRITE, DBM | S2AP_1),
                    (Prot::WRITE, S2AP_1),
                    (Prot::empty(), 0),
                ],
            },
            Field {
                care: Prot::EXECUTE,
                mask: S2_XN,
                values: &[(Prot::empty(), S2_XN_NEVER), (Prot::EXECUTE, 0)],
            },
            Field {
                care: MEMORY_TYPE,
                mask: 0xf << MEM_ATTR_SHIFT,
                values: &[
                    (Prot::empty(), 0xf << MEM_ATTR_SHIFT),
                    (Prot::NONCACHED, 0x5 << MEM_ATTR_SHIFT),
                    (Prot::DEVICE, 0x1 << MEM_ATTR_SHIFT),
                ],
            },
        ]
    };
    const ACCESSED: u64 = AF;
    const DIRTY: Dirty = if STAGE == 1 {
        Dirty { tracked: DBM, mask: AP_2, dirty: 0 }
    } else {
        Dirty { tracked: DBM, mask: S2AP_1, dirty: S2AP_1 }
    };

    fn config() -> Config {
        let levels = (OA - GRANULE).div_ceil(GRANULE - 3) as u8;
        Config::new(OA, levels, OA)
    }

    fn hw_level(level: u8) -> i8 {
        3 - level as i8
    }

    #[inline]
    fn table(_level: u8, pa: u64) -> u64 {
        VALID | TABLE_OR_PAGE | Self::field(pa)
    }

    #[inline]
    fn kind(level: u8, entry: u64) -> Kind {
        match (entry & VALID != 0, entry & TABLE_OR_PAGE != 0) {
            (false, _) => Kind::Absent,
            (true, true) if level > 0 => Kind::Table,
            (true, true) => Kind::Leaf,
            (true, false) if level > 0 && Self::SIZES >> Self::shift(level) & 1 != 0 => Kind::Leaf,
            (true, false) => Kind::Reserved,
        }
    }

    #[inline]
    fn is_table(level: u8, entry: u64) -> bool {
        entry & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE && level > 0
    }

    #[inline]
    fn table_pa(_level: u8, entry: u64) -> u64 {
        Self::address(entry)
    }

    #[inline]
    fn leaf(level: u8, lg2: u32, attrs: u64, pa: u64) -> u64 {
        let page = if level == 0 { TABLE_OR_PAGE } else { 0 };
        let group = if lg2 > Self::shift(level) { CONTIGUOUS } else { 0 };
        let share = if Self::LPA2 { 0 } else { SH_INNER };
        let global = if STAGE == 1 { NG } else { 0 };
        VALID | page | group | share | global | attrs | Self::field(pa)
    }

    #[inline]
    fn leaf_lg2(level: u8, entry: u64) -> u32 {
        let group = if entry & CONTIGUOUS != 0 { Self::group_lg2(level) } else { 0 };
        Self::shift(level) + group
    }

    #[inline]
    fn leaf_pa(_level: u8, entry: u64) -> u64 {
        Self::address(entry)
    }

    #[inline]
    fn untracked(attrs: u64) -> u64 {
        // Without hardware's help a page is writable or not, and the Access flag has to be set.
        let writable = attrs & DBM != 0;
        AF | if writable { Self::DIRTY.mark(attrs) & !DBM } else { attrs }
    }
}
