//! Dirty tracking: switching it on and off, and reading which pages are dirty into a bitmap.
//!
//! The bitmap is the caller's, one bit for each `page_size` bytes from the first IOVA on. Bits are
//! added to what is there. It is filled piece by piece, and only the bytes between the first and
//! the last dirty bit of a piece are copied, so that a clean terabyte costs little more than the
//! walk over its page table.

use std::ops::RangeInclusive;

use ioctl_abi::iommufd::{
    IOMMU_HWPT_DIRTY_TRACKING_ENABLE, IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
    iommu_hwpt_get_dirty_bitmap, iommu_hwpt_set_dirty_tracking,
};

use crate::call::Call;
use crate::driver::PagingDomain;
use crate::memory::AddressSpace;
use crate::{Errno, inject};

use super::HwptPaging;

/// Bytes of the caller's bitmap that are worked on at once.
const PIECE: u64 = 64 << 10;

/// `IOMMU_HWPT_SET_DIRTY_TRACKING`.
pub(crate) fn set(
    call: &Call<'_>,
    command: &mut iommu_hwpt_set_dirty_tracking,
) -> Result<(), Errno> {
    // The kernel does not look at `__reserved`.
    if command.flags & !IOMMU_HWPT_DIRTY_TRACKING_ENABLE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let hwpt = call.context.objects().get::<HwptPaging>(command.hwpt_id)?;
    let domain = hwpt.domain();
    if !domain.tracks_dirty() {
        return Err(Errno::EOPNOTSUPP);
    }
    let enable = command.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE != 0;
    if enable {
        // What was dirty before says nothing about the time from now on.
        let (first, last) = domain.aperture().into_inner();
        let all = (last - first).saturating_add(1);
        domain.read_dirty(first, all, true, &mut |_, _| {});
    }
    domain.set_dirty_tracking(enable)
}

/// `IOMMU_HWPT_GET_DIRTY_BITMAP`.
pub(crate) fn get(call: &Call<'_>, command: &mut iommu_hwpt_get_dirty_bitmap) -> Result<(), Errno> {
    if command.flags & !IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR != 0 || command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let hwpt = call.context.objects().get::<HwptPaging>(command.hwpt_id)?;
    let range = check(command, hwpt.ioas().iova_alignment())?;
    if !hwpt.domain().tracks_dirty() {
        return Err(Errno::EOPNOTSUPP);
    }
    inject::site("dirty: bitmap")?;
    let clear = command.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR == 0;
    // Linux 7.3 looks no further than the first IOVA that is not mapped, and says nothing.
    let range = if call.context.engine().quirks() {
        let Some(last) = hwpt.ioas().mapped_up_to(&range) else { return Ok(()) };
        *range.start()..=last
    } else {
        range
    };
    let bitmap = Bitmap {
        memory: &*call.memory,
        address: command.data,
        shift: command.page_size.trailing_zeros(),
    };
    bitmap.collect(&**hwpt.domain(), range, clear)
}

/// The IOVAs that the caller asks for, mapped or not. `EOVERFLOW`, `EINVAL` for none and for what
/// is not whole pages of the IOAS and whole bits.
fn check(
    command: &iommu_hwpt_get_dirty_bitmap,
    alignment: u64,
) -> Result<RangeInclusive<u64>, Errno> {
    let first = command.iova;
    let more = command.length.checked_sub(1).ok_or(Errno::EINVAL)?;
    let last = first.checked_add(more).ok_or(Errno::EOVERFLOW)?;
    let unaligned = |unit: u64| {
        let mask = unit.wrapping_sub(1);
        first & mask != 0 || last.wrapping_add(1) & mask != 0
    };
    if command.page_size == 0 || unaligned(alignment) || unaligned(command.page_size) {
        return Err(Errno::EINVAL);
    }
    Ok(first..=last)
}

/// The caller's bitmap.
struct Bitmap<'a> {
    memory: &'a dyn AddressSpace,
    address: u64,
    /// Each bit stands for `1 << shift` bytes.
    shift: u32,
}

impl Bitmap<'_> {
    /// Adds the dirty pages of `range`.
    fn collect(
        &self,
        domain: &dyn PagingDomain,
        range: RangeInclusive<u64>,
        clear: bool,
    ) -> Result<(), Errno> {
        let (base, last) = range.into_inner();
        let bits = ((last - base) >> self.shift).checked_add(1).ok_or(Errno::EOVERFLOW)?;
        let mut piece = Piece::new(bits.div_ceil(8).min(PIECE));
        let mut number = 0;
        let at = |number: u64| self.address.wrapping_add(number * PIECE);
        // One read of all: a page that two reads met would be cleared by neither or by the first.
        let (low, high) = domain.aperture().into_inner();
        let (from, to) = (base.max(low), last.min(high));
        let Some(more) = to.checked_sub(from) else { return Ok(()) };
        domain.read_dirty(from, more.saturating_add(1), clear, &mut |iova, run| {
            let Some(stop) = run.checked_sub(1).map(|more| iova.saturating_add(more).min(last))
            else {
                return;
            };
            let mut bit = (iova.max(base) - base) >> self.shift;
            let stop = stop.saturating_sub(base) >> self.shift;
            while bit <= stop {
                let of = bit / (PIECE * 8);
                if of != number {
                    piece.flush(self.memory, at(number));
                    number = of;
                }
                let first = of * PIECE * 8;
                let end = stop.min(first + PIECE * 8 - 1);
                piece.set(bit - first, end - first);
                bit = end + 1;
            }
        });
        piece.flush(self.memory, at(number));
        Ok(())
    }
}

/// A part of the bitmap, collected here before it goes to the caller.
struct Piece {
    bytes: Vec<u8>,
    /// First and last byte with a bit set.
    dirty: Option<(usize, usize)>,
    theirs: Vec<u8>,
}

impl Piece {
    fn new(length: u64) -> Self {
        Self { bytes: vec![0; length as usize], dirty: None, theirs: Vec::new() }
    }

    /// Sets the bits `first` to `last`.
    fn set(&mut self, first: u64, last: u64) {
        let (low, high) = ((first / 8) as usize, (last / 8) as usize);
        let (head, tail) = (0xffu8 << (first % 8), 0xffu8 >> (7 - last % 8));
        if low == high {
            self.bytes[low] |= head & tail;
        } else {
            self.bytes[low] |= head;
            self.bytes[low + 1..high].fill(0xff);
            self.bytes[high] |= tail;
        }
        self.dirty = Some(match self.dirty {
            Some((from, to)) => (from.min(low), to.max(high)),
            None => (low, high),
        });
    }

    /// Adds the bits to the caller's, and is clean again. Linux 7.3 lets bits that find no memory
    /// go, without an error.
    fn flush(&mut self, memory: &dyn AddressSpace, address: u64) {
        let Some((from, to)) = self.dirty.take() else { return };
        let ours = &mut self.bytes[from..=to];
        self.theirs.resize(ours.len(), 0);
        let at = address.saturating_add(from as u64);
        let read = memory.read(at, &mut self.theirs);
        self.theirs.iter_mut().zip(ours.iter_mut()).for_each(|(theirs, ours)| {
            *theirs |= std::mem::take(ours);
        });
        if let Err(error) = read.and_then(|()| memory.write(at, &self.theirs)) {
            tracing::debug!(address = at, bytes = self.theirs.len(), %error, "dirty bits lost");
        }
    }
}

#[cfg(test)]
mod tests;
