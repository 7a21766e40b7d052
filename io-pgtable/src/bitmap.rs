//! A bitmap of pages that were written, at any granularity.

/// One bit for each 2^`lg2` bytes from `base` on; bit 0 of the first word is the first.
#[derive(Debug)]
pub struct Bitmap<'a> {
    base: u64,
    lg2: u32,
    words: &'a mut [u64],
}

impl<'a> Bitmap<'a> {
    /// A bitmap over `words`, whose bits stay as they are until marked.
    pub fn new(base: u64, lg2: u32, words: &'a mut [u64]) -> Self {
        Self { base, lg2: lg2.min(63), words }
    }

    /// Sets the bit of every granule that has a byte in `len` bytes at `iova`; what lies outside of the
    /// bitmap is left out.
    pub fn mark(&mut self, iova: u64, len: u64) {
        let Some(more) = len.checked_sub(1) else { return };
        let Some(end) = iova.saturating_add(more).checked_sub(self.base) else { return };
        let bits = (self.words.len() as u64).saturating_mul(64);
        let first = iova.saturating_sub(self.base) >> self.lg2;
        let Some(most) = bits.checked_sub(1) else { return };
        if first > most {
            return;
        }
        let last = (end >> self.lg2).min(most);
        let (from, to) = ((first / 64) as usize, (last / 64) as usize);
        for (word, index) in self.words[from..=to].iter_mut().zip(from..) {
            let low = if index == from { first % 64 } else { 0 };
            let high = if index == to { last % 64 } else { 63 };
            *word |= (u64::MAX << low) & (u64::MAX >> (63 - high));
        }
    }
}
