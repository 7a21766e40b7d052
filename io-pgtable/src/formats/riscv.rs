//! RISC-V Sv39, Sv48 and Sv57 tables.
//!
//! Source: The RISC-V Instruction Set Manual, volume II (privileged), chapter "Supervisor-Level ISA":
//! sections "Sv39", "Sv48", "Sv57", and the chapters on the extensions Svnapot (64 KiB pages), Svpbmt
//! (memory types) and Svadu (hardware updates A and D); the RISC-V IOMMU specification takes them over
//! as they are. The three schemes differ in their number of levels only. IOVAs are sign-extended. The
//! fields of an entry are in section "Sv32", "Addressing and Memory Protection", which the others refer
//! to, but for what is noted. Every field was checked against the manual's own source, and all that it
//! reserves is refused, as "Virtual Address Translation Process", steps 3 and 6, has it.

use crate::{Config, Dirty, Field, Format, Kind, Prot};

/// V, bit 0: valid.
const V: u64 = 1 << 0;
/// R, W and X, bits 1 to 3: permissions. All clear: the entry points at a table; W without R is
/// reserved.
const R: u64 = 1 << 1;
const W: u64 = 1 << 2;
const X: u64 = 1 << 3;
/// U, bit 4: accesses without privilege.
const U: u64 = 1 << 4;
/// A, bit 6: accessed (Svadu: set by hardware).
const A: u64 = 1 << 6;
/// D, bit 7: dirty (Svadu: set by hardware).
const D: u64 = 1 << 7;
/// PPN, bits 53:10: physical address shifted right by 12 (section "Sv39").
const PPN: u64 = 0x003f_ffff_ffff_fc00;
const PPN_SHIFT: u32 = 10;
/// Bits 60:54, reserved (section "Sv39").
const RESERVED: u64 = 0x7f << 54;
/// PBMT, bits 62:61 (Svpbmt): 1 non-cacheable, 2 strongly ordered I/O, 3 reserved.
const PBMT_SHIFT: u32 = 61;
const PBMT: u64 = 3 << PBMT_SHIFT;
/// N, bit 63 (Svnapot): the page is larger than its entry, as its lowest PPN bits spell.
const N: u64 = 1 << 63;
/// The only size of Svnapot so far: 64 KiB, which PPN bits 3:0 spell as 1000.
const NAPOT_LG2: u32 = 16;
const NAPOT_SPELT: u64 = 0x8 << 10;
const NAPOT_BITS: u64 = 0xf << 10;

/// What is reserved where an entry points at a table: U, A and D (section "Sv32"), N and PBMT.
const RESERVED_IN_TABLE: u64 = U | A | D | RESERVED | PBMT | N;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const RX: Prot = Prot::READ.union(Prot::EXECUTE);

/// RISC-V Sv39, Sv48, Sv57: three, four or five levels.
#[derive(Debug)]
pub enum RiscV {}

impl RiscV {
    /// Sv39.
    pub fn sv39() -> Config {
        Config::new(39, 3, 56)
    }

    /// Sv48.
    pub fn sv48() -> Config {
        Config::new(48, 4, 56)
    }

    /// Sv57.
    pub fn sv57() -> Config {
        Config::new(57, 5, 56)
    }
}

impl Format for RiscV {
    const NAME: &'static str = "riscv";
    const MAX_LEVELS: u8 = 5;
    const SIGN_EXTENDED: bool = true;
    const SIZES: u64 = 1 << 12 | 1 << NAPOT_LG2 | 1 << 21 | 1 << 30 | 1 << 39 | 1 << 48;
    const PRESENT: u64 = V;
    const FIELDS: &'static [Field] = &[
        Field {
            care: RW.union(Prot::EXECUTE),
            mask: R | W | X,
            values: &[
                (Prot::READ, R),
                (RW, R | W),
                (Prot::EXECUTE, X),
                (RX, R | X),
                (RW.union(Prot::EXECUTE), R | W | X),
            ],
        },
        Field {
            care: Prot::PRIVILEGED,
            mask: U,
            values: &[(Prot::empty(), U), (Prot::PRIVILEGED, 0)],
        },
        Field {
            care: Prot::NONCACHED.union(Prot::DEVICE),
            mask: PBMT,
            values: &[
                (Prot::empty(), 0),
                (Prot::NONCACHED, 1 << PBMT_SHIFT),
                (Prot::DEVICE, 2 << PBMT_SHIFT),
            ],
        },
    ];
    const ACCESSED: u64 = A;
    const DIRTY: Dirty = Dirty::bit(D);

    fn config() -> Config {
        Self::sv48()
    }

    #[inline]
    fn table(_level: u8, pa: u64) -> u64 {
        V | pa >> 2 & PPN
    }

    #[inline]
    fn kind(level: u8, entry: u64) -> Kind {
        let misaligned = entry >> PPN_SHIFT & Config::low(Self::INDEX_LG2 * u32::from(level)) != 0;
        let no_napot = entry & N != 0 && (level > 0 || entry & NAPOT_BITS != NAPOT_SPELT);
        if entry & V == 0 {
            Kind::Absent
        } else if Self::is_table(level, entry) {
            Kind::Table
        } else if entry & (R | X) == 0
            || entry & (R | W) == W
            || entry & RESERVED != 0
            || entry & PBMT == PBMT
            || misaligned
            || no_napot
        {
            Kind::Reserved
        } else {
            Kind::Leaf
        }
    }

    #[inline]
    fn is_table(level: u8, entry: u64) -> bool {
        entry & (V | R | W | X | RESERVED_IN_TABLE) == V && level > 0
    }

    #[inline]
    fn table_pa(level: u8, entry: u64) -> u64 {
        Self::leaf_pa(level, entry)
    }

    #[inline]
    fn leaf(level: u8, lg2: u32, attrs: u64, pa: u64) -> u64 {
        let napot = if level == 0 && lg2 == NAPOT_LG2 { N | NAPOT_SPELT } else { 0 };
        V | attrs | napot | pa >> 2 & PPN
    }

    #[inline]
    fn leaf_lg2(level: u8, entry: u64) -> u32 {
        if entry & N != 0 { NAPOT_LG2 } else { Self::shift(level) }
    }

    #[inline]
    fn leaf_pa(_level: u8, entry: u64) -> u64 {
        (entry & PPN) << 2
    }

    #[inline]
    fn untracked(attrs: u64) -> u64 {
        if attrs & W != 0 { attrs | A | D } else { attrs | A }
    }
}
