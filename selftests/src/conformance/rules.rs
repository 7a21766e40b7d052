//! What of a reply cannot be compared between two machines, each with its reason.
//!
//! Everything else counts, byte for byte. Addresses of the caller need no rule: programs live in an
//! [`arena`](super::arena) that is the same everywhere.

use ioctl_abi::Command;
use ioctl_abi::iommufd::{IOMMU_IOAS_NOIOMMU_GET_PA, iommu_ioas_noiommu_get_pa};
use ioctl_abi::layout::AbiStruct;
use ioctl_abi::selftest::{IOMMU_TEST_CMD, IOMMU_TEST_OP_DMABUF_GET, IOMMU_TEST_OP_MD_CHECK_REFS};

use super::reply::{Reply, number};
use super::step::{Argument, Call};

/// Takes out of `reply` what another machine may answer otherwise.
pub fn apply(call: &Call, reply: &mut Reply) {
    let Call::Ioctl { request, argument: Argument::Struct { .. }, .. } = call else { return };
    if *request == IOMMU_IOAS_NOIOMMU_GET_PA {
        physical(reply);
    }
}

/// Which frame a page lies in, and how many that follow are contiguous, is up to each machine's
/// allocator. The offset in the page is not, nor is that at least the page's rest is contiguous.
fn physical(reply: &mut Reply) {
    let layout = iommu_ioas_noiommu_get_pa::LAYOUT;
    let field = |name| layout.field(name).map(|field| field.offset..field.end());
    let (Some(phys), Some(length)) = (field("out_phys"), field("length")) else { return };
    if !reply.ok() {
        return;
    }
    if let Some(bytes) = reply.after.get_mut(phys) {
        let offset = number(bytes, 0, 8) & 0xfff;
        bytes.copy_from_slice(&offset.to_le_bytes());
        if let Some(bytes) = reply.after.get_mut(length) {
            let rest = number(bytes, 0, 8).min(0x1000 - offset);
            bytes.copy_from_slice(&rest.to_le_bytes());
        }
    }
}

/// Whether a call that two sides answered otherwise has left both as they were, so that what follows
/// can be compared: it failed on both, it read or wrote nothing, or it only looks.
pub fn leaves_alike(call: &Call, left: &Reply, right: &Reply) -> bool {
    let only_looks = match call {
        Call::Poll { .. } => true,
        Call::Ioctl { .. } => {
            command(call) == Some((Command::Test, Some(IOMMU_TEST_OP_MD_CHECK_REFS)))
        }
        _ => false,
    };
    let moves_bytes = matches!(call, Call::Read { .. } | Call::Write { .. });
    let nothing = |reply: &Reply| !reply.ok() || moves_bytes && reply.result == 0;
    let same_memory = left.after == right.after && left.seen == right.seen;
    only_looks || nothing(left) && nothing(right) && same_memory
}

/// Whether a call may open a descriptor and not return it, so that the machine looks for one:
/// Linux 7.3's DMABUF_GET returns 0.
pub fn opens_quietly(request: u32, bytes: &[u8]) -> bool {
    request == IOMMU_TEST_CMD && number(bytes, 4, 4) == u64::from(IOMMU_TEST_OP_DMABUF_GET)
}

/// Whether what a call answers depends on what other programs of the machine leave: how many of its
/// huge pages are free. Two sides that have some are compared all the same; a baseline, which is
/// checked while anything else runs, has no program with such a call.
pub fn leans_on_others(call: &Call) -> bool {
    match call {
        Call::Mmap { flags, .. } => flags & libc::MAP_HUGETLB != 0,
        Call::Child(calls) => calls.iter().any(leans_on_others),
        _ => false,
    }
}

/// The command that a call is, and of a selftest's its operation.
pub fn command(call: &Call) -> Option<(Command, Option<u32>)> {
    let Call::Ioctl { request, argument, .. } = call else { return None };
    let command = Command::from_ioctl(*request)?;
    let op = match argument {
        Argument::Struct { bytes, .. } if command == Command::Test => {
            Some(number(bytes, 4, 4) as u32)
        }
        _ => None,
    };
    Some((command, op))
}

#[cfg(test)]
mod tests {
    use ioctl_abi::selftest::{IOMMU_TEST_OP_ACCESS_PAGES, iommu_test_cmd};

    use super::super::step::{Place, Value};
    use super::*;

    fn test_op(op: u32) -> Call {
        let mut bytes = vec![0; size_of::<iommu_test_cmd>()];
        bytes[4..8].copy_from_slice(&op.to_le_bytes());
        let argument = Argument::Struct { bytes, patches: Vec::new(), place: Place::Guarded };
        let (fd, request) = (Value::from(4_u64), IOMMU_TEST_CMD);
        Call::Ioctl { fd, request, argument, pokes: Vec::new(), watch: Vec::new() }
    }

    #[test]
    fn a_comparison_goes_on_where_nothing_was_done() {
        let errno = |errno: i32| Reply::of(i64::from(-errno));
        let read = Call::Read { fd: Value::from(5_u64), at: 0, len: 8 };
        let (bad, odd) = (errno(libc::EFAULT), errno(libc::ESPIPE));
        assert!(leaves_alike(&read, &odd, &bad));
        assert!(leaves_alike(&read, &Reply::of(0), &odd), "nothing was there");
        assert!(!leaves_alike(&read, &Reply::of(40), &bad), "one took an event");
        let seen = |byte| Reply { seen: vec![vec![byte]], ..odd.clone() };
        assert!(!leaves_alike(&read, &seen(1), &seen(2)), "memory differs from now on");
        let closed = Call::Close { fd: Value::from(5_u64) };
        assert!(!leaves_alike(&closed, &Reply::of(0), &bad));
        let refs = test_op(IOMMU_TEST_OP_MD_CHECK_REFS);
        assert!(leaves_alike(&refs, &Reply::of(0), &errno(libc::EIO)), "it only looks");
        let pages = test_op(IOMMU_TEST_OP_ACCESS_PAGES);
        assert!(!leaves_alike(&pages, &Reply::of(0), &errno(libc::EBADE)), "one has pins");
    }
}
