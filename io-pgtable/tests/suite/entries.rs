//! Encoding and decoding of single entries: what goes in comes out.

use super::sizes;
use io_pgtable::{Config, Format, Kind, Prot};
use proptest::prelude::*;

pub(crate) fn round_trips<F: Format>(config: Config) {
    let strategy = (
        proptest::sample::select(sizes::<F>(&config)),
        any::<u64>(),
        any::<u32>().prop_map(Prot::from_bits_truncate),
        1..config.levels.max(2),
        any::<bool>(),
    );
    let cases = if cfg!(miri) { 2 } else { 2000 };
    super::runner(cases)
        .run(&strategy, |(lg2, address, prot, upper, track)| {
            let address = address & (u64::MAX >> (64 - config.oa_bits));
            let level = (0..F::MAX_LEVELS).rev().find(|&level| F::shift(level) <= lg2).unwrap();
            let pa = address & !((1 << lg2) - 1);
            if let Ok(attrs) = F::attrs(prot, track) {
                let mut entry = F::leaf(level, lg2, attrs, pa);
                prop_assert_eq!(F::kind(level, entry), Kind::Leaf);
                prop_assert_eq!(F::leaf_lg2(level, entry), lg2);
                prop_assert_eq!(F::leaf_pa(level, entry) & !((1 << lg2) - 1), pa);
                prop_assert_eq!(F::prot(entry), prot);
                prop_assert_ne!(entry, F::absent(level));
                // Marks change nothing but themselves, and go away again.
                let clean = F::DIRTY.clean(entry);
                entry = F::DIRTY.mark(entry | F::ACCESSED);
                prop_assert_eq!(F::prot(entry), prot);
                prop_assert_eq!(F::leaf_pa(level, entry) & !((1 << lg2) - 1), pa);
                let writable = F::DIRTY.tracked == 0 || prot.contains(Prot::WRITE) && track;
                prop_assert_eq!(F::DIRTY.is_dirty(entry), F::DIRTY.mask != 0 && writable);
                prop_assert_eq!(F::DIRTY.clean(entry) & !F::ACCESSED, clean & !F::ACCESSED);
                prop_assert_eq!(F::leaf(level, lg2, F::leaf_attrs(entry), pa), entry);
            }
            let below = address & !((8 << F::index_lg2(upper - 1)) - 1);
            let entry = F::table(upper, below);
            prop_assert_eq!(F::kind(upper, entry), Kind::Table);
            prop_assert_eq!(F::table_pa(upper, entry), below);
            prop_assert_eq!(F::kind(upper, F::absent(upper)), Kind::Absent);
            prop_assert_eq!(F::kind(0, F::absent(0)), Kind::Absent);
            Ok(())
        })
        .unwrap();
}
