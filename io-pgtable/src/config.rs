//! How one table is set up: what a driver would put in its device's registers.

use crate::{Error, Format};

/// The shape of a table. Start from [`Format::config`] and change what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bits of an IOVA that are translated. With a dynamic top, the most that the table may grow to.
    pub iova_bits: u32,
    /// Levels of the table, at creation. When they index fewer bits than `iova_bits`, the top table is
    /// larger to make up for it (Arm's concatenated tables).
    pub levels: u8,
    /// Bits of a physical address that a leaf may hold.
    pub oa_bits: u32,
    /// Page sizes that may be used at all; the format's own set is applied on top. Bit n: 2^n bytes.
    pub page_sizes: u64,
    /// Whether hardware keeps accessed and dirty state. If not, entries are written as used already.
    pub track: bool,
    /// Whether the table gains levels when an IOVA needs them; only where the format can.
    pub dynamic_top: bool,
}

impl Config {
    /// A table of `levels` levels over `iova_bits` bits, with all page sizes and tracking.
    pub const fn new(iova_bits: u32, levels: u8, oa_bits: u32) -> Self {
        let page_sizes = u64::MAX;
        Self { iova_bits, levels, oa_bits, page_sizes, track: true, dynamic_top: false }
    }

    /// Checks the shape against what `F` can do.
    pub(crate) fn check<F: Format>(&self) -> Result<(), Error> {
        let ok = self.levels >= 1
            && self.levels <= F::MAX_LEVELS
            && self.iova_bits <= 64
            && self.oa_bits <= 64
            && (!self.dynamic_top || F::DYNAMIC_TOP)
            && self.iova_bits > F::shift(self.levels - 1)
            && self.sizes::<F>() != 0
            && (self.dynamic_top
                || self.top_lg2::<F>(self.levels) <= F::index_lg2(self.levels - 1) + 4);
        if ok { Ok(()) } else { Err(Error::BadConfig) }
    }

    /// The page sizes of this table.
    pub(crate) fn sizes<F: Format>(&self) -> u64 {
        self.page_sizes & F::page_sizes(self)
    }

    /// log2 of the entries used in a top table that makes `levels` levels.
    pub(crate) fn top_lg2<F: Format>(&self, levels: u8) -> u32 {
        let bits = self.iova_bits - F::shift(levels - 1);
        if self.dynamic_top { bits.min(F::index_lg2(levels - 1)) } else { bits }
    }

    /// log2 of the entries that a top table which makes `levels` levels has room for.
    pub(crate) fn room_lg2<F: Format>(&self, levels: u8) -> u32 {
        self.top_lg2::<F>(levels).max(F::index_lg2(levels - 1))
    }

    /// The lowest `bits` bits.
    pub(crate) const fn low(bits: u32) -> u64 {
        if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
    }

    /// The translated part of one IOVA, of which the bits of `mask` are translated; `None` if the others
    /// are not as they have to be. The short way of [`Self::range`].
    #[inline]
    pub(crate) fn translated<F: Format>(mask: u64, iova: u64) -> Option<u64> {
        // The upper half of the canonical addresses lies below the lower one when both are moved up by a
        // half.
        let from = if F::SIGN_EXTENDED { iova.wrapping_add((mask >> 1) + 1) } else { iova };
        (from <= mask).then_some(iova & mask)
    }

    /// Checks `len` bytes at `iova` and returns their first and last translated address.
    #[inline]
    pub(crate) fn range<F: Format>(&self, iova: u64, len: u64) -> Result<(u64, u64), Error> {
        let error = Error::OutOfRange { iova, len };
        let more = len.checked_sub(1).ok_or(error)?;
        let last = iova.checked_add(more).ok_or(error)?;
        // `check` saw to it that there are 1 to 64 bits.
        let unused = 64 - self.iova_bits;
        let mask = u64::MAX >> unused;
        if F::SIGN_EXTENDED {
            // Both ends have to be canonical and in the same half: between the halves is a hole.
            let canonical = |iova| ((iova << unused) as i64 >> unused) as u64 == iova;
            if !canonical(iova) || !canonical(last) || (iova ^ last) & !(mask >> 1) != 0 {
                return Err(error);
            }
        } else if last > mask {
            return Err(error);
        }
        Ok((iova & mask, last & mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_each_format;

    /// The short question about one IOVA is answered as the long one, at every border there is.
    fn one_is_a_short_range<F: Format>(config: Config) {
        let mask = Config::low(config.iova_bits);
        for bit in 0..64 {
            for iova in [1u64 << bit, (1 << bit) - 1, !(1 << bit), (1u64 << bit).wrapping_neg()] {
                let range = config.range::<F>(iova, 1).ok().map(|(first, _)| first);
                assert_eq!(Config::translated::<F>(mask, iova), range, "{iova:#x}");
            }
        }
    }

    macro_rules! rows {
        ($($name:ident: $format:ty, $config:expr;)*) => {
            #[test]
            fn one_iova() {
                $(one_is_a_short_range::<$format>($config);)*
            }
        };
    }

    for_each_format!(rows);
}
