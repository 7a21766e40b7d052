//! Page frame numbers of pinned pages, in the least memory.
//!
//! Where the daemon may read them, `/proc/PID/pagemap` gives the real ones. Elsewhere, or with
//! `--pfn simulated`, each pin gets numbers of its own that nobody else has, contiguous and
//! aligned just where the real frames are (as far as the kernel tells: an unprivileged reader
//! learns only where transparent huge pages are).
#![allow(unsafe_code)] // one ioctl

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Errno;

const PAGE: u64 = engine::memory::PAGE_SIZE;
/// 4K pages in a huge page of the processor.
const HUGE: u64 = 512;
/// Entries of pagemap that are read at once.
const CHUNK: u64 = 1 << 15;
/// Pagemap's present bit, and the frame's number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Where simulated numbers begin: past 1 TiB of simulated physical memory.
const FIRST_SIMULATED: u64 = 1 << 28;
/// Physical addresses have at most 52 bits; simulated ones begin anew before that.
const END_SIMULATED: u64 = 1 << 39;

/// Which numbers the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PfnMode {
    /// Real ones where the daemon may read them.
    #[default]
    Real,
    /// Simulated ones everywhere.
    Simulated,
}

/// The frames of a pin: runs of pages whose frames follow each other, 12 bytes a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    /// The page at which each run begins.
    starts: Vec<u32>,
    /// The frame of that page.
    frames: Vec<u64>,
    pages: u32,
}

impl Frames {
    /// Appends `pages` frames from `pfn`.
    fn push(&mut self, pfn: u64, pages: u32) {
        if let (Some(&start), Some(&first)) = (self.starts.last(), self.frames.last())
            && first + u64::from(self.pages - start) == pfn
        {
            self.pages += pages;
            return;
        }
        self.starts.push(self.pages);
        self.frames.push(pfn);
        self.pages += pages;
    }

    /// No more will be appended.
    pub(crate) fn shrink(&mut self) {
        self.starts.shrink_to_fit();
        self.frames.shrink_to_fit();
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.into()
    }

    /// Calls `each` with (first frame, how many) for the runs of `pages`, in order.
    pub(crate) fn for_each(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let end = pages.end.min(self.pages());
        let mut page = pages.start;
        if page >= end {
            return;
        }
        let mut run = self.starts.partition_point(|&start| u64::from(start) <= page) - 1;
        while page < end {
            let start = u64::from(self.starts[run]);
            let next = self.starts.get(run + 1).map_or(self.pages(), |&next| next.into());
            let count = next.min(end) - page;
            each(self.frames[run] + (page - start), count);
            page += count;
            run += 1;
        }
    }

    /// Bytes of memory it takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.starts.capacity() * 4 + self.frames.capacity() * 8
    }
}

/// Gives out frame numbers.
pub(crate) struct Pfns {
    mode: PfnMode,
    next: AtomicU64,
}

impl Pfns {
    /// Numbers of the kind that `mode` says.
    pub(crate) fn new(mode: PfnMode) -> Self {
        Self { mode, next: AtomicU64::new(FIRST_SIMULATED) }
    }

    /// The frames behind `pages` pages from `address`, of the mm that `pagemap` was opened for.
    ///
    /// Missing pages get simulated numbers, one by one.
    pub(crate) fn of(&self, pagemap: &File, address: u64, pages: u64) -> Result<Frames, Errno> {
        let mut frames = Frames::default();
        self.add(&mut frames, pagemap, address, pages)?;
        frames.shrink();
        Ok(frames)
    }

    /// Appends the frames behind `pages` pages from `address` to `frames`.
    pub(crate) fn add(
        &self,
        frames: &mut Frames,
        pagemap: &File,
        address: u64,
        pages: u64,
    ) -> Result<(), Errno> {
        let total = frames.pages().checked_add(pages).ok_or(Errno::ENOMEM)?;
        u32::try_from(total).map_err(|_| Errno::ENOMEM)?;
        let mut entries = vec![0_u8; (pages.min(CHUNK) * 8) as usize];
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min(CHUNK);
            let bytes = &mut entries[..(count * 8) as usize];
            let at = (address / PAGE + page) * 8;
            pagemap.read_exact_at(bytes, at).map_err(|_| Errno::EFAULT)?;
            if !self.add_real(frames, bytes) {
                self.add_unknown(frames, pagemap, address + page * PAGE, count);
            }
            page += count;
        }
        Ok(())
    }

    /// Frames for `pages` pages of which nothing is known.
    pub(crate) fn unknown(&self, pages: u64) -> Result<Frames, Errno> {
        let mut frames = Frames::default();
        u32::try_from(pages).map_err(|_| Errno::ENOMEM)?;
        self.add_lone(&mut frames, pages);
        Ok(frames)
    }

    /// Adds what `entries` of pagemap say; false when they say nothing.
    fn add_real(&self, frames: &mut Frames, entries: &[u8]) -> bool {
        let (mut first, mut count) = (0, 0);
        let (words, _) = entries.as_chunks::<8>();
        if words.iter().all(|word| u64::from_ne_bytes(*word) & FRAME == 0) {
            return false;
        }
        for word in words {
            let entry = u64::from_ne_bytes(*word);
            let pfn = if entry & PRESENT == 0 { 0 } else { entry & FRAME };
            if count > 0 && pfn != 0 && pfn == first + count {
                count += 1;
                continue;
            }
            self.add_run(frames, first, count);
            (first, count) = (pfn, 1);
        }
        self.add_run(frames, first, count);
        true
    }

    fn add_run(&self, frames: &mut Frames, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let pfn = match self.mode {
            PfnMode::Real if first != 0 => first,
            _ => self.allocate(count, first % HUGE),
        };
        frames.push(pfn, count as u32);
    }

    /// A run of `count` numbers whose first is `phase` past a multiple of [`HUGE`], and which no
    /// other run touches.
    fn allocate(&self, count: u64, phase: u64) -> u64 {
        let span = (phase + count + 1).next_multiple_of(HUGE);
        self.reserve(span) + phase
    }

    /// `span` numbers from a multiple of [`HUGE`].
    fn reserve(&self, span: u64) -> u64 {
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let end = next + span;
            Some(if end > END_SIMULATED { FIRST_SIMULATED + span } else { end })
        });
        let (Ok(start) | Err(start)) = taken;
        if start + span > END_SIMULATED { FIRST_SIMULATED } else { start }
    }

    /// Every second number, so that no two follow each other.
    fn add_lone(&self, frames: &mut Frames, pages: u64) {
        let base = self.reserve((pages * 2).next_multiple_of(HUGE));
        frames.starts.reserve_exact(pages as usize);
        frames.frames.reserve_exact(pages as usize);
        for page in 0..pages {
            frames.push(base + page * 2, 1);
        }
    }

    /// Adds `pages` pages whose real frames are hidden: huge pages contiguous, others alone.
    fn add_unknown(&self, frames: &mut Frames, pagemap: &File, address: u64, pages: u64) {
        let (mut at, end) = (address, address + pages * PAGE);
        while at < end {
            let huge = next_huge(pagemap, at..end).unwrap_or(end..end);
            if huge.start > at {
                self.add_lone(frames, (huge.start - at) / PAGE);
            }
            at = huge.start;
            while at < huge.end {
                let phase = at / PAGE % HUGE;
                let count = (HUGE - phase).min((huge.end - at) / PAGE);
                let pfn = self.allocate(count, phase);
                frames.push(pfn, count as u32);
                at += count * PAGE;
            }
        }
    }
}

/// The first range of huge pages in `range`, by `PAGEMAP_SCAN` (Linux 6.7).
fn next_huge(pagemap: &File, range: Range<u64>) -> Option<Range<u64>> {
    /// `struct pm_scan_arg` of `<linux/fs.h>`.
    #[repr(C)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    const _: () = assert!(size_of::<Scan>() == 96);
    /// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: libc::c_ulong =
        (3 << 30) | (96 << 16) | ((b'f' as libc::c_ulong) << 8) | 16;
    const PAGE_IS_HUGE: u64 = 1 << 6;
    // `struct page_region`: start, end, categories.
    let mut region = [0_u64; 3];
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: 0,
        start: range.start,
        end: range.end,
        walk_end: 0,
        vec: region.as_mut_ptr() as u64,
        vec_len: 1,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_HUGE,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_HUGE,
    };
    // SAFETY: `scan` is as long as it says and as the command says; `region` has room for the one
    // entry that `vec_len` allows.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut scan) };
    (found == 1).then(|| region[0].max(range.start)..region[1].min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(frames: &Frames, pages: Range<u64>) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        frames.for_each(pages, &mut |pfn, count| runs.push((pfn, count)));
        runs
    }

    #[test]
    fn runs_merge_and_are_cut() {
        let mut frames = Frames::default();
        frames.push(10, 2);
        frames.push(12, 1);
        frames.push(20, 1);
        frames.push(5, 4);
        assert_eq!(runs(&frames, 0..8), [(10, 3), (20, 1), (5, 4)]);
        assert_eq!(runs(&frames, 1..5), [(11, 2), (20, 1), (5, 1)]);
        assert_eq!(runs(&frames, 3..4), [(20, 1)]);
        assert_eq!(runs(&frames, 4..4), []);
        assert_eq!(runs(&frames, 6..100), [(7, 2)]);
        assert_eq!(runs(&frames, 100..101), []);
    }

    #[test]
    fn simulated_numbers_never_meet() {
        let pfns = Pfns::new(PfnMode::Simulated);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10 {
            let frames = pfns.unknown(1000).unwrap();
            for (pfn, count) in runs(&frames, 0..1000) {
                assert_eq!(count, 1, "lone pages are not contiguous");
                assert!(seen.insert(pfn));
            }
            assert!(frames.bytes() <= 16 * 1000);
        }
    }

    #[test]
    fn simulated_numbers_keep_contiguity_and_alignment() {
        let pfns = Pfns::new(PfnMode::Simulated);
        let entries: Vec<u8> = [0x1200, 0x1201, 0x1202, 0x77, 0x500_u64]
            .iter()
            .flat_map(|pfn| (PRESENT | pfn).to_ne_bytes())
            .collect();
        let mut frames = Frames::default();
        assert!(pfns.add_real(&mut frames, &entries));
        let runs = runs(&frames, 0..5);
        assert_eq!(runs.iter().map(|run| run.1).collect::<Vec<_>>(), [3, 1, 1]);
        assert_eq!(runs.iter().map(|run| run.0 % HUGE).collect::<Vec<_>>(), [0, 0x77, 0x100]);
        let real = Pfns::new(PfnMode::Real);
        let mut frames = Frames::default();
        assert!(real.add_real(&mut frames, &entries));
        assert_eq!(self::runs(&frames, 0..2), [(0x1200, 2)]);
    }

    #[test]
    fn numbers_begin_anew_at_the_end() {
        let pfns = Pfns::new(PfnMode::Simulated);
        pfns.next.store(END_SIMULATED - HUGE, Ordering::Relaxed);
        let last = pfns.allocate(1, 0);
        assert_eq!(last, END_SIMULATED - HUGE);
        assert_eq!(pfns.allocate(1, 3), FIRST_SIMULATED + 3);
        assert_eq!(pfns.allocate(1, 0), FIRST_SIMULATED + HUGE);
    }

    #[test]
    fn our_own_pages() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let memory = vec![1_u8; 64 * 4096];
        let address = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let frames = Pfns::new(PfnMode::Real).of(&pagemap, address, 63).unwrap();
        assert_eq!(frames.pages(), 63);
        assert_eq!(runs(&frames, 0..63).iter().map(|run| run.1).sum::<u64>(), 63);
    }
}
