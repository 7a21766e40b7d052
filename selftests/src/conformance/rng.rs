//! The numbers that a seed makes.
//!
//! SplitMix64, written out: a recorded baseline is worth something only while a seed makes the same
//! program, and crates of random numbers do not promise that from release to release.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The sequence of `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    /// Any number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `from`, which is not empty.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// One of `from`, if there is any.
    pub(super) fn any<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(self.pick(from)) }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    /// A baseline depends on it.
    #[test]
    fn a_seed_makes_the_same_numbers_for_ever() {
        let mut rng = Rng::new(1);
        let first = [rng.next(), rng.next(), rng.next()];
        let mut again = Rng::new(1);
        assert_eq!(first, [again.next(), again.next(), again.next()]);
        assert_eq!(first, FIRST);
    }

    const FIRST: [u64; 3] = [0x65d6_ff88_398e_f0df, 0x7775_839d_baa0_7cc6, 0x35bd_d9ea_2051_1b0c];
}
