//! Two words at a time, for the loops over a table's words.
//!
//! The compiler turns a loop of stores that count up into wide ones, but not if the loop also looks at
//! what it overwrites; so those loops are written in pairs. With SSE2 a pair is a register
//! (every x86-64 has them); elsewhere it is two words.
#![allow(unsafe_code)] // Loads and stores of registers take raw pointers.

use core::cell::Cell;

#[cfg(target_feature = "sse2")]
use core::arch::x86_64::{
    __m128i, _mm_add_epi64, _mm_and_si128, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_or_si128,
    _mm_set_epi64x, _mm_storeu_si128, _mm_unpackhi_epi64, _mm_xor_si128,
};

/// Calls an intrinsic that works on registers only.
#[cfg(target_feature = "sse2")]
macro_rules! sse2 {
    ($call:expr) => {
        // SAFETY: this is compiled for processors that have SSE2 only.
        unsafe { $call }
    };
}

/// Two words.
#[cfg(target_feature = "sse2")]
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m128i);

#[cfg(target_feature = "sse2")]
impl Pair {
    #[inline(always)]
    pub(crate) fn new(low: u64, high: u64) -> Self {
        Self(sse2!(_mm_set_epi64x(high as i64, low as i64)))
    }

    #[inline(always)]
    pub(crate) fn load(words: &[Cell<u64>; 2]) -> Self {
        // SAFETY: the 16 bytes are those of two cells, which this thread may read; no alignment is
        // asked for.
        Self(unsafe { _mm_loadu_si128(words.as_ptr().cast()) })
    }

    #[inline(always)]
    pub(crate) fn store(self, words: &[Cell<u64>; 2]) {
        let words: *mut Cell<u64> = words.as_ptr().cast_mut();
        // SAFETY: the 16 bytes are those of two cells, which may be written through a shared
        // reference on this thread; no alignment is asked for.
        unsafe { _mm_storeu_si128(words.cast(), self.0) }
    }

    #[inline(always)]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(sse2!(_mm_add_epi64(self.0, other.0)))
    }

    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(sse2!(_mm_and_si128(self.0, other.0)))
    }

    #[inline(always)]
    pub(crate) fn or(self, other: Self) -> Self {
        Self(sse2!(_mm_or_si128(self.0, other.0)))
    }

    #[inline(always)]
    pub(crate) fn xor(self, other: Self) -> Self {
        Self(sse2!(_mm_xor_si128(self.0, other.0)))
    }

    /// Both words.
    #[inline(always)]
    pub(crate) fn words(self) -> [u64; 2] {
        let high = sse2!(_mm_unpackhi_epi64(self.0, self.0));
        [self.0, high].map(|low| sse2!(_mm_cvtsi128_si64(low)) as u64)
    }
}

/// Two words.
#[cfg(not(target_feature = "sse2"))]
#[derive(Clone, Copy)]
pub(crate) struct Pair([u64; 2]);

#[cfg(not(target_feature = "sse2"))]
impl Pair {
    #[inline(always)]
    pub(crate) fn new(low: u64, high: u64) -> Self {
        Self([low, high])
    }

    #[inline(always)]
    pub(crate) fn load(words: &[Cell<u64>; 2]) -> Self {
        Self([words[0].get(), words[1].get()])
    }

    #[inline(always)]
    pub(crate) fn store(self, words: &[Cell<u64>; 2]) {
        words[0].set(self.0[0]);
        words[1].set(self.0[1]);
    }

    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }

    #[inline(always)]
    pub(crate) fn plus(self, other: Self) -> Self {
        self.each(other, u64::wrapping_add)
    }

    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        self.each(other, |a, b| a & b)
    }

    #[inline(always)]
    pub(crate) fn or(self, other: Self) -> Self {
        self.each(other, |a, b| a | b)
    }

    #[inline(always)]
    pub(crate) fn xor(self, other: Self) -> Self {
        self.each(other, |a, b| a ^ b)
    }

    /// Both words.
    #[inline(always)]
    pub(crate) fn words(self) -> [u64; 2] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_do_what_words_do() {
        let (a, b) = ([u64::MAX - 3, 0x0f0f], [7, u64::MAX]);
        let (x, y) = (Pair::new(a[0], a[1]), Pair::new(b[0], b[1]));
        assert_eq!(x.words(), a);
        assert_eq!(x.plus(y).words(), [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]);
        assert_eq!(x.and(y).words(), [a[0] & b[0], a[1] & b[1]]);
        assert_eq!(x.or(y).words(), [a[0] | b[0], a[1] | b[1]]);
        assert_eq!(x.xor(y).words(), [a[0] ^ b[0], a[1] ^ b[1]]);
        let cells = a.map(Cell::new);
        y.store(&cells);
        assert_eq!((cells[0].get(), cells[1].get()), (b[0], b[1]));
        assert_eq!(Pair::load(&cells).words(), b);
    }
}
