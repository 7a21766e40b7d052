//! How the bytes of a caller become a struct, and how an answer goes back.
//!
//! A caller may be older than this ABI (its struct is shorter: the fields it does not know are
//! zero) or newer (its struct is longer: what we do not know must be zero). The kernel's order is
//! kept: the size is judged before any other byte is looked at, then the tail, then the rest.

use core::fmt;
use core::ops::Range;

use crate::command::{Command, CommandStruct, Sizing};

/// Why a caller's struct was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than the first release's struct: `EINVAL`.
    TooSmall,
    /// Longer than ours, and not zero there: `E2BIG`.
    TooBig,
    /// The bytes end before the struct does: `EFAULT`.
    Truncated,
}

impl DecodeError {
    /// The errno as a positive number.
    pub const fn errno(self) -> i32 {
        match self {
            Self::TooSmall => 22,
            Self::TooBig => 7,
            Self::Truncated => 14,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooSmall => "the struct is smaller than the command's first release",
            Self::TooBig => "the struct is newer and not zero beyond what is known",
            Self::Truncated => "the struct ends before its size",
        })
    }
}

impl core::error::Error for DecodeError {}

/// Which bytes of a caller's struct to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start that carry the struct.
    pub head: usize,
    /// Bytes after it that must all be zero ([`check_tail`]); the kernel looks at these first.
    pub tail: Range<u64>,
}

/// Which bytes to fetch of the struct for `command` from a caller who says that it has
/// `user_size` bytes (the struct's first word). [`DecodeError::TooSmall`] below the smallest.
///
/// A command without a struct has an empty extent.
pub fn extent(command: Command, user_size: u32) -> Result<Extent, DecodeError> {
    let info = command.info();
    let Some(layout) = info.layout() else {
        return Ok(Extent { head: 0, tail: 0..0 });
    };
    let user = u64::from(user_size);
    if user < info.smallest as u64 {
        return Err(DecodeError::TooSmall);
    }
    let known = layout.size as u64;
    Ok(match info.sizing {
        Sizing::Extensible => {
            let head = user.min(known);
            Extent { head: head as usize, tail: head..user }
        }
        Sizing::Argsz => {
            let head = info.smallest as u64;
            Extent { head: info.smallest, tail: head..head }
        }
    })
}

/// Whether a piece of the tail may be: [`DecodeError::TooBig`] unless all of it is zero.
pub fn check_tail(piece: &[u8]) -> Result<(), DecodeError> {
    if piece.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(DecodeError::TooBig) }
}

/// The struct that a caller of size `user_size` meant by `bytes`.
///
/// `bytes` start at the caller's struct and reach at least to the end of the [`Extent::head`];
/// what of the tail is in them is checked, the rest is the caller's to check.
/// Of [`Sizing::Argsz`] commands only the first release's fields are taken, whatever comes after.
pub fn decode<T: CommandStruct>(user_size: u32, bytes: &[u8]) -> Result<T, DecodeError> {
    let extent = extent(T::COMMAND, user_size)?;
    let end = usize::try_from(extent.tail.end).unwrap_or(usize::MAX).min(bytes.len());
    if let Some(tail) = bytes.get(extent.head..end) {
        check_tail(tail)?;
    }
    let head = bytes.get(..extent.head).ok_or(DecodeError::Truncated)?;
    let mut decoded = T::default();
    decoded.as_mut_bytes()[..extent.head].copy_from_slice(head);
    Ok(decoded)
}

/// The bytes of `answer` that a caller of size `user_size` gets back: no more than it has.
pub fn respond<T: CommandStruct>(answer: &T, user_size: u32) -> &[u8] {
    let bytes = answer.as_bytes();
    let len = usize::try_from(user_size).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::{iommu_destroy, iommu_hwpt_alloc, iommu_ioas_map};
    use crate::selftest::iommu_test_cmd;
    use crate::vfio::vfio_iommu_type1_dma_unmap;
    use proptest::prelude::*;

    #[test]
    fn first_releases_are_the_smallest() {
        for (command, smallest) in [
            (Command::Destroy, 8),
            (Command::IoasAlloc, 12),
            (Command::HwptAlloc, 24),
            (Command::GetHwInfo, 32),
            (Command::ViommuAlloc, 24),
            (Command::Test, 68),
            (Command::VfioIommuGetInfo, 16),
        ] {
            assert_eq!(command.info().smallest, smallest, "{}", command.name());
        }
    }

    #[test]
    fn older_callers_are_extended() {
        let mut bytes = [0u8; 24];
        bytes[0] = 24;
        bytes[8] = 7;
        let decoded: iommu_hwpt_alloc = decode(24, &bytes).unwrap();
        assert_eq!(decoded, iommu_hwpt_alloc { size: 24, dev_id: 7, ..Default::default() });
    }

    #[test]
    fn argsz_does_not_look_behind_the_struct() {
        let bytes = [0xff; 64];
        let decoded: vfio_iommu_type1_dma_unmap = decode(u32::MAX, &bytes).unwrap();
        assert_eq!(decoded.size, u64::MAX);
    }

    /// What the kernel's rule says, in other words.
    fn model(smallest: usize, known: usize, user: usize, bytes: &[u8]) -> Result<(), DecodeError> {
        if user < smallest {
            Err(DecodeError::TooSmall)
        } else if bytes.iter().take(user).skip(known).any(|&byte| byte != 0) {
            Err(DecodeError::TooBig)
        } else if bytes.len() < user.min(known) {
            Err(DecodeError::Truncated)
        } else {
            Ok(())
        }
    }

    fn check<T: CommandStruct + PartialEq + fmt::Debug>(
        user: u32,
        bytes: &[u8],
    ) -> Result<(), TestCaseError> {
        let known = size_of::<T>();
        let expected = model(T::COMMAND.info().smallest, known, user as usize, bytes);
        match decode::<T>(user, bytes) {
            Ok(decoded) => {
                prop_assert_eq!(expected, Ok(()));
                let head = known.min(user as usize);
                prop_assert_eq!(&decoded.as_bytes()[..head], &bytes[..head]);
                prop_assert!(decoded.as_bytes()[head..].iter().all(|&byte| byte == 0));
                prop_assert_eq!(respond(&decoded, user), &bytes[..head]);
            }
            Err(error) => prop_assert_eq!(expected, Err(error)),
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_size(
            user in prop_oneof![0u32..80, 0u32..5000, any::<u32>()],
            head in 0usize..5000,
            mark in proptest::option::of((0usize..5000, 1u8..)),
        ) {
            let mut bytes = [0u8; 5000];
            if let Some((at, value)) = mark {
                bytes[at] = value;
            }
            let bytes = &bytes[..head];
            check::<iommu_destroy>(user, bytes)?;
            check::<iommu_hwpt_alloc>(user, bytes)?;
            check::<iommu_ioas_map>(user, bytes)?;
            check::<iommu_test_cmd>(user, bytes)?;
        }
    }
}
