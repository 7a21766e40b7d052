//! A context that launched programs have open, and what of it they have mapped.
//!
//! The pages that `mmap` of an iommufd maps are those of the memfd that stands for it.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

use engine::{Context, Errno, Mapping, MmapRequest};
use parking_lot::Mutex;

use super::memfd::SharedMemfd;

/// A context that a launched program has open.
pub(crate) struct OpenContext {
    /// The engine's side.
    pub(crate) context: Arc<Context>,
    memfd: Arc<SharedMemfd>,
    /// What callers mapped, and may still map.
    mappings: Mutex<Vec<(Region, Mapping)>>,
}

/// Bytes of the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    offset: u64,
    length: u64,
}

impl OpenContext {
    /// `memfd` stands for `context`, of which nothing is mapped yet.
    pub(super) fn new(context: Arc<Context>, memfd: Arc<SharedMemfd>) -> Self {
        Self { context, memfd, mappings: Mutex::default() }
    }

    /// Answers `mmap` of the iommufd: the kernel then maps the memfd's pages, which from now on
    /// are the driver's.
    pub(crate) fn allow_mmap(
        &self,
        length: u64,
        protection: i32,
        flags: i32,
        offset: u64,
    ) -> Result<(), Errno> {
        let kind = flags & libc::MAP_TYPE;
        let mapping = self.context.mmap(MmapRequest {
            offset,
            length,
            shared: kind == libc::MAP_SHARED || kind == libc::MAP_SHARED_VALIDATE,
            executable: protection & libc::PROT_EXEC != 0,
        })?;
        mapping.memory().place(self.memfd.file().as_fd(), offset)?;
        let region = Region { offset, length: mapping.memory().length() };
        let mut mappings = self.mappings.lock();
        if !mappings.iter().any(|(known, _)| *known == region) {
            mappings.push((region, mapping));
        }
        Ok(())
    }

    /// Lets go what callers have unmapped since, and answers whether that was anything. A mapping
    /// leaves no trace when it goes, so this looks through the mappings of all processes: for the rare
    /// call that has to know.
    pub(crate) fn forget_unmapped(&self) -> bool {
        let mut mappings = self.mappings.lock();
        let before = mappings.len();
        if before == 0 {
            return false;
        }
        let live = mapped_regions(self.memfd.inode());
        mappings.retain(|(region, _)| {
            live.iter().any(|l| {
                l.offset < region.offset + region.length && region.offset < l.offset + l.length
            })
        });
        mappings.len() < before
    }

    /// Nobody can have it open any more. Answers how many objects would not go.
    pub(super) fn close(&self) -> usize {
        self.mappings.lock().clear();
        let left_over = self.context.close();
        tracing::debug!(context = self.context.id().0, left_over, "released");
        left_over
    }
}

/// What of the memfd with this `inode` is mapped, by anyone whom we may look at.
fn mapped_regions(inode: u64) -> Vec<Region> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut regions = Vec::new();
    for process in processes.flatten() {
        let is_process = process.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok());
        let Ok(maps) = fs::read(process.path().join("maps")) else { continue };
        if is_process {
            let maps = String::from_utf8_lossy(&maps);
            regions.extend(maps.lines().filter_map(|line| region_of(line, inode)));
        }
    }
    regions
}

/// The region that a line of `/proc/PID/maps` shows, if it is of our memfd.
fn region_of(line: &str, inode: u64) -> Option<Region> {
    if !line.contains("/memfd:iommufd") {
        return None;
    }
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let offset = hex(words.nth(1)?)?;
    let length = hex(end)?.checked_sub(hex(start)?)?;
    (words.nth(1)?.parse() == Ok(inode)).then_some(Region { offset, length })
}
