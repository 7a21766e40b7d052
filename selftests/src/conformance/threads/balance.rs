//! How many bytes an IOAS has mapped in the end: those that calls mapped less those that calls unmapped,
//! in whatever order they came.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::ops::RangeInclusive;

use ioctl_abi::Command;
use ioctl_abi::iommufd::*;
use nix::errno::Errno;

use super::super::reply::Reply;
use super::super::rules;
use super::super::step::{Call, Step};

/// The bytes that each IOAS of a program may have mapped, by its id; of those only of which the calls
/// tell. It is one number, unless an unmap failed: what lay before the area that it met is gone.
pub(super) fn mapped(played: &[(Step, Reply)]) -> BTreeMap<u32, RangeInclusive<i128>> {
    let mut all = BTreeMap::<u32, Option<(i128, i128)>>::new();
    let mut contexts = 0;
    for (step, reply) in played {
        contexts += usize::from(matches!(step.call, Call::Open { .. }) && reply.ok());
        let Some((command, _)) = rules::command(&step.call) else { continue };
        // VFIO's calls do not say which IOAS they are about.
        if matches!(command, Command::VfioIommuMapDma | Command::VfioIommuUnmapDma) {
            return BTreeMap::new();
        }
        if command == Command::IoasAlloc && reply.ok() {
            let id = reply.out(offset_of!(iommu_ioas_alloc, out_ioas_id), 4) as u32;
            all.entry(id).and_modify(|bytes| *bytes = None).or_insert(Some((0, 0)));
        } else if command == Command::Destroy && reply.ok() {
            all.insert(reply.out(offset_of!(iommu_destroy, id), 4) as u32, None);
        } else if let Some((id, change)) = change(command, reply)
            && let Some(sum) = all.get_mut(&id)
        {
            *sum = sum.zip(change).map(|(sum, change)| (sum.0 + change.0, sum.1 + change.1));
        }
    }
    // Ids of several would have to be told apart by their descriptors.
    if contexts != 1 {
        return BTreeMap::new();
    }
    all.into_iter()
        .filter_map(|(id, bytes)| bytes.map(|(least, most)| (id, least.max(0)..=most)))
        .collect()
}

/// The IOAS that a call maps in or unmaps from, and by how much at least and at most what is mapped
/// changes; `None` instead of that if the call failed and may have mapped something.
fn change(command: Command, reply: &Reply) -> Option<(u32, Option<(i128, i128)>)> {
    let (id, length, maps) = match command {
        Command::IoasMap => {
            (offset_of!(iommu_ioas_map, ioas_id), offset_of!(iommu_ioas_map, length), true)
        }
        Command::IoasMapFile => (
            offset_of!(iommu_ioas_map_file, ioas_id),
            offset_of!(iommu_ioas_map_file, length),
            true,
        ),
        Command::IoasCopy => {
            (offset_of!(iommu_ioas_copy, dst_ioas_id), offset_of!(iommu_ioas_copy, length), true)
        }
        Command::IoasUnmap => {
            (offset_of!(iommu_ioas_unmap, ioas_id), offset_of!(iommu_ioas_unmap, length), false)
        }
        _ => return None,
    };
    let (id, length) = (reply.out(id, 4) as u32, i128::from(reply.out(length, 8)));
    let change = match (maps, reply.errno()) {
        (true, None) => Some((length, length)),
        (false, None) => Some((-length, -length)),
        // The answer could not be written, or the caller's memory was not there.
        (true, Some(Errno::EFAULT)) => None,
        (true, Some(_)) => Some((0, 0)),
        (false, Some(_)) => Some((-length, 0)),
    };
    Some((id, change))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::super::end;
    use super::*;

    fn played(number: u32, command: Command, bytes: &[u8], result: i64) -> (Step, Reply) {
        let reply = Reply { after: bytes.to_vec(), ..Reply::of(result) };
        (Step { number, call: end::command(4, command, bytes) }, reply)
    }

    #[test]
    fn what_is_mapped_is_what_was_mapped_and_not_unmapped() {
        let alloc = |id| iommu_ioas_alloc { size: 12, out_ioas_id: id, ..Default::default() };
        let map =
            |id, length| iommu_ioas_map { size: 40, ioas_id: id, length, ..Default::default() };
        let unmap = |id, length| iommu_ioas_unmap { size: 24, ioas_id: id, iova: 0, length };
        let open = (Step { number: 0, call: Call::Open { flags: 2 } }, Reply::of(4));
        let mut log = vec![
            open,
            played(1, Command::IoasAlloc, alloc(1).as_bytes(), 0),
            played(2, Command::IoasAlloc, alloc(2).as_bytes(), 0),
            played(3, Command::IoasUnmap, unmap(1, 0x1000).as_bytes(), 0),
            played(4, Command::IoasMap, map(1, 0x3000).as_bytes(), 0),
            played(5, Command::IoasMap, map(1, 0x5000).as_bytes(), -i64::from(libc::EEXIST)),
            played(6, Command::IoasMap, map(2, 0x5000).as_bytes(), 0),
        ];
        assert_eq!(mapped(&log), BTreeMap::from([(1, 0x2000..=0x2000), (2, 0x5000..=0x5000)]));
        let failed = -i64::from(libc::ENOENT);
        log.push(played(7, Command::IoasUnmap, unmap(2, 0x1001).as_bytes(), failed));
        let some = BTreeMap::from([(1, 0x2000..=0x2000), (2, 0x3fff..=0x5000)]);
        assert_eq!(mapped(&log), some, "an area of it may be gone");
        let destroy = iommu_destroy { size: 8, id: 1 };
        log.push(played(8, Command::Destroy, destroy.as_bytes(), 0));
        assert_eq!(mapped(&log), BTreeMap::from([(2, 0x3fff..=0x5000)]));
    }
}
