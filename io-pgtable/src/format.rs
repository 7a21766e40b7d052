//! What a format has to say of itself. Everything that is the same for all of them is in the walker.
//!
//! A format is a type without values. It names its levels, encodes and decodes one entry, and lists
//! its permission fields as truth tables; the walker is compiled once for each. Level 0 is the
//! lowest, whose entries cover one granule; [`Format::hw_level`] gives the manual's number.

use crate::{Config, Error, Prot};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: an access through it faults.
    Absent,
    /// It points at a table of the level below.
    Table,
    /// It maps memory.
    Leaf,
    /// It holds an encoding that the format reserves, or one that this walker never writes.
    Reserved,
}

/// A field of the leaf entry that carries permissions: what each value of it means.
#[derive(Debug)]
pub struct Field {
    /// The permissions that choose the value.
    pub care: Prot,
    /// The field's bits in the entry.
    pub mask: u64,
    /// For each combination that the field can express, its value in place. Where several values mean
    /// the same, the first is written and all are read. Empty for a flag, which [`Self::bit`] makes.
    pub values: &'static [(Prot, u64)],
}

impl Field {
    /// A flag that is set when `prot` is given.
    pub const fn bit(prot: Prot, bits: u64) -> Self {
        Self { care: prot, mask: bits, values: &[] }
    }

    const fn is_bit(&self) -> bool {
        self.values.is_empty()
    }

    const fn encode(&self, prot: Prot) -> Option<u64> {
        let wanted = prot.bits() & self.care.bits();
        if self.is_bit() {
            return Some(if wanted == 0 { 0 } else { self.mask });
        }
        let mut row = 0;
        while row < self.values.len() {
            if self.values[row].0.bits() == wanted {
                return Some(self.values[row].1);
            }
            row += 1;
        }
        None
    }
}

/// log2 of the most values that the permission fields of a format have together.
const DECODED_LG2: u32 = 10;

/// How permissions are read from a leaf: the bits of all fields, pushed together, are an index into a table.
/// They lie in two groups (or one), with the widest gap between them left out.
struct Decoder {
    /// Where the groups begin, and the bits of each from there on.
    shifts: [u32; 2],
    masks: [u64; 2],
    /// Bits of the lower group.
    width: u32,
    prots: [u8; 1 << DECODED_LG2],
}

impl Decoder {
    const fn new(fields: &[Field]) -> Self {
        let (mut all, mut field) = (0, 0);
        while field < fields.len() {
            all |= fields[field].mask;
            field += 1;
        }
        let (mut best, mut at) = (Self::groups(all, 0), 1);
        while at < 64 {
            let groups = Self::groups(all, at);
            if groups.0 + groups.1 < best.0 + best.1 {
                best = groups;
            }
            at += 1;
        }
        let (low, high, shifts) = best;
        assert!(low + high <= DECODED_LG2, "the permission fields lie too far apart");
        let masks = [Config::low(low), Config::low(high)];
        let mut decoder = Self { shifts, masks, width: low, prots: [0; 1 << DECODED_LG2] };
        let mut index = 0;
        while index < 1 << (low + high) {
            let low = (index as u64 & masks[0]) << shifts[0];
            let entry = low | (index as u64 >> decoder.width) << shifts[1];
            decoder.prots[index] = decode(fields, entry);
            index += 1;
        }
        decoder
    }

    /// The widths of the bits of `all` below and from bit `at` on, and where each group begins.
    const fn groups(all: u64, at: u32) -> (u32, u32, [u32; 2]) {
        let (low, high) = (all & Config::low(at), all & !Config::low(at));
        let (first, second) = (low.trailing_zeros() % 64, high.trailing_zeros() % 64);
        let widths = [64 - (low >> first).leading_zeros(), 64 - (high >> second).leading_zeros()];
        (widths[0], widths[1], [first, second])
    }

    #[inline(always)]
    fn prot(&self, entry: u64) -> Prot {
        let low = entry >> self.shifts[0] & self.masks[0];
        let high = entry >> self.shifts[1] & self.masks[1];
        let index = (low | high << self.width) as usize & ((1 << DECODED_LG2) - 1);
        Prot::from_bits_retain(u32::from(self.prots[index]))
    }
}

/// What a leaf with these bits permits.
const fn decode(fields: &[Field], entry: u64) -> u8 {
    const { assert!(PROTS <= 1 << u8::BITS) };
    let (mut prot, mut field) = (0, 0);
    while field < fields.len() {
        let Field { care, mask, values } = fields[field];
        if values.is_empty() && entry & mask == mask {
            prot |= care.bits();
        }
        let mut value = 0;
        while value < values.len() {
            if entry & mask == values[value].1 {
                prot |= values[value].0.bits();
            }
            value += 1;
        }
        field += 1;
    }
    prot as u8
}

/// Combinations of permissions that there are.
const PROTS: usize = Prot::all().bits() as usize + 1;

/// The bits that express each combination of permissions, `None` where the fields cannot.
const fn encodings(fields: &[Field]) -> [Option<u64>; PROTS] {
    let (mut encodings, mut prot) = ([None; PROTS], 0);
    while prot < PROTS {
        let (mut attrs, mut known, mut field) = (Some(0), 0, 0);
        while field < fields.len() {
            known |= fields[field].care.bits();
            attrs = match (attrs, fields[field].encode(Prot::from_bits_retain(prot as u32))) {
                (Some(attrs), Some(bits)) => Some(attrs | bits),
                _ => None,
            };
            field += 1;
        }
        if prot as u32 & !known == 0 {
            encodings[prot] = attrs;
        }
        prot += 1;
    }
    encodings
}

/// How an entry remembers that its page was written.
#[derive(Clone, Copy, Debug)]
pub struct Dirty {
    /// Bits that are set in an entry whose state the hardware keeps; 0 when all entries have it.
    pub tracked: u64,
    /// The bit that carries the state; 0 when the format has none.
    pub mask: u64,
    /// The value of that bit for a page that was written.
    pub dirty: u64,
}

impl Dirty {
    /// A format without dirty state.
    pub const NONE: Self = Self { tracked: 0, mask: 0, dirty: 0 };

    /// A plain bit, set by hardware at a write.
    pub const fn bit(mask: u64) -> Self {
        Self { tracked: 0, mask, dirty: mask }
    }

    /// Whether hardware marked this entry as written.
    #[inline]
    pub const fn is_dirty(&self, entry: u64) -> bool {
        self.mask != 0 && entry & (self.tracked | self.mask) == self.tracked | self.dirty
    }

    /// The entry after a write, as the hardware leaves it.
    #[inline]
    pub const fn mark(&self, entry: u64) -> u64 {
        if entry & self.tracked == self.tracked { (entry & !self.mask) | self.dirty } else { entry }
    }

    /// The entry with its dirty state cleared.
    #[inline]
    pub const fn clean(&self, entry: u64) -> u64 {
        if self.is_dirty(entry) { entry ^ self.mask } else { entry }
    }

    /// Whether one of the entries with this disjunction and conjunction may be dirty.
    #[inline]
    pub const fn suspect(&self, or: u64, and: u64) -> bool {
        if self.dirty != 0 { or & self.mask != 0 } else { and & self.mask == 0 }
    }
}

/// A page-table format. See the module for the conventions.
pub trait Format: Send + Sync + 'static {
    /// Its name, as people write it.
    const NAME: &'static str;
    /// log2 of the bytes that an entry of level 0 covers.
    const GRANULE_LG2: u32 = 12;
    /// log2 of the entries of a table, where all levels agree.
    const INDEX_LG2: u32 = Self::GRANULE_LG2 - 3;
    /// The most levels it has.
    const MAX_LEVELS: u8;
    /// Whether an IOVA's upper bits repeat its topmost translated bit (a canonical address).
    const SIGN_EXTENDED: bool = false;
    /// Whether a table may gain levels while it is in use.
    const DYNAMIC_TOP: bool = false;
    /// log2 of the bytes below which the encoding of an address is one contiguous field, so that
    /// neighbouring pages' entries differ by a constant.
    const LINEAR_LG2: u32 = 64;
    /// Whether the entries that make up one larger page each hold their own address (Arm's contiguous
    /// hint) instead of being the same word (AMD v1, Svnapot).
    const OWN_ADDRESS: bool = false;
    /// All page sizes that it ever has: bit n stands for 2^n bytes.
    const SIZES: u64;
    /// An entry with none of these bits is absent, at level 0 always, and above it where the format does
    /// not say otherwise in [`Self::kind`]. 0 for a format whose entries are absent by a bit that is
    /// set. Like the next three, it serves the functions that are given here.
    const PRESENT: u64 = 0;
    /// The bits of an entry that points at a table.
    const TABLE: u64 = 0;
    /// The bit that makes an entry above level 0 a leaf.
    const LARGE: u64 = 0;
    /// The address field.
    const ADDRESS: u64 = 0;
    /// The permission fields of a leaf.
    const FIELDS: &'static [Field];
    /// The bit that hardware sets when an entry is used; 0 when the format has none.
    const ACCESSED: u64;
    /// How hardware says that a page was written.
    const DIRTY: Dirty;

    /// The configuration most users want.
    fn config() -> Config;

    /// log2 of the bytes that one entry of `level` covers.
    #[inline]
    fn shift(level: u8) -> u32 {
        Self::GRANULE_LG2 + u32::from(level) * Self::INDEX_LG2
    }

    /// log2 of the number of entries in a table of `level`.
    #[inline]
    fn index_lg2(_level: u8) -> u32 {
        Self::INDEX_LG2
    }

    /// The manual's number for `level`.
    fn hw_level(level: u8) -> i8 {
        level as i8 + 1
    }

    /// Every page size that leaves of `config` can have: bit n stands for 2^n bytes.
    fn page_sizes(config: &Config) -> u64 {
        Self::SIZES & Config::low(config.iova_bits) & Config::low(config.oa_bits + 1)
    }

    /// What a table of `level` holds where nothing is mapped.
    #[inline]
    fn absent(_level: u8) -> u64 {
        0
    }

    /// The entry of `level` (at least 1) that points at the table of the level below at `pa`.
    #[inline]
    fn table(_level: u8, pa: u64) -> u64 {
        Self::TABLE | pa & Self::ADDRESS
    }

    /// What `entry` of a table of `level` is.
    #[inline]
    fn kind(level: u8, entry: u64) -> Kind {
        if entry & Self::PRESENT == 0 {
            Kind::Absent
        } else if level > 0 && entry & Self::LARGE == 0 {
            Kind::Table
        } else if Self::SIZES >> Self::shift(level).min(63) & 1 != 0 {
            Kind::Leaf
        } else {
            Kind::Reserved
        }
    }

    /// Whether `entry` of a table of `level` points at a table: what a walk asks at every level.
    #[inline]
    fn is_table(level: u8, entry: u64) -> bool {
        Self::kind(level, entry) == Kind::Table
    }

    /// 1 if an entry of level 0 is not absent, else 0: what unmap counts with.
    #[inline]
    fn used(entry: u64) -> u64 {
        if Self::PRESENT.is_power_of_two() {
            // Without a comparison, so that the loop around it stays wide.
            entry >> Self::PRESENT.trailing_zeros() & 1
        } else {
            u64::from(Self::kind(0, entry) != Kind::Absent)
        }
    }

    /// Whether entries of level 0 with this conjunction and disjunction are surely none of them absent: a
    /// shorter way for unmap where nothing is missing, as is usual.
    #[inline]
    fn all_used(and: u64, _or: u64) -> bool {
        and & Self::PRESENT & Self::PRESENT.wrapping_neg() != 0
    }

    /// The physical address of the table that `entry` points at.
    #[inline]
    fn table_pa(_level: u8, entry: u64) -> u64 {
        entry & Self::ADDRESS
    }

    /// The leaf of `level` for the page of 2^`lg2` bytes at `pa`, with the attributes of
    /// [`Self::attrs`]. Where larger pages take several entries, that of the first one. (What is given
    /// here is for formats that are present by a permission field.)
    #[inline]
    fn leaf(level: u8, _lg2: u32, attrs: u64, pa: u64) -> u64 {
        let large = if level > 0 { Self::LARGE } else { 0 };
        large | attrs | pa & Self::ADDRESS
    }

    /// log2 of the size of the page that the leaf maps.
    #[inline]
    fn leaf_lg2(level: u8, _entry: u64) -> u32 {
        Self::shift(level)
    }

    /// The physical address that the leaf holds; its bits below the page's size have no meaning.
    #[inline]
    fn leaf_pa(_level: u8, entry: u64) -> u64 {
        entry & Self::ADDRESS
    }

    /// `attrs` for an entry whose use nobody tracks: as if accessed, and written where it may be, so
    /// that hardware which cannot update entries does not fault.
    #[inline]
    fn untracked(attrs: u64) -> u64 {
        attrs
    }

    /// The bits of a leaf, of any level and size, that express `prot`.
    #[inline]
    fn attrs(prot: Prot, track: bool) -> Result<u64, Error> {
        let attrs = const { &encodings(Self::FIELDS) };
        match attrs.get(prot.bits() as usize) {
            Some(&Some(attrs)) => Ok(if track { attrs } else { Self::untracked(attrs) }),
            _ => Err(Error::Unsupported { prot }),
        }
    }

    /// What a leaf permits.
    #[inline]
    fn prot(entry: u64) -> Prot {
        const { &Decoder::new(Self::FIELDS) }.prot(entry)
    }

    /// The bits of a leaf that [`Self::attrs`] and the hardware wrote, apart from address and size.
    #[inline]
    fn leaf_attrs(entry: u64) -> u64 {
        let fields = const {
            let (mut mask, mut i) = (Self::ACCESSED | Self::DIRTY.mask | Self::DIRTY.tracked, 0);
            while i < Self::FIELDS.len() {
                mask |= Self::FIELDS[i].mask;
                i += 1;
            }
            mask
        };
        entry & fields
    }
}
