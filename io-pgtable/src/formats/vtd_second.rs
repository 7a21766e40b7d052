//! Intel VT-d second-stage tables.
//!
//! Source: Intel Virtualization Technology for Directed I/O (D51397), revision 5.10, section 9.8
//! "Second-Stage Paging Entries", tables 41 to 47; 3.7 "Second-Stage Translation" for the walk, 3.7.1
//! for rights, 3.7.2 for accessed and dirty flags. Three to five levels; pages of 4 KiB, 2 MiB and
//! 1 GiB. Bits 62 and 61 (IW, IR), by which that revision lets hardware go instead of W and R once it
//! is told to, are not used. Every field was checked against that text. Of what it reserves, PS in
//! the two upper levels is refused; address bits below a large page's size, SNP in a table's entry
//! and IW are not looked at.

use crate::{Config, Dirty, Field, Format, Prot};

/// R, bit 0: read permission. An entry with neither R nor W is not present (section 3.7).
const R: u64 = 1 << 0;
/// W, bit 1: write permission (section 9.8).
const W: u64 = 1 << 1;
/// PS, bit 7: a page of the level's size (section 9.8, tables 43 and 45).
const PS: u64 = 1 << 7;
/// A, bit 8: accessed (section 3.7.2).
const A: u64 = 1 << 8;
/// D, bit 9: dirty (section 3.7.2).
const D: u64 = 1 << 9;
/// SNP, bit 11 of a leaf: accesses to the page are snooped (section 9.8); reserved where hardware has
/// no Snoop Control.
const SNP: u64 = 1 << 11;

/// Intel VT-d second stage.
#[derive(Debug)]
pub enum VtdSecond {}

impl Format for VtdSecond {
    const NAME: &'static str = "vtd_second";
    const MAX_LEVELS: u8 = 5;
    const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
    const PRESENT: u64 = R | W;
    /// A walk takes the AND of its entries' permissions (section 3.7.1), so tables give them all.
    const TABLE: u64 = R | W;
    const LARGE: u64 = PS;
    /// ADDR, bits 51:12 (section 9.8); bits above the host address width are reserved.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const FIELDS: &'static [Field] = &[
        Field {
            care: Prot::READ.union(Prot::WRITE),
            mask: R | W,
            values: &[(Prot::READ, R), (Prot::WRITE, W), (Prot::READ.union(Prot::WRITE), R | W)],
        },
        Field::bit(Prot::SNOOP, SNP),
    ];
    const ACCESSED: u64 = A;
    const DIRTY: Dirty = Dirty::bit(D);

    fn config() -> Config {
        Config::new(48, 4, 52)
    }

    #[inline]
    fn used(entry: u64) -> u64 {
        // R or W, without a comparison, so that the loop around it stays wide.
        (entry | entry >> 1) & R
    }
}
