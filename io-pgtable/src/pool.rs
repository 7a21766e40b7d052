//! Table pages that are kept for the next table, around a memory that is slow to give single pages.
#![allow(unsafe_code)] // Links free pages through their own first words, and hands out raw pages.

use crate::Memory;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::*};

/// log2 of the pages that are taken from the memory below at a time.
const CHUNK_LG2: u32 = 6;

/// Sizes of pages that are kept, as log2: from a small top table up to Arm's largest concatenated ones.
const CLASSES: usize = 24;

/// A pool: takes pages from `M` in chunks and keeps those that come back, until it is dropped.
#[derive(Debug)]
pub struct Pool<M: Memory> {
    inner: M,
    busy: AtomicBool,
    state: UnsafeCell<State>,
}

#[derive(Debug)]
struct State {
    /// First free page of each size; 0 for none. A free page's first word is the next one.
    free: [u64; CLASSES],
    /// Every chunk, with its size in bytes.
    chunks: Vec<(u64, usize)>,
    /// Pages given out and not returned.
    pages: usize,
}

// SAFETY: the state is only touched by whoever holds `busy`.
unsafe impl<M: Memory> Sync for Pool<M> {}

impl<M: Memory> Pool<M> {
    /// An empty pool that takes from `inner`.
    pub const fn new(inner: M) -> Self {
        let state = State { free: [0; CLASSES], chunks: Vec::new(), pages: 0 };
        Self { inner, busy: AtomicBool::new(false), state: UnsafeCell::new(state) }
    }

    /// Pages given out and not returned.
    pub fn pages(&self) -> usize {
        self.locked(|state| state.pages)
    }

    /// Runs `f` alone. Sections are a few instructions, but for the memory below giving a chunk.
    fn locked<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        while self.busy.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
        // SAFETY: `busy` was false and is true now: nobody else is in here until it is false again.
        let result = f(unsafe { &mut *self.state.get() });
        self.busy.store(false, Release);
        result
    }

    fn push(&self, state: &mut State, class: usize, pa: u64) -> Option<()> {
        let page = self.inner.at(pa, 1 << class)?;
        // SAFETY: the page is free, so that its words are the pool's.
        unsafe { page.as_ptr().write(state.free[class]) };
        state.free[class] = pa;
        Some(())
    }

    /// Takes another chunk for pages of 2^`class` bytes, or a single page if there is no chunk.
    fn refill(&self, state: &mut State, class: usize) -> Option<()> {
        for lg2 in [CHUNK_LG2, 0] {
            if let Some(chunk) = self.inner.alloc(1 << (class as u32 + lg2)) {
                state.chunks.push((chunk, 1 << (class as u32 + lg2)));
                return (0..1 << lg2)
                    .rev()
                    .try_for_each(|page: u64| self.push(state, class, chunk + (page << class)));
            }
        }
        None
    }
}

// SAFETY: a page is part of a chunk that the pool keeps until it is dropped, and on the free list or
// given out, never both; its size and alignment are its class's.
unsafe impl<M: Memory> Memory for Pool<M> {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        let class = bytes.trailing_zeros() as usize;
        if class >= CLASSES || !bytes.is_power_of_two() || bytes < 8 {
            return None;
        }
        self.locked(|state| {
            if state.free[class] == 0 {
                self.refill(state, class)?;
            }
            let pa = state.free[class];
            // SAFETY: a page on the free list is initialised with the next one's address.
            state.free[class] = unsafe { self.inner.at(pa, bytes)?.as_ptr().read() };
            state.pages += 1;
            Some(pa)
        })
    }

    unsafe fn free(&self, pa: u64, bytes: usize) {
        self.locked(|state| {
            state.pages -= 1;
            self.push(state, bytes.trailing_zeros() as usize, pa)
        });
    }

    #[inline]
    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
        self.inner.at(pa, bytes)
    }
}

impl<M: Memory> Drop for Pool<M> {
    fn drop(&mut self) {
        for (pa, bytes) in core::mem::take(&mut self.state.get_mut().chunks) {
            // SAFETY: the chunk came from this memory with this size, and nobody can have its pages
            // any more, because everything that uses them borrows or owns the pool.
            unsafe { self.inner.free(pa, bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Heap;

    #[test]
    fn pages_are_distinct_and_come_back() {
        const PAGES: usize = if cfg!(miri) { 70 } else { 200 };
        let heap = Heap::new();
        let pool = Pool::new(&heap);
        let mut pages: Vec<u64> = (0..PAGES).map(|_| pool.alloc(4096).unwrap()).collect();
        pages.sort_unstable();
        assert!(pages.windows(2).all(|pair| pair[0] + 4096 <= pair[1] && pair[0] % 4096 == 0));
        assert_eq!(pool.pages(), PAGES);
        for &page in &pages {
            // SAFETY: each page is returned once.
            unsafe { pool.free(page, 4096) };
        }
        let taken = heap.bytes();
        let again: Vec<u64> = (0..PAGES).map(|_| pool.alloc(4096).unwrap()).collect();
        assert_eq!(heap.bytes(), taken, "nothing more was taken");
        assert!(again.iter().all(|page| pages.contains(page)));
        assert_eq!(pool.alloc(3), None);
        drop(pool);
        assert_eq!(heap.pages(), 0);
    }
}
