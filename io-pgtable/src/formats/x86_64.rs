//! x86-64 tables: VT-d first stage and AMD v2.
//!
//! Sources: Intel Virtualization Technology for Directed I/O (D51397), revision 5.10, section 9.7
//! "First-Stage Paging Entries", tables 34 to 40, and AMD 48882 section 2.2.6 "I/O Page Tables for Guest
//! Translations", which both take over the processor's own: Intel SDM volume 3, chapter "Paging",
//! section "4-Level Paging and 5-Level Paging" (5.5 since 2023, 4.5 before). Sections at the fields are
//! VT-d's. Every field was checked against that text; AMD's own could not be had, and its section's
//! name is the one that Linux cites.
//!
//! IOVAs are canonical (section 3.6), so that both halves can be mapped, as processors have them. VT-d
//! tells software to keep to the lower half.

use crate::{Config, Dirty, Field, Format, Prot};

/// P, bit 0: present (9.7).
const P: u64 = 1 << 0;
/// R/W, bit 1: writes are allowed (3.6.1).
const RW: u64 = 1 << 1;
/// U/S, bit 2: requests without supervisor privilege are allowed (3.6.1).
const US: u64 = 1 << 2;
/// PWT, bit 3, and PCD, bit 4: they choose the memory type (3.11.1), for devices that share the
/// processors' coherence; PAT entry 2 (uncached minus) and 3 (uncached) in the PAT's reset state (SDM
/// volume 3, section "Programming the PAT").
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
/// A, bit 5: accessed (3.6.2).
const A: u64 = 1 << 5;
/// D, bit 6: dirty (3.6.2).
const D: u64 = 1 << 6;
/// PS, bit 7: a page of the level's size (9.7, tables 36 and 38).
const PS: u64 = 1 << 7;
/// XD, bit 63: no instruction fetches (SDM volume 3, "Access Rights" of the chapter "Paging"). AMD calls
/// it NX; VT-d ignores it since it has no requests to execute any more.
const XD: u64 = 1 << 63;

/// x86-64 first stage.
#[derive(Debug)]
pub enum X86_64 {}

impl Format for X86_64 {
    const NAME: &'static str = "x86_64";
    const MAX_LEVELS: u8 = 5;
    const SIGN_EXTENDED: bool = true;
    const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
    const PRESENT: u64 = P;
    /// Tables permit everything, and are marked as accessed, so that no walk has to.
    const TABLE: u64 = P | RW | US | A;
    const LARGE: u64 = PS;
    /// ADDR, bits 51:12 (9.7).
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const FIELDS: &'static [Field] = &[
        // What is present can be read.
        Field { care: Prot::READ, mask: P, values: &[(Prot::READ, P)] },
        Field::bit(Prot::WRITE, RW),
        Field {
            care: Prot::PRIVILEGED,
            mask: US,
            values: &[(Prot::empty(), US), (Prot::PRIVILEGED, 0)],
        },
        Field {
            care: Prot::NONCACHED.union(Prot::DEVICE),
            mask: PCD | PWT,
            values: &[(Prot::empty(), 0), (Prot::NONCACHED, PCD), (Prot::DEVICE, PCD | PWT)],
        },
        Field { care: Prot::EXECUTE, mask: XD, values: &[(Prot::empty(), XD), (Prot::EXECUTE, 0)] },
    ];
    const ACCESSED: u64 = A;
    const DIRTY: Dirty = Dirty::bit(D);

    fn config() -> Config {
        Config::new(48, 4, 52)
    }

    #[inline]
    fn untracked(attrs: u64) -> u64 {
        // Not written where nobody may: to a processor, that would be a page of its shadow stack.
        if attrs & RW != 0 { attrs | A | D } else { attrs | A }
    }
}
