//! `IOMMU_IOAS_IOVA_RANGES` and `IOMMU_IOAS_ALLOW_IOVAS`.

use ioctl_abi::iommufd::{iommu_ioas_allow_iovas, iommu_ioas_iova_ranges, iommu_iova_range};

use crate::Errno;
use crate::call::Call;
use crate::inject;

use super::Ioas;

/// Bytes of one range in the caller's array.
const RANGE: u64 = size_of::<iommu_iova_range>() as u64;

/// `IOMMU_IOAS_IOVA_RANGES`: as many ranges as there is room for, and how many there are
/// (`EMSGSIZE` when that is more).
pub(crate) fn iova_ranges(
    call: &Call<'_>,
    command: &mut iommu_ioas_iova_ranges,
) -> Result<(), Errno> {
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
    let (usable, alignment) = ioas.usable();
    let room = command.num_iovas;
    let ranges: Vec<iommu_iova_range> = usable
        .iter()
        .take(room as usize)
        .map(|range| iommu_iova_range { start: *range.start(), last: *range.end() })
        .collect();
    call.write_all(command.allowed_iovas, &ranges)?;
    // No more than reserved ranges, which fit in memory.
    command.num_iovas = usable.len() as u32;
    command.out_iova_alignment = alignment;
    call.respond(command)?;
    if command.num_iovas > room { Err(Errno::EMSGSIZE) } else { Ok(()) }
}

/// `IOMMU_IOAS_ALLOW_IOVAS`: replaces the list of ranges that must stay usable.
pub(crate) fn allow_iovas(
    call: &Call<'_>,
    command: &mut iommu_ioas_allow_iovas,
) -> Result<(), Errno> {
    if command.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let ioas = call.context.objects().get::<Ioas>(command.ioas_id)?;
    let mut allowed = Allowed::default();
    for index in 0..u64::from(command.num_iovas) {
        let address = command.allowed_iovas.checked_add(index * RANGE).ok_or(Errno::EFAULT)?;
        let range: iommu_iova_range = call.read(address)?;
        allowed.add(range.start, range.last)?;
    }
    ioas.allow(allowed.0.into_iter().map(|(start, last)| start..=last).collect())
}

/// Ranges by start, apart.
#[derive(Default)]
struct Allowed(std::collections::BTreeMap<u64, u64>);

impl Allowed {
    fn add(&mut self, start: u64, last: u64) -> Result<(), Errno> {
        if start >= last {
            return Err(Errno::EINVAL);
        }
        if self.0.range(..=last).next_back().is_some_and(|(_, &before)| before >= start) {
            return Err(Errno::EINVAL);
        }
        inject::site("ioas: allowed range")?;
        self.0.insert(start, last);
        Ok(())
    }
}
