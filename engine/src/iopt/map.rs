//! Mapping, copying and unmapping.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Errno;
use crate::dmabuf::Dmabuf;
use crate::domain::Prot;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;
use crate::quota::{Resource, Taken};

use super::gaps::Wanted;
use super::ranges::overlap;
use super::{Area, Piece, State};

/// The kernel aligns an IOVA that it chooses no further than a transparent huge page.
const MOST_ALIGNMENT: u64 = 2 << 20;

/// How often users of an area are asked to let it go.
const MOST_TRIES: u32 = 100;

impl Ioas {
    /// Maps `pieces` one after another, at `fixed` or where there is room, and answers where. All
    /// or nothing.
    pub(crate) fn map(
        self: &Arc<Self>,
        pieces: Vec<Piece>,
        prot: Prot,
        fixed: Option<u64>,
    ) -> Result<u64, Errno> {
        let length = pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.length));
        let length = length.ok_or(Errno::EOVERFLOW)?;
        let mut state = self.lock();
        // With the lock held, so that a revocation comes before (`ENODEV`) or finds the area. What is
        // a copy of an area that was revoked is empty, too.
        for piece in &pieces {
            let imported = piece.pages.dmabuf().map_or(Ok(()), |dmabuf| dmabuf.import(self));
            imported.or_else(|error| if piece.copied { Ok(()) } else { Err(error) })?;
        }
        let iova = match fixed {
            Some(iova) => state.check(iova, length)?,
            None => {
                let hint = pieces.first().map_or(0, |piece| piece.pages.address_of(piece.at));
                state.choose(length, hint)?
            }
        };
        state.insert(iova, pieces, prot)?;
        Ok(iova)
    }

    /// The pieces of pages that `range` is mapped to. `ENOENT` when something of it is not mapped.
    pub(crate) fn pieces(&self, range: &RangeInclusive<u64>) -> Result<Vec<Piece>, Errno> {
        let state = self.lock();
        let parts = state.contiguous(range).ok_or(Errno::ENOENT)?;
        inject::site("iopt: list of pages")?;
        Ok(parts
            .iter()
            .map(|part| Piece {
                pages: part.area.pages.clone(),
                at: part.area.at + (part.iovas.start() - part.start),
                length: part.iovas.end() - part.iovas.start() + 1,
                copied: true,
            })
            .collect())
    }

    /// Unmaps all areas in `range` and adds their bytes to `unmapped`. `ENOENT` at an area that is
    /// only partly inside; those before it are gone then. `EBUSY` at one that a hardware queue lies
    /// in, `EDEADLK` when an access does not let go.
    pub(crate) fn unmap(
        &self,
        range: &RangeInclusive<u64>,
        unmapped: &mut u64,
    ) -> Result<(), Errno> {
        let mut tries = 0;
        let mut state = self.lock();
        while let Some((start, area)) = state.first_in(range) {
            if area.locks > 0 {
                return Err(Errno::EBUSY);
            }
            if start < *range.start() || area.last > *range.end() {
                return Err(Errno::ENOENT);
            }
            if area.accesses > 0 {
                tries += 1;
                if tries > MOST_TRIES {
                    return Err(Errno::EDEADLK);
                }
                let length = area.length(start);
                let users: Vec<_> = state.accesses.iter().map(|a| a.user().clone()).collect();
                if let Some(area) = state.areas.get_mut(&start) {
                    area.leaving = true;
                }
                drop(state);
                for user in users {
                    user.unmap(start, length);
                }
                state = self.lock();
                continue;
            }
            *unmapped = unmapped.saturating_add(area.length(start));
            state.remove(start);
        }
        Ok(())
    }

    /// Cuts the area around `iova` in two, the second part starting there. Nothing happens between
    /// areas. `EOPNOTSUPP` for a dma-buf, else `EINVAL` when an access has pins in it or `iova` is not
    /// aligned.
    pub(crate) fn cut(&self, iova: u64) -> Result<(), Errno> {
        let mut state = self.lock();
        let Some((start, area)) = state.area_at(iova) else { return Ok(()) };
        // The kernel looks for the last byte before the cut, and does not cut off an area's first.
        if iova - start <= 1 {
            return Ok(());
        }
        if area.pages.dmabuf().is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        if area.accesses > 0 || area.leaving {
            return Err(Errno::EINVAL);
        }
        let alignment = state.alignment.max(PAGE_SIZE);
        let (at, last) = (area.at + (iova - start), area.last);
        if !iova.is_multiple_of(alignment) || !at.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        inject::site("area: allocate")?;
        let taken = area.taken.another()?;
        let second = Area { last, at, pages: area.pages.clone(), taken, ..*area };
        if let Some(area) = state.areas.get_mut(&start) {
            area.last = iova - 1;
        }
        state.areas.insert(iova, second);
        Ok(())
    }

    /// Unmaps everything without asking anybody: the IOAS goes.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        while let Some((&start, _)) = state.areas.first_key_value() {
            state.remove(start);
        }
    }

    /// Takes `dmabuf` out of all domains, for good.
    pub(crate) fn revoke(&self, dmabuf: &Arc<Dmabuf>) {
        let mut state = self.lock();
        let State { areas, domains, .. } = &mut *state;
        for (&start, area) in areas {
            if area.pages.dmabuf().is_some_and(|mapped| Arc::ptr_eq(mapped, dmabuf)) {
                if area.filled {
                    for attached in &*domains {
                        attached.domain.unmap(start, area.length(start));
                    }
                }
                area.filled = false;
                area.pages.revoke();
            }
        }
    }
}

impl State {
    /// Whether `length` bytes at `iova` can be mapped there.
    fn check(&self, iova: u64, length: u64) -> Result<u64, Errno> {
        if !iova.is_multiple_of(self.alignment) || !length.is_multiple_of(self.alignment) {
            return Err(Errno::EINVAL);
        }
        let last = length.checked_sub(1).ok_or(Errno::EINVAL)?;
        let last = iova.checked_add(last).ok_or(Errno::EOVERFLOW)?;
        let range = iova..=last;
        if self.reserved.iter().any(|(_, reserved)| overlap(reserved, &range)) {
            return Err(Errno::EINVAL);
        }
        if self.first_in(&range).is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(iova)
    }

    /// The IOVA that the kernel would choose for memory at `hint`: the lowest where it fits,
    /// aligned as the memory is (so that both can use large pages), in the allowed ranges, and
    /// neither in the first page nor in the last.
    fn choose(&self, length: u64, hint: u64) -> Result<u64, Errno> {
        if !length.is_multiple_of(self.alignment) {
            return Err(Errno::EINVAL);
        }
        if length == 0 || length >= u64::MAX / 2 {
            return Err(Errno::EOVERFLOW);
        }
        let natural = length.next_power_of_two();
        let alignment = match hint {
            0 => natural,
            hint => natural.min(1 << hint.trailing_zeros()),
        };
        let alignment = alignment.min(MOST_ALIGNMENT);
        if alignment < self.alignment {
            return Err(Errno::EINVAL);
        }
        let wanted = Wanted { length, alignment, offset: hint % PAGE_SIZE };
        let inner = PAGE_SIZE..=u64::MAX - PAGE_SIZE;
        // Where it would fit if all were free is also the first place that is looked at: with an
        // offset in the page that can be above a gap in which there is room.
        let lowest = |range: RangeInclusive<u64>| {
            let first = wanted.fit(range.clone())?;
            self.gaps.lowest(&(first..=*range.end()), wanted)
        };
        if self.allowed.is_empty() {
            return lowest(inner).ok_or(Errno::ENOSPC);
        }
        self.allowed
            .iter()
            .map(|range| *range.start().max(inner.start())..=*range.end().min(inner.end()))
            .find_map(lowest)
            .ok_or(Errno::ENOSPC)
    }

    /// Makes areas of `pieces` from `iova` on and maps them in all domains. All or nothing.
    fn insert(&mut self, iova: u64, pieces: Vec<Piece>, prot: Prot) -> Result<(), Errno> {
        let mut start = iova;
        let mut areas = Vec::new();
        for piece in pieces {
            inject::site("area: allocate")?;
            if prot.contains(Prot::WRITE) && !piece.pages.writable() {
                return Err(Errno::EPERM);
            }
            let misaligned = (piece.at % PAGE_SIZE) | piece.length;
            if misaligned & (self.alignment - 1) != 0 {
                return Err(Errno::EINVAL);
            }
            let last = start.checked_add(piece.length - 1).ok_or(Errno::EOVERFLOW)?;
            let area = Area {
                last,
                at: piece.at,
                pages: piece.pages,
                prot,
                accesses: 0,
                locks: 0,
                copied: piece.copied,
                filled: false,
                leaving: false,
                taken: Taken::of(self.quota.as_ref(), Resource::Areas)?,
            };
            areas.push((start, area));
            start = last.wrapping_add(1);
        }
        // Only when all of them fit is memory looked at.
        let mut starts = Vec::new();
        let result = areas.into_iter().try_for_each(|(start, mut area)| {
            area.pages
                .origin()
                .iova
                .compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
            self.fill(start, &mut area)?;
            self.gaps.take(&(start..=area.last));
            self.areas.insert(start, area);
            starts.push(start);
            Ok(())
        });
        if result.is_err() {
            for start in starts {
                self.remove(start);
            }
        }
        result
    }

    /// Pins the area's pages for the domains and maps it in all of them, if there are any.
    fn fill(&self, start: u64, area: &mut Area) -> Result<(), Errno> {
        if self.domains.is_empty() || area.pages.revoked() {
            return Ok(());
        }
        let pages = area.all_pages(start);
        area.acquire(pages.clone())?;
        for (index, attached) in self.domains.iter().enumerate() {
            if let Err(error) = area.map(start, &*attached.domain, self.huge_pages) {
                for mapped in &self.domains[..index] {
                    mapped.domain.unmap(start, area.length(start));
                }
                area.pages.release(pages);
                return Err(error);
            }
        }
        area.filled = true;
        Ok(())
    }

    /// Takes the area at `start` out of everything.
    pub(super) fn remove(&mut self, start: u64) {
        let Some(area) = self.areas.remove(&start) else { return };
        if area.filled {
            for attached in &self.domains {
                attached.domain.unmap(start, area.length(start));
            }
            area.pages.release(area.all_pages(start));
        }
        self.gaps.give(&(start..=area.last));
    }
}
