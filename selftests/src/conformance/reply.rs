//! What a call answered.

use serde::{Deserialize, Serialize};

use super::step::Source;

/// All of a call's answer that a program can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// What the system call returned; a negative errno if it failed.
    pub result: i64,
    /// The bytes of the struct afterwards, as many as the call had.
    pub after: Vec<u8>,
    /// The memory that the call was to show afterwards.
    pub seen: Vec<Vec<u8>>,
    /// The descriptor that it opened without returning it.
    pub descriptor: Option<i32>,
    /// The replies of a child's calls.
    pub child: Vec<Reply>,
}

impl Reply {
    /// A reply that is a result alone.
    pub fn of(result: i64) -> Self {
        Self { result, ..Self::default() }
    }

    /// Whether the call succeeded.
    pub fn ok(&self) -> bool {
        self.result >= 0
    }

    /// The errno of a call that failed.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        (self.result < 0).then(|| nix::errno::Errno::from_raw(-self.result as i32))
    }

    /// The number at `offset` of the struct.
    pub fn out(&self, offset: usize, width: usize) -> u64 {
        number(&self.after, offset, width)
    }

    /// What a value that comes from this reply is.
    pub fn value(&self, source: Source) -> u64 {
        match source {
            Source::Result => self.result as u64,
            Source::Out { offset, width } => self.out(offset.into(), width.into()),
            Source::Descriptor => self.descriptor.unwrap_or(-1) as u64,
            Source::Seen { offset, width } => {
                number(self.seen.first().map_or(&[], Vec::as_slice), offset.into(), width.into())
            }
        }
    }
}

/// The number in `width` bytes; 0 where they are not there.
pub(super) fn number(bytes: &[u8], offset: usize, width: usize) -> u64 {
    let Some(bytes) = bytes.get(offset..offset + width.min(8)) else { return 0 };
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
