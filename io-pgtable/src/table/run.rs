//! The loops over consecutive words of one table, in one place because their speed is their shape.
//!
//! The words are cells where the writer is alone, and are taken in [pairs](crate::pair); they are atomics
//! where it has readers. What is in the way of a run is looked for in blocks of [`BLOCK`] words just
//! before they are overwritten, while they are at hand; so are entries counted before they go.

use crate::pair::Pair;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words that are looked at together. Half as many pairs leave enough registers for the rest.
const BLOCK: usize = 16;

/// Words of a table, whoever else may see them.
pub(super) trait Word: Sized {
    /// How a block of entries that go up is stored.
    type Rising: Rising<Self>;

    fn get(&self) -> u64;
    fn set(&self, entry: u64);

    /// The conjunction and the disjunction of all words.
    #[inline(always)]
    fn sum(words: &[Self]) -> (u64, u64) {
        words.iter().fold((u64::MAX, 0), |(and, or), word| {
            let entry = word.get();
            (and & entry, or | entry)
        })
    }

    /// Whether all words hold `entry`.
    #[inline(always)]
    fn all_are(words: &[Self], entry: u64) -> bool {
        words.iter().fold(0, |any, word| any | (word.get() ^ entry)) == 0
    }
}

/// Entries that go up, a block at a time.
pub(super) trait Rising<W> {
    /// Entries that begin with `entry` and go up by `stride`.
    fn new(entry: u64, stride: u64) -> Self;
    /// Stores the next block.
    fn store(&mut self, block: &[W; BLOCK]);
    /// The entry after the blocks that were stored.
    fn next(&self) -> u64;
}

/// The blocks of `words`, and what is left.
#[inline(always)]
fn blocks<W>(words: &[W]) -> (&[[W; BLOCK]], &[W]) {
    words.as_chunks()
}

impl Word for Cell<u64> {
    type Rising = Pairs;

    #[inline(always)]
    fn get(&self) -> u64 {
        self.get()
    }

    #[inline(always)]
    fn set(&self, entry: u64) {
        self.set(entry);
    }

    #[inline(always)]
    fn sum(words: &[Self]) -> (u64, u64) {
        let (pairs, rest) = words.as_chunks::<2>();
        let (mut and, mut or) = (Pair::new(u64::MAX, u64::MAX), Pair::new(0, 0));
        for pair in pairs {
            let pair = Pair::load(pair);
            (and, or) = (and.and(pair), or.or(pair));
        }
        let (and, or) = (and.words(), or.words());
        let (mut and, mut or) = (and[0] & and[1], or[0] | or[1]);
        for word in rest {
            (and, or) = (and & word.get(), or | word.get());
        }
        (and, or)
    }

    #[inline(always)]
    fn all_are(words: &[Self], entry: u64) -> bool {
        let (pairs, rest) = words.as_chunks::<2>();
        let (mut other, entries) = (Pair::new(0, 0), Pair::new(entry, entry));
        for pair in pairs {
            other = other.or(Pair::load(pair).xor(entries));
        }
        let other = other.words();
        rest.iter().fold(other[0] | other[1], |any, word| any | (word.get() ^ entry)) == 0
    }
}

/// A register for each pair of a block, so that each goes up by itself.
pub(super) struct Pairs {
    pairs: [Pair; BLOCK / 2],
    /// What a block adds to each word.
    up: Pair,
}

impl Rising<Cell<u64>> for Pairs {
    #[inline(always)]
    fn new(entry: u64, stride: u64) -> Self {
        let two = Pair::new(stride.wrapping_mul(2), stride.wrapping_mul(2));
        let mut pairs = [Pair::new(entry, entry.wrapping_add(stride)); BLOCK / 2];
        for n in 1..BLOCK / 2 {
            pairs[n] = pairs[n - 1].plus(two);
        }
        let up = stride.wrapping_mul(BLOCK as u64);
        Self { pairs, up: Pair::new(up, up) }
    }

    #[inline(always)]
    fn store(&mut self, block: &[Cell<u64>; BLOCK]) {
        for (words, pair) in block.as_chunks::<2>().0.iter().zip(&mut self.pairs) {
            pair.store(words);
            *pair = pair.plus(self.up);
        }
    }

    #[inline(always)]
    fn next(&self) -> u64 {
        self.pairs[0].words()[0]
    }
}

impl Word for AtomicU64 {
    type Rising = Singles;

    #[inline(always)]
    fn get(&self) -> u64 {
        self.load(Relaxed)
    }

    #[inline(always)]
    fn set(&self, entry: u64) {
        self.store(entry, Relaxed);
    }
}

/// Atomic words, which go up one by one.
pub(super) struct Singles {
    entry: u64,
    stride: u64,
}

impl Rising<AtomicU64> for Singles {
    #[inline(always)]
    fn new(entry: u64, stride: u64) -> Self {
        Self { entry, stride }
    }

    #[inline(always)]
    fn store(&mut self, block: &[AtomicU64; BLOCK]) {
        for (n, word) in block.iter().enumerate() {
            word.set(self.entry.wrapping_add(self.stride.wrapping_mul(n as u64)));
        }
        self.entry = self.entry.wrapping_add(self.stride.wrapping_mul(BLOCK as u64));
    }

    #[inline(always)]
    fn next(&self) -> u64 {
        self.entry
    }
}

/// Stores entries that begin with `entry` and go up by `stride`, a block at a time, as far as `look`
/// accepts the block that is there. Returns the number of words written.
#[inline(always)]
fn count_up<W: Word>(
    words: &[W],
    mut entry: u64,
    stride: u64,
    look: impl Fn(&[W]) -> bool,
) -> usize {
    let (blocks, rest) = blocks(words);
    if !blocks.is_empty() {
        let mut rising = W::Rising::new(entry, stride);
        for (n, block) in blocks.iter().enumerate() {
            if !look(block) {
                return n * BLOCK;
            }
            rising.store(block);
        }
        entry = rising.next();
    }
    if !look(rest) {
        return blocks.len() * BLOCK;
    }
    for word in rest {
        word.set(entry);
        entry = entry.wrapping_add(stride);
    }
    words.len()
}

/// Entries for consecutive words: they begin with `first` and go up by `stride` every 2^`repeat` words.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) stride: u64,
    pub(super) repeat: u32,
}

impl Run {
    /// The entry for word `n`.
    #[inline]
    fn entry(self, n: usize) -> u64 {
        self.first.wrapping_add(self.stride.wrapping_mul((n >> self.repeat) as u64))
    }

    /// Stores the entries from word `at` on, as far as `look` accepts what is there.
    #[inline(always)]
    fn store_from<W: Word>(
        self,
        at: usize,
        words: &[W],
        look: impl Fn(&[W]) -> bool + Copy,
    ) -> usize {
        if self.repeat == 0 {
            return count_up(words, self.entry(at), self.stride, look);
        }
        // The first of the pages may have begun before.
        let mut page = (at.wrapping_neg() & ((1 << self.repeat) - 1)).min(words.len());
        let mut done = 0;
        while done < words.len() {
            let wrote = count_up(&words[done..done + page], self.entry(at + done), 0, look);
            done += wrote;
            if wrote < page {
                break;
            }
            page = (1 << self.repeat).min(words.len() - done);
        }
        done
    }

    /// Stores the entries into words whatever they hold.
    #[inline]
    pub(super) fn store<W: Word>(self, words: &[W]) {
        self.store_from(0, words, |_| true);
    }

    /// Stores all but the first `done` entries.
    #[cold]
    pub(super) fn store_after<W: Word>(self, done: usize, words: &[W]) {
        self.store_from(done, &words[done..], |_| true);
    }

    /// Stores the entries as far as the words are `absent`. Returns the number of words written; if
    /// that is not all, one of the next [`BLOCK`] words holds something else.
    #[inline(always)]
    pub(super) fn put<W: Word>(self, words: &[W], absent: u64) -> usize {
        self.store_from(0, words, |words| all_are(words, absent))
    }
}

/// Whether all words hold `entry`.
#[inline(always)]
pub(super) fn all_are<W: Word>(words: &[W], entry: u64) -> bool {
    W::all_are(words, entry)
}

/// Overwrites words with `absent` and sums up what `used` says of each before; `all_used` says of a
/// conjunction and a disjunction whether each of their words counts.
#[inline(always)]
pub(super) fn clear<W: Word>(
    words: &[W],
    absent: u64,
    used: impl Fn(u64) -> u64,
    all_used: impl Fn(u64, u64) -> bool,
) -> u64 {
    let (blocks, rest) = blocks(words);
    let mut count = 0;
    for block in blocks {
        count += count_used(block, &used, &all_used);
        for word in block {
            word.set(absent);
        }
    }
    for word in rest {
        count += used(word.get());
        word.set(absent);
    }
    count
}

/// Sums up what `used` says of each word; see [`clear`].
#[inline(always)]
pub(super) fn count_used<W: Word>(
    words: &[W],
    used: impl Fn(u64) -> u64,
    all_used: impl Fn(u64, u64) -> bool,
) -> u64 {
    let (blocks, rest) = blocks(words);
    let mut count = 0;
    for block in blocks {
        let (and, or) = W::sum(block);
        count += if all_used(and, or) {
            BLOCK as u64
        } else {
            block.iter().map(|word| used(word.get())).sum()
        };
    }
    count + rest.iter().map(|word| used(word.get())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const LENGTHS: core::ops::Range<usize> = if cfg!(miri) { 33..36 } else { 0..140 };
    /// Every how many words something else is put.
    const STEP: usize = if cfg!(miri) { 11 } else { 1 };

    fn clear_odd<W: Word>(words: &[W], absent: u64) -> u64 {
        clear(words, absent, |entry| entry & 1, |and, _| and & 1 != 0)
    }

    /// Every length around the blocks, every repeat: the words one by one.
    #[test]
    fn runs_are_what_their_entries_say() {
        for (len, repeat) in LENGTHS.flat_map(|len| (0..8).map(move |repeat| (len, repeat))) {
            let run = Run { first: u64::MAX - 5, stride: 0x1001, repeat };
            let expected: Vec<u64> = (0..len)
                .map(|n| run.first.wrapping_add(run.stride.wrapping_mul(n as u64 >> repeat)))
                .collect();
            let words: Vec<_> = (0..len).map(|_| Cell::new(7)).collect();
            assert_eq!(run.put(&words, 7), len);
            assert_eq!(words.iter().map(Cell::get).collect::<Vec<_>>(), expected);
            let atomics: Vec<_> = (0..len).map(|_| AtomicU64::new(0)).collect();
            assert_eq!(run.put(&atomics, 0), len);
            assert_eq!(atomics.iter().map(Word::get).collect::<Vec<_>>(), expected);
            let odd = expected.iter().map(|entry| entry & 1).sum();
            assert_eq!((clear_odd(&words, 3), clear_odd(&atomics, 3)), (odd, odd));
            assert!(all_are(&words, 3) && all_are(&atomics, 3));
            assert_eq!((clear_odd(&words, 0), clear_odd(&atomics, 0)), (len as u64, len as u64));
            assert!(all_are(&words, 0) && all_are(&atomics, 0));
        }
    }

    #[test]
    fn a_run_ends_before_the_block_that_holds_something() {
        for (len, other) in
            LENGTHS.flat_map(|len| (0..len).step_by(STEP).map(move |other| (len, other)))
        {
            for absent in [0, 6] {
                let words: Vec<_> = (0..len)
                    .map(|n| Cell::new(if n == other { absent + 1 } else { absent }))
                    .collect();
                let run = Run { first: 100, stride: 1, repeat: 0 };
                let done = run.put(&words, absent);
                assert!(done <= other && other - done < BLOCK);
                let written = words.iter().take_while(|word| word.get() >= 100).count();
                assert_eq!((written, words[other].get()), (done, absent + 1));
                run.store_after(done, &words);
                assert!(words.iter().enumerate().all(|(n, word)| word.get() == run.entry(n)));
            }
        }
    }
}
