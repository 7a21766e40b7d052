//! Notices files that lose pages while they are pinned, for the user to be told.
//!
//! The kernel tells nobody: a memfd raises no events of inotify for holes, and a userfaultfd hears of no
//! truncation. But a file that has lost pages has fewer blocks or bytes than before, and a device that
//! touches such a page misses it in the mapping. Twice a second the former is asked for; after either,
//! and after a pin of more pages, the mapping is looked through for pages that were there. A hole that is punched and filled again
//! between two looks is found when a device touches it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use engine::memory::PAGE_SIZE;
use parking_lot::Mutex;
use rangemap::RangeSet;

use super::map::FileMap;

const INTERVAL: Duration = Duration::from_millis(500);
/// The share of its time that the looking takes at most: one part of so many.
const SHARE: u32 = 20;
/// Entries of pagemap that are read at once.
const CHUNK: u64 = 1 << 11;
/// Pagemap's bit of a page that is there.
const PRESENT: u64 = 1 << 63;

/// What is known of the pages of one mapping that are not there any more. In bytes of the file.
#[derive(Default)]
pub(super) struct Losses {
    /// A device missed a page of which nobody was told, or there are pages that were not there at the
    /// last look.
    due: AtomicBool,
    /// All that are gone, while it is told.
    gone: Mutex<RangeSet<u64>>,
    /// Those of which was told.
    told: Mutex<RangeSet<u64>>,
}

impl Losses {
    /// A device touched `bytes`, of which a page is missing.
    pub(super) fn missed(&self, bytes: Range<u64>) {
        if self.told.lock().gaps(&bytes).next().is_some() {
            self.due.store(true, Ordering::Relaxed);
        }
    }

    /// There are more pages: how many the file had before does not tell any more.
    pub(super) fn grown(&self) {
        self.due.store(true, Ordering::Relaxed);
    }

    /// The pages in `bytes` that are gone and were not told of, while [`watch`] tells of them.
    pub(super) fn gone(&self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let gone = self.gone.lock();
        let cut = |range: &Range<u64>| range.start.max(bytes.start)..range.end.min(bytes.end);
        gone.overlapping(bytes).map(cut).collect()
    }

    /// It is told that the file has lost `bytes`.
    pub(super) fn tell(&self, bytes: Range<u64>) {
        self.told.lock().insert(bytes);
    }
}

/// A mapping that is watched.
struct Watched {
    map: Weak<FileMap>,
    /// Blocks and bytes of the file at the last look.
    had: (i64, i64),
    /// Not before then.
    next: Instant,
}

/// Calls `tell` whenever a mapping that came out of `maps` has lost pages, which [`Losses::gone`] answers
/// meanwhile. Ends when no more can come.
pub(super) fn watch(maps: &Receiver<Weak<FileMap>>, pagemap: &File, tell: &dyn Fn()) {
    let mut watched: Vec<Watched> = Vec::new();
    loop {
        let came = match watched.is_empty() {
            true => maps.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => maps.recv_timeout(INTERVAL),
        };
        match came {
            Ok(map) => {
                watched.push(Watched { map, had: (0, 0), next: Instant::now() });
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        watched.retain_mut(|one| match one.map.upgrade() {
            Some(map) => {
                one.look(&map, pagemap, tell);
                true
            }
            None => false,
        });
    }
}

impl Watched {
    fn look(&mut self, map: &Arc<FileMap>, pagemap: &File, tell: &dyn Fn()) {
        let begun = Instant::now();
        let Some(losses) = map.losses().filter(|_| begun >= self.next) else { return };
        let Ok(stat) = nix::sys::stat::fstat(map.file().as_fd()) else { return };
        let (has, had) = ((stat.st_blocks, stat.st_size), self.had);
        self.had = has;
        if !losses.due.swap(false, Ordering::Relaxed) && has.0 >= had.0 && has.1 >= had.1 {
            return;
        }
        let mut gone = absent(map, pagemap);
        for told in losses.told.lock().iter() {
            gone.remove(told.clone());
        }
        if !gone.is_empty() {
            *losses.gone.lock() = gone;
            tell();
            losses.gone.lock().clear();
        }
        self.next = Instant::now() + begun.elapsed() * SHARE;
    }
}

/// The bytes of the file whose pages were in the mapping, and are not.
fn absent(map: &FileMap, pagemap: &File) -> RangeSet<u64> {
    let mut absent = RangeSet::new();
    let mut entries = Vec::new();
    for range in map.ever_put().iter() {
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at) / PAGE_SIZE).min(CHUNK);
            entries.resize((pages * 8) as usize, 0);
            let Some(address) = map.at(at, (pages * PAGE_SIZE) as usize) else { break };
            if pagemap.read_exact_at(&mut entries, address as u64 / PAGE_SIZE * 8).is_err() {
                return absent;
            }
            let (words, _) = entries.as_chunks::<8>();
            for (page, word) in (0..).zip(words) {
                if u64::from_ne_bytes(*word) & PRESENT == 0 {
                    let start = at + page * PAGE_SIZE;
                    absent.insert(start..start + PAGE_SIZE);
                }
            }
            at += pages * PAGE_SIZE;
        }
    }
    absent
}
