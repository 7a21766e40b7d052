//! What a format's encoding and decoding owe each other, and the walker.
//!
//! Each law is a function of plain numbers. The tests below try them densely: every page size, every
//! combination of permissions, every address bit alone, missing, and with every other. Where Kani can
//! be had (`ci/kani`), it proves the same laws for all numbers.

use crate::{Config, Format, Kind, Prot};

/// A leaf says what it was made of, whatever hardware marks on it.
fn leaf<F: Format>(config: Config, lg2: u32, address: u64, prot: Prot, track: bool) {
    let Ok(attrs) = F::attrs(prot, track) else { return };
    let level = (0..F::MAX_LEVELS).rev().find(|&level| F::shift(level) <= lg2).unwrap_or(0);
    let pa = address & Config::low(config.oa_bits) & !Config::low(lg2);
    let entry = F::leaf(level, lg2, attrs, pa);
    let same = |entry| {
        assert!(F::kind(level, entry) == Kind::Leaf);
        assert!(F::leaf_lg2(level, entry) == lg2);
        assert!(F::leaf_pa(level, entry) & !Config::low(lg2) == pa);
        assert!(F::prot(entry) == prot);
    };
    same(entry);
    assert!(entry != F::absent(level));
    // A run of leaves counts up by a constant, inside of what is linear.
    let each = if F::OWN_ADDRESS { F::shift(level) } else { lg2 };
    let next = F::leaf(level, lg2, attrs, pa | 1 << each);
    if pa >> each & 1 == 0 && each < F::LINEAR_LG2 && each < config.oa_bits {
        let stride =
            F::leaf(level, lg2, attrs, 1 << each).wrapping_sub(F::leaf(level, lg2, attrs, 0));
        assert!(next == entry.wrapping_add(stride));
    }
    let clean = F::DIRTY.clean(entry);
    let marked = F::DIRTY.mark(entry | F::ACCESSED);
    same(marked);
    let tracked = F::DIRTY.tracked == 0 || (prot.contains(Prot::WRITE) && track);
    assert!(F::DIRTY.is_dirty(marked) == (F::DIRTY.mask != 0 && tracked));
    assert!(F::DIRTY.clean(marked) & !F::ACCESSED == clean & !F::ACCESSED);
    assert!(F::leaf(level, lg2, F::leaf_attrs(marked), pa) == marked);
}

/// A table's entry says where the table is.
fn table<F: Format>(config: Config, level: u8, address: u64) {
    let pa =
        address & Config::low(config.oa_bits.min(52)) & !Config::low(3 + F::index_lg2(level - 1));
    let entry = F::table(level, pa);
    assert!(F::kind(level, entry) == Kind::Table);
    assert!(F::table_pa(level, entry) == pa);
    assert!(F::kind(level, F::absent(level)) == Kind::Absent);
}

/// Any word at all, which hostile memory may hold: the short questions agree with the long ones, and
/// a leaf has a size that its level can have.
fn word<F: Format>(level: u8, entry: u64, other: u64) {
    let kind = F::kind(level, entry);
    assert!(F::is_table(level, entry) == (kind == Kind::Table));
    assert!(level > 0 || kind != Kind::Table);
    if kind == Kind::Leaf {
        let (lg2, shift) = (F::leaf_lg2(level, entry), F::shift(level));
        assert!(shift <= lg2 && lg2 < shift + F::index_lg2(level));
        assert!(F::SIZES >> lg2 & 1 != 0);
    }
    let used = |entry| u64::from(F::kind(0, entry) != Kind::Absent);
    assert!(F::used(entry) == used(entry));
    if F::all_used(entry & other, entry | other) {
        assert!(used(entry) == 1 && used(other) == 1);
    }
    assert!(!F::DIRTY.is_dirty(F::DIRTY.clean(entry)));
    if F::DIRTY.is_dirty(entry) {
        assert!(F::DIRTY.suspect(entry | other, entry & other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Every bit alone, missing, with every other, and those up to it.
    fn numbers() -> impl Iterator<Item = u64> + Clone {
        let bits = (0..64).map(|bit| 1u64 << bit);
        let pairs = bits.clone().flat_map(move |a| bits.clone().map(move |b| a | b));
        pairs.flat_map(|pair| [pair, !pair, pair - 1]).chain([0, u64::MAX])
    }

    fn all_laws<F: Format>(config: Config) {
        let mask = config.page_sizes & F::page_sizes(&config);
        let sizes: Vec<u32> = (0..64).filter(|lg2| mask >> lg2 & 1 != 0).collect();
        let prots: Vec<Prot> = (0..=Prot::all().bits()).map(Prot::from_bits_retain).collect();
        // Every permission with few addresses, and every address with few permissions.
        for &lg2 in &sizes {
            for (prot, track) in prots.iter().flat_map(|p| [(*p, true), (*p, false)]) {
                for address in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
                    leaf::<F>(config, lg2, address, prot, track);
                }
            }
            for address in numbers() {
                leaf::<F>(config, lg2, address, Prot::READ | Prot::WRITE, true);
            }
        }
        for level in 0..F::MAX_LEVELS {
            for number in numbers() {
                if level > 0 {
                    table::<F>(config, level, number);
                }
                for low in 0..16 {
                    word::<F>(level, number ^ low, number.rotate_left(7));
                    word::<F>(level, number ^ F::absent(0) ^ low, F::absent(0));
                }
            }
        }
    }

    macro_rules! rows {
        ($($name:ident: $format:ty, $config:expr;)*) => {$(
            #[test]
            #[cfg_attr(miri, ignore = "numbers only, and many")]
            fn $name() {
                all_laws::<$format>($config);
            }
        )*};
    }

    crate::for_each_format!(rows);
}

/// The proofs. Under `cargo test` they are compiled, too, and tried with numbers by chance.
mod proofs {
    use super::*;
    #[cfg(not(kani))]
    use chance as kani;

    macro_rules! rows {
        ($($name:ident: $format:ty, $config:expr;)*) => {$(
            mod $name {
                use super::*;

                #[cfg_attr(kani, kani::proof, kani::unwind(65))]
                fn leaves() {
                    let config: Config = $config;
                    let sizes = <$format>::page_sizes(&config) & config.page_sizes;
                    let lg2 = kani::any_where(|&lg2: &u32| lg2 < 64 && sizes >> lg2 & 1 != 0);
                    let prot = Prot::from_bits_truncate(kani::any());
                    leaf::<$format>(config, lg2, kani::any(), prot, kani::any());
                }

                #[cfg_attr(kani, kani::proof)]
                fn tables() {
                    let level =
                        kani::any_where(|&level: &u8| 0 < level && level < <$format>::MAX_LEVELS);
                    table::<$format>($config, level, kani::any());
                }

                #[cfg_attr(kani, kani::proof)]
                fn words() {
                    let level = kani::any_where(|&level: &u8| level < <$format>::MAX_LEVELS);
                    word::<$format>(level, kani::any(), kani::any());
                }

                #[cfg(not(kani))]
                #[test]
                #[cfg_attr(miri, ignore = "numbers only, and many")]
                fn by_chance() {
                    for _ in 0..2000 {
                        leaves();
                        tables();
                        words();
                    }
                }
            }
        )*};
    }

    crate::for_each_format!(rows);

    /// Stands for Kani where there is none: its functions, with a number for all of them.
    #[cfg(not(kani))]
    mod chance {
        use std::cell::Cell;

        std::thread_local!(static SEED: Cell<u64> = const { Cell::new(1) });

        pub(super) trait Number {
            fn from(bits: u64) -> Self;
        }

        macro_rules! numbers {
            ($($type:ty, |$bits:ident| $from:expr;)*) => {$(
                impl Number for $type {
                    fn from($bits: u64) -> Self {
                        $from
                    }
                }
            )*};
        }

        numbers! {
            u64, |bits| bits;
            u32, |bits| bits as u32;
            u8, |bits| bits as u8;
            bool, |bits| bits & 1 != 0;
        }

        /// SplitMix64's next number.
        fn next() -> u64 {
            let seed = SEED.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            SEED.set(seed);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }

        /// Any number; small ones are as likely as large ones.
        pub(super) fn any<T: Number>() -> T {
            let bits = next();
            T::from(bits >> (next() % 64))
        }

        pub(super) fn any_where<T: Number>(is: impl Fn(&T) -> bool) -> T {
            loop {
                let number = any();
                if is(&number) {
                    return number;
                }
            }
        }
    }
}
