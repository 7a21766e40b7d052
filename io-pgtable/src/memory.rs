//! Where tables live.
//!
//! A table is written in the words of the hardware, so its pages have physical addresses, and whoever
//! owns the memory decides what those are: the heap here takes a page's own virtual address, a VMM
//! its guest's memory, a [`Dump`](crate::Dump) the addresses at the time it was taken.
#![allow(unsafe_code)] // Hands out table pages as raw memory; that is what the module is for.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

/// Memory for tables.
///
/// # Safety
/// A page that `alloc` returned must hold initialised bytes (of any value), stay readable and
/// writable through `at`, at one place, and must not be given out again or be accessed by safe code
/// other than as atomic 64-bit words, until it is given to `free`. What `at` returns for an address
/// inside such a page must be valid for atomic access to `bytes` bytes as long as the page is not
/// freed and `self` lives.
pub unsafe trait Memory: Send + Sync {
    /// Takes a page of `bytes` bytes (a power of two, at least 2 KiB on every format), aligned to its
    /// size; what it holds may be anything. Returns its physical address, or `None` when there is none
    /// left.
    fn alloc(&self, bytes: usize) -> Option<u64>;

    /// Gives a page back.
    ///
    /// # Safety
    /// `pa` and `bytes` are those of one `alloc`, and nobody reads the page any more.
    unsafe fn free(&self, pa: u64, bytes: usize);

    /// The `bytes` bytes at physical address `pa`, aligned to 8 bytes; `None` if they are not here.
    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>>;
}

/// The heap, with virtual addresses as physical ones. Counts what is out.
#[derive(Debug, Default)]
pub struct Heap {
    pages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Heap {
    /// An empty heap.
    pub const fn new() -> Self {
        Self { pages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// Pages given out and not returned.
    pub fn pages(&self) -> usize {
        self.pages.load(Relaxed)
    }

    /// Bytes given out and not returned.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }
}

// SAFETY: a page is one allocation of the global allocator, which hands it out once and zeroed, and
// `at` turns an address of it back into a pointer with the provenance exposed in `alloc`.
unsafe impl Memory for Heap {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        let layout = Layout::from_size_align(bytes, bytes).ok()?;
        if bytes == 0 {
            return None;
        }
        // SAFETY: the layout's size is not zero.
        let page = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        self.pages.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        Some(page.as_ptr().expose_provenance() as u64)
    }

    unsafe fn free(&self, pa: u64, bytes: usize) {
        self.pages.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
        let page = core::ptr::with_exposed_provenance_mut::<u8>(pa as usize);
        // SAFETY: the caller says that `alloc` made this page with this size, hence this layout.
        unsafe { dealloc(page, Layout::from_size_align_unchecked(bytes, bytes)) };
    }

    #[inline]
    fn at(&self, pa: u64, _bytes: usize) -> Option<NonNull<u64>> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(pa as usize))
    }
}

/// Memory that fails on demand, around another: for tests of what a failed allocation leaves behind.
///
/// ```
/// # use io_pgtable::{Error, Failing, Format, Heap, Prot, Table, X86_64};
/// let memory = Failing::new(Heap::new());
/// let mut table = Table::<X86_64, _>::new(&memory, X86_64::config())?;
/// let pages = memory.inner().pages();
/// // It takes a table for each of the three levels below the top.
/// for allocation in 0..3 {
///     memory.fail_after(allocation);
///     assert_eq!(table.map(0x1000, 0, 0x1000, Prot::READ, u64::MAX), Err(Error::NoMemory));
///     assert_eq!(memory.inner().pages(), pages, "nothing is left");
/// }
/// memory.succeed();
/// table.map(0x1000, 0, 0x1000, Prot::READ, u64::MAX)?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct Failing<M> {
    inner: M,
    left: AtomicI64,
}

impl<M> Failing<M> {
    /// Wraps `inner`; nothing fails until [`Self::fail_after`].
    pub const fn new(inner: M) -> Self {
        Self { inner, left: AtomicI64::new(i64::MAX) }
    }

    /// Lets `n` more allocations succeed; all later ones fail.
    pub fn fail_after(&self, n: u32) {
        self.left.store(i64::from(n), Relaxed);
    }

    /// Lets every allocation succeed again.
    pub fn succeed(&self) {
        self.left.store(i64::MAX, Relaxed);
    }

    /// The memory inside.
    pub fn inner(&self) -> &M {
        &self.inner
    }
}

// SAFETY: every page is the inner memory's, handed through unchanged.
unsafe impl<M: Memory> Memory for Failing<M> {
    fn alloc(&self, bytes: usize) -> Option<u64> {
        if self.left.fetch_sub(1, Relaxed) <= 0 { None } else { self.inner.alloc(bytes) }
    }

    unsafe fn free(&self, pa: u64, bytes: usize) {
        // SAFETY: the caller's promise is about the inner memory's page.
        unsafe { self.inner.free(pa, bytes) };
    }

    #[inline]
    fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
        self.inner.at(pa, bytes)
    }
}

/// A pointer to a memory is that memory.
macro_rules! forward {
    ($($pointer:ty),*) => {$(
        // SAFETY: every call reaches the same memory, unchanged.
        unsafe impl<M: Memory + ?Sized> Memory for $pointer {
            fn alloc(&self, bytes: usize) -> Option<u64> {
                (**self).alloc(bytes)
            }

            unsafe fn free(&self, pa: u64, bytes: usize) {
                // SAFETY: the caller's promise is about the memory behind the pointer.
                unsafe { (**self).free(pa, bytes) };
            }

            #[inline]
            fn at(&self, pa: u64, bytes: usize) -> Option<NonNull<u64>> {
                (**self).at(pa, bytes)
            }
        }
    )*};
}

forward!(&M, alloc::sync::Arc<M>, alloc::boxed::Box<M>);
