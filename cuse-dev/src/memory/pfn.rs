//! Page frame numbers of pinned pages, in the least memory.
//!
//! Where the daemon may read them, `/proc/PID/pagemap` gives the real ones. Elsewhere, or with
//! `--pfn simulated`, pages get numbers that nobody else has ([`Blocks`]).
#![allow(unsafe_code)] // one ioctl

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use engine::Errno;

use super::block::{Block, Blocks, HUGE, Place};
use super::rings::Grain;

const PAGE: u64 = engine::memory::PAGE_SIZE;
/// Entries of pagemap that are read at once: they stay in the processor's first cache.
const CHUNK: u64 = 1 << 11;
/// Pagemap's present bit, and the frame's number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;
/// Pagemap's bit of a page that is swapped out, or on its way to another frame.
const AWAY: u64 = 1 << 62;
/// Runs that room is made for beforehand.
const MOST_ROOM: u64 = 1 << 20;
/// How often a page that is away is looked for.
const MOST_LOOKS: u32 = 100;

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
    /// Keep the simulated ones what they are.
    blocks: Vec<Arc<Block>>,
}

impl Frames {
    /// No frames yet, of as many as `pages`. Room that is not used is given back by
    /// [`Frames::shrink`], and costs nothing before.
    pub(crate) fn with_room_for(pages: u64) -> Self {
        let room = usize::try_from(pages.min(MOST_ROOM)).unwrap_or(0);
        let (starts, frames) = (Vec::with_capacity(room), Vec::with_capacity(room));
        Self { starts, frames, ..Self::default() }
    }

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
        self.blocks.shrink_to_fit();
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
}

/// Gives out frame numbers.
pub(crate) struct Pfns {
    mode: PfnMode,
    blocks: Blocks,
}

impl Pfns {
    /// Numbers of the kind that `mode` says.
    pub(crate) fn new(mode: PfnMode) -> Self {
        Self { mode, blocks: Blocks::default() }
    }

    /// What most of the `length` bytes from `address` seem to be.
    pub(super) fn grain(&self, pagemap: &File, address: u64, length: u64) -> Grain {
        let middle = address + length / 2 / PAGE * PAGE;
        if is_huge(pagemap, middle) { Grain::Huge } else { Grain::Small }
    }

    /// Appends the frames behind `pages` pages from `address`, of the mm that `pagemap` was opened
    /// for, to `frames`. `place` says which pages they are whoever looks.
    pub(crate) fn add(
        &self,
        frames: &mut Frames,
        pagemap: &File,
        address: u64,
        pages: u64,
        place: Place,
    ) -> Result<(), Errno> {
        let total = frames.pages().checked_add(pages).ok_or(Errno::ENOMEM)?;
        u32::try_from(total).map_err(|_| Errno::ENOMEM)?;
        if self.mode == PfnMode::Simulated {
            let huge = |page: u64| is_huge(pagemap, address + page * PAGE);
            self.add_simulated(frames, pages, place, &huge);
            return Ok(());
        }
        let mut entries = Vec::new();
        let (mut page, mut most) = (0, HUGE);
        while page < pages {
            let from = address + page * PAGE;
            let known = self.add_huge(frames, pagemap, from..address + pages * PAGE);
            if known != 0 {
                (page, most) = (page + known, HUGE);
                continue;
            }
            let count = (pages - page).min(most);
            most = (2 * most).min(CHUNK);
            entries.resize((count * 8) as usize, 0_u8);
            let bytes = &mut entries[..];
            self.read(pagemap, from, bytes)?;
            let huge = |page: u64| is_huge(pagemap, from + page * PAGE);
            self.add_entries(frames, bytes, place.after(page), &huge);
            page += count;
        }
        Ok(())
    }

    /// Reads pagemap's entries from `address`. The kernel takes a page of a file away for a moment
    /// before it finds that a pin keeps it from being moved.
    fn read(&self, pagemap: &File, address: u64, entries: &mut [u8]) -> Result<(), Errno> {
        for _ in 0..MOST_LOOKS {
            pagemap.read_exact_at(entries, address / PAGE * 8).map_err(|_| Errno::EFAULT)?;
            let (words, _) = entries.as_chunks::<8>();
            let away = |word: &[u8; 8]| u64::from_ne_bytes(*word) & (PRESENT | AWAY) == AWAY;
            if !words.iter().any(away) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        Ok(())
    }

    /// Appends the real frames of the huge pages that `addresses` begin with, of which the first
    /// one's frame says the others'. Answers how many pages that were, of 4 KiB each.
    fn add_huge(&self, frames: &mut Frames, pagemap: &File, addresses: Range<u64>) -> u64 {
        // Elsewhere pages of other sizes are called huge, too.
        if !cfg!(target_arch = "x86_64") || !is_huge(pagemap, addresses.start) {
            return 0;
        }
        let Some(huge) = next_huge(pagemap, addresses.clone()) else { return 0 };
        let mut at = huge.start;
        while at < huge.end {
            let mut entry = [0; 8];
            let read = pagemap.read_exact_at(&mut entry, at / PAGE * 8);
            let (Ok(()), (Some(frame), _)) = (read, self.real_run(&[entry])) else { break };
            let stop = (at / (HUGE * PAGE) + 1) * (HUGE * PAGE);
            let stop = stop.min(huge.end);
            frames.push(frame, ((stop - at) / PAGE) as u32);
            at = stop;
        }
        (at - huge.start) / PAGE
    }

    /// The real frame at `address` now, or nothing where there is none. `EOPNOTSUPP` where real
    /// ones are not to be seen.
    pub(crate) fn now(&self, pagemap: &File, address: u64) -> Result<Option<u64>, Errno> {
        let mut entry = [0; 8];
        let present = match pagemap.read_exact_at(&mut entry, address / PAGE * 8) {
            Ok(()) => u64::from_ne_bytes(entry) & PRESENT != 0,
            // Nobody has the mm any more.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => false,
            Err(_) => return Err(Errno::EOPNOTSUPP),
        };
        match self.real_run(&[entry]) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, _) if present || self.mode == PfnMode::Simulated => Err(Errno::EOPNOTSUPP),
            (None, _) => Ok(None),
        }
    }

    /// Appends frames for `pages` pages of which nothing is known.
    pub(crate) fn unknown(&self, frames: &mut Frames, pages: u64) -> Result<(), Errno> {
        let pages = u32::try_from(pages).map_err(|_| Errno::ENOMEM)?;
        for first in (0..pages).step_by(HUGE as usize) {
            let block = self.blocks.fresh(false);
            for page in 0..(pages - first).min(HUGE as u32) {
                frames.push(block.frame(page.into()), 1);
            }
            frames.blocks.push(block);
        }
        Ok(())
    }

    /// Frames for `pages` pages from `place` that nobody has made yet.
    pub(crate) fn hole(&self, pages: u64, place: Place) -> Result<Frames, Errno> {
        u32::try_from(pages).map_err(|_| Errno::ENOMEM)?;
        let mut frames = Frames::default();
        self.add_simulated(&mut frames, pages, place.hole(), &|_| true);
        frames.shrink();
        Ok(frames)
    }

    /// Adds what `entries` of pagemap say; where they do not say it, or are not asked, simulated
    /// frames of `place`. `huge` says of a page, counted from the first entry, whether it is part
    /// of a huge one.
    fn add_entries(
        &self,
        frames: &mut Frames,
        entries: &[u8],
        place: Place,
        huge: &dyn Fn(u64) -> bool,
    ) {
        let (entries, _) = entries.as_chunks::<8>();
        let (mut at, pages) = (0, entries.len() as u64);
        while at < pages {
            let (first, count) = self.real_run(&entries[at as usize..]);
            match first {
                Some(first) => frames.push(first, count),
                None => {
                    let huge_here = |page| huge(at + page);
                    self.add_simulated(frames, count.into(), place.after(at), &huge_here);
                }
            }
            at += u64::from(count);
        }
    }

    /// The first run of `entries`: its first frame, or nothing if the frames are not to be seen.
    fn real_run(&self, entries: &[[u8; 8]]) -> (Option<u64>, u32) {
        let frame = |entry: &[u8; 8]| {
            let entry = u64::from_ne_bytes(*entry);
            let seen = self.mode == PfnMode::Real && entry & PRESENT != 0 && entry & FRAME != 0;
            seen.then_some(entry & FRAME)
        };
        let first = frame(&entries[0]);
        let mut next = first;
        let more = entries[1..].iter().take_while(|entry| {
            next = next.map(|frame| frame + 1);
            frame(entry) == next
        });
        let more = more.count();
        (first, 1 + more as u32)
    }

    /// Adds simulated frames for the `pages` pages from `place`.
    fn add_simulated(
        &self,
        frames: &mut Frames,
        pages: u64,
        place: Place,
        huge: &dyn Fn(u64) -> bool,
    ) {
        let mut at = 0;
        while at < pages {
            let here = place.after(at);
            let block = self.blocks.get(here.block(), || huge(at));
            let count = (here.span() - here.in_block()).min(pages - at);
            if block.huge() {
                frames.push(block.frame(here.in_block()), count as u32);
            } else {
                (0..count).for_each(|page| frames.push(block.frame(here.in_block() + page), 1));
            }
            frames.blocks.push(block);
            at += count;
        }
    }
}

/// Whether the page at `address` is part of a huge one.
fn is_huge(pagemap: &File, address: u64) -> bool {
    next_huge(pagemap, address..address + PAGE).is_some()
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

    fn entries(frames: &[u64]) -> Vec<u8> {
        frames.iter().flat_map(|pfn| (PRESENT | pfn).to_ne_bytes()).collect()
    }

    #[test]
    fn unknown_pages_are_alone() {
        let pfns = Pfns::new(PfnMode::Real);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10 {
            let mut frames = Frames::default();
            pfns.unknown(&mut frames, 1000).unwrap();
            for (pfn, count) in runs(&frames, 0..1000) {
                assert_eq!(count, 1, "lone pages are not contiguous");
                assert!(seen.insert(pfn));
            }
        }
    }

    #[test]
    fn real_numbers_are_pagemaps_and_gaps_are_simulated() {
        let pfns = Pfns::new(PfnMode::Real);
        let mut frames = Frames::default();
        let place = Place::memory(1, 0x1000 * PAGE);
        let entries = entries(&[0x1200, 0x1201, 0, 0x77, 0x500]);
        pfns.add_entries(&mut frames, &entries, place, &|_| false);
        let runs = runs(&frames, 0..5);
        assert_eq!([runs[0], runs[2], runs[3]], [(0x1200, 2), (0x77, 1), (0x500, 1)]);
        assert!(runs[1].0 > 1 << 27);
    }

    #[test]
    fn the_same_page_has_the_same_number_at_each_look() {
        let pfns = Pfns::new(PfnMode::Simulated);
        let look = |first: u64, pages: u64| {
            let mut frames = Frames::default();
            let entries = entries(&vec![0; pages as usize]);
            let place = Place::memory(1, first * PAGE);
            pfns.add_entries(&mut frames, &entries, place, &|page| first + page >= HUGE);
            frames
        };
        // Pages 0 to 511 are small, the others are part of huge ones.
        let kept = look(510, 600);
        assert_eq!(
            runs(&kept, 0..600).iter().map(|run| run.1).collect::<Vec<_>>(),
            [1, 1, 512, 86]
        );
        for (first, pages) in [(510, 1), (511, 2), (700, 300), (1023, 2), (1024, 86)] {
            let from = first - 510;
            let again = look(first, pages);
            assert_eq!(runs(&again, 0..pages), runs(&kept, from..from + pages), "{first}");
        }
        assert_eq!(runs(&kept, 2..514)[0].0 % HUGE, 0, "huge pages are aligned");
        // Nobody holds it any more: a new page may be there.
        let before = runs(&kept, 0..1);
        drop(kept);
        assert_ne!(runs(&look(510, 1), 0..1), before);
    }

    #[test]
    fn our_own_pages() {
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let memory = vec![1_u8; 64 * 4096];
        let address = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let mut frames = Frames::with_room_for(63);
        let place = Place::memory(1, address);
        Pfns::new(PfnMode::Real).add(&mut frames, &pagemap, address, 63, place).unwrap();
        assert_eq!(frames.pages(), 63);
        assert_eq!(runs(&frames, 0..63).iter().map(|run| run.1).sum::<u64>(), 63);
    }
}
