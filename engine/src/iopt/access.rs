//! Accesses: kernel users that reach memory by IOVA through the CPU.
//!
//! An access is told before a range goes ([`AccessUser::unmap`]) and has to unpin what it pinned
//! there. `IOMMU_IOAS_UNMAP` waits for that.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::Errno;
use crate::domain::Prot;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::{MmId, PAGE_SIZE};
use crate::pages::{Pages, Source, Transfer};

use super::{Area, Owner, Part};

/// The other end of an access.
pub trait AccessUser: Send + Sync {
    /// IOVAs `iova` to `iova + length - 1` are being unmapped: unpin what is pinned there before
    /// returning. Called without the IOAS lock.
    fn unmap(&self, iova: u64, length: u64);
}

/// An access of an IOAS.
pub struct Access {
    owner: Owner,
    user: Arc<dyn AccessUser>,
    alignment: u64,
}

impl Access {
    pub(super) fn alignment(&self) -> u64 {
        self.alignment
    }

    pub(super) fn user(&self) -> &Arc<dyn AccessUser> {
        &self.user
    }
}

/// Names an access of an IOAS for its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessId(Owner);

/// Physical frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The first PFN.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// The range of `length` bytes at `iova`. `EINVAL` for none, `EOVERFLOW` past the end.
fn range(iova: u64, length: u64) -> Result<RangeInclusive<u64>, Errno> {
    let last = length.checked_sub(1).ok_or(Errno::EINVAL)?;
    Ok(iova..=iova.checked_add(last).ok_or(Errno::EOVERFLOW)?)
}

impl Ioas {
    /// Adds an access. One that pins makes all IOVAs page-aligned: `EADDRINUSE` if some are not.
    pub fn add_access(
        &self,
        user: Arc<dyn AccessUser>,
        needs_pin_pages: bool,
    ) -> Result<AccessId, Errno> {
        inject::site("iopt: access")?;
        let mut state = self.lock();
        let owner = Owner::unique();
        let alignment = if needs_pin_pages { PAGE_SIZE } else { 1 };
        let wanted = state.wanted_alignment(Some(alignment));
        state.check_alignment(wanted)?;
        state.accesses.push(Access { owner, user, alignment });
        state.alignment = wanted;
        Ok(AccessId(owner))
    }

    /// Removes an access, which has nothing pinned any more.
    pub fn remove_access(&self, id: AccessId) {
        let mut state = self.lock();
        state.accesses.retain(|access| access.owner != id.0);
        state.alignment = state.wanted_alignment(None);
    }

    /// Pins `length` bytes at `iova` for an access and answers their frames, in order. Undone by
    /// [`Ioas::unpin_pages`] of the same range. All or nothing.
    ///
    /// `EINVAL` for no length, for memory of a dma-buf, for what is being unmapped, where the
    /// first byte or two areas' border is inside of a page; `EOVERFLOW`; `ENOENT` when something is not mapped; `EPERM`
    /// without the area's right to what is asked, to `write` or else to read; and what pinning answers.
    pub fn pin_pages(&self, iova: u64, length: u64, write: bool) -> Result<Vec<Frames>, Errno> {
        let range = range(iova, length)?;
        let mut state = self.lock();
        let (parts, whole) = state.up_to_hole(&range);
        inject::site("access: pages")?;
        let mut frames: Vec<Frames> = Vec::new();
        // Area by area: what is wrong with one comes before a hole behind it.
        for (index, part) in parts.iter().enumerate() {
            let is_last = whole && index + 1 == parts.len();
            if let Err(error) = part.pin(write, is_last) {
                undo(&parts[..index]);
                return Err(error);
            }
            part.area.pages.frames(part.pages(), &mut |first, count| match frames.last_mut() {
                Some(run) if run.first + run.count == first => run.count += count,
                _ => frames.push(Frames { first, count }),
            });
        }
        if !whole {
            undo(&parts);
            return Err(Errno::ENOENT);
        }
        let starts: Vec<u64> = parts.iter().map(|part| part.start).collect();
        for start in starts {
            if let Some(area) = state.areas.get_mut(&start) {
                area.accesses += 1;
            }
        }
        Ok(frames)
    }

    /// Undoes one [`Ioas::pin_pages`] of exactly this range.
    pub fn unpin_pages(&self, iova: u64, length: u64) {
        let Ok(range) = range(iova, length) else { return };
        let mut state = self.lock();
        let parts = state.contiguous(&range).unwrap_or_default();
        let starts: Vec<u64> = parts.iter().map(|part| part.start).collect();
        for part in &parts {
            part.area.pages.release(part.pages());
        }
        for start in starts {
            if let Some(area) = state.areas.get_mut(&start) {
                area.accesses -= 1;
            }
        }
    }

    /// Keeps what [`Ioas::pin_pages`] pinned from being unmapped, until [`Ioas::unlock_areas`].
    pub(crate) fn lock_areas(&self, iova: u64, length: u64) {
        self.each_area_in(iova, length, |area| area.locks += 1);
    }

    /// Undoes one [`Ioas::lock_areas`] of exactly this range.
    pub(crate) fn unlock_areas(&self, iova: u64, length: u64) {
        self.each_area_in(iova, length, |area| area.locks -= 1);
    }

    fn each_area_in(&self, iova: u64, length: u64, mut each: impl FnMut(&mut Area)) {
        let Ok(range) = range(iova, length) else { return };
        let mut state = self.lock();
        let parts = state.contiguous(&range).unwrap_or_default();
        let starts: Vec<u64> = parts.iter().map(|part| part.start).collect();
        starts.iter().for_each(|start| state.areas.get_mut(start).into_iter().for_each(&mut each));
    }

    /// The last IOVA of `range` before the first that is not mapped; `None` if that is its first.
    pub(crate) fn mapped_up_to(&self, range: &RangeInclusive<u64>) -> Option<u64> {
        let state = self.lock();
        state.up_to_hole(range).0.last().map(|part| *part.iovas.end())
    }

    /// The selftest's coding of an IOVA for fuzzers: see `Access::nth_area`.
    pub(crate) fn nth_area(&self, iova: u64) -> u64 {
        let (nth, offset) = (iova & u64::from(u32::MAX), iova >> 32);
        let start = self.lock().areas.keys().nth(nth as usize).copied();
        start.map_or(0, |start| start.wrapping_add(offset))
    }

    /// Copies at `iova`, memory of a process by its address as the process itself would: what is
    /// pinned and was unmapped since is not there. `EINVAL` for no length, `EBUSY` for what is being unmapped, `EOVERFLOW`,
    /// `ENOENT` when something is not mapped (what comes before it was copied), `EPERM` against
    /// the area's rights, and what the copy answers.
    pub fn copy_at(&self, iova: u64, transfer: Transfer<'_>) -> Result<(), Errno> {
        self.copy(iova, transfer, |_| false)
    }

    /// The same for whom memory that is not `of` its own mm (or any, without one) is reached by
    /// way of pins, if it is more than a page: what cannot be pinned with the mapping's rights cannot
    /// be copied.
    pub fn copy_pinned_at(
        &self,
        iova: u64,
        transfer: Transfer<'_>,
        of: Option<MmId>,
    ) -> Result<(), Errno> {
        self.copy(iova, transfer, |pages| match pages.source() {
            Source::Memory { memory, .. } => Some(memory.id()) != of,
            _ => of.is_none(),
        })
    }

    fn copy(
        &self,
        iova: u64,
        mut transfer: Transfer<'_>,
        pin: impl Fn(&Pages) -> bool,
    ) -> Result<(), Errno> {
        let range = range(iova, transfer.length())?;
        let wanted = match transfer {
            Transfer::Read(_) => Prot::READ,
            Transfer::Write(_) => Prot::WRITE,
        };
        let mut at = iova;
        loop {
            let (pages, byte, last) = {
                let state = self.lock();
                let (start, area) = state.area_at(at).ok_or(Errno::ENOENT)?;
                if area.leaving {
                    return Err(Errno::EBUSY);
                }
                if !area.prot.contains(wanted) {
                    return Err(Errno::EPERM);
                }
                (area.pages.clone(), area.at + (at - start), area.last.min(*range.end()))
            };
            let length = last - at + 1;
            let touched = byte / PAGE_SIZE..(byte + length).div_ceil(PAGE_SIZE);
            // One page alone is taken with the copy's own rights.
            let pinned = touched.end - touched.start > 1 && pin(&pages);
            let part = transfer.part(at - iova, length);
            let memory = matches!(pages.source(), Source::Memory { .. });
            let copied = match (pinned, memory) {
                (true, _) => pages.copy_by_pin(byte, part),
                (false, true) => pages.copy_by_address(byte, part),
                (false, false) => pages.copy(byte, part),
            };
            copied?;
            if last == *range.end() {
                return Ok(());
            }
            at = last + 1;
        }
    }
}

/// Unpins what was pinned before something failed.
fn undo(parts: &[Part<'_>]) {
    for part in parts {
        part.area.pages.release(part.pages());
    }
}

impl Part<'_> {
    /// Pins its pages for an access, if the area allows it.
    fn pin(&self, write: bool, is_last: bool) -> Result<(), Errno> {
        let first = self.area.at + (self.iovas.start() - self.start);
        let end = self.area.at + (self.iovas.end() - self.start) + 1;
        let aligned = first.is_multiple_of(PAGE_SIZE) && (is_last || end.is_multiple_of(PAGE_SIZE));
        if self.area.leaving || !aligned {
            return Err(Errno::EINVAL);
        }
        if !self.area.prot.contains(if write { Prot::WRITE } else { Prot::READ }) {
            return Err(Errno::EPERM);
        }
        if self.area.pages.dmabuf().is_some() {
            return Err(Errno::EINVAL);
        }
        self.area.pages.acquire(self.pages())
    }

    /// The pages under it.
    pub(super) fn pages(&self) -> std::ops::Range<u64> {
        self.area.pages_of(self.start, &self.iovas)
    }
}
