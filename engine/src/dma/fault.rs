//! What an access at an IOVA can fail with.

use std::fmt;

use super::walk::WalkFault;
use crate::Errno;

/// An access that did not happen, or stopped half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first IOVA that could not be reached. What comes before it was transferred.
    pub iova: u64,
    /// Whether it was a store or an atomic.
    pub write: bool,
    /// Why.
    pub reason: Reason,
    /// What becomes of it.
    pub recovery: Recovery,
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is attached: the IOMMU blocks the device.
    Blocked,
    /// The range passes the end of the IOVA space, or the IOVA is wider than the table.
    OutOfRange,
    /// No present IOPTE, of the stage that is named.
    NotPresent(Stage),
    /// The IOPTE does not allow it, in the stage that is named.
    Permission(Stage),
    /// An atomic that is not aligned to its size.
    Misaligned,
    /// The IOPTE's frame is not pinned memory of the IOAS: a corrupt table.
    NoMemory,
    /// The pinned memory itself failed; its process may be gone.
    Memory(Errno),
}

/// A stage of the translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The user's table of a nested HWPT.
    First,
    /// The table that an IOAS fills.
    Second,
}

/// What the IOMMU did about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Aborted: the device sees an error completion.
    Unrecoverable,
    /// A page request went to the fault queue, with this group id. The device may retry when it
    /// is answered ([`super::Port::wait_response`]).
    Requested(u32),
}

impl Reason {
    pub(super) fn from_walk(fault: WalkFault, stage: Stage) -> Self {
        match fault {
            WalkFault::NotPresent => Self::NotPresent(stage),
            WalkFault::Permission => Self::Permission(stage),
            WalkFault::OutOfRange => Self::OutOfRange,
        }
    }

    /// Whether a page request can ask the user to mend it: what the page tables say, and only that.
    pub(super) fn pageable(self) -> bool {
        matches!(self, Self::NotPresent(_) | Self::Permission(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.write { "write" } else { "read" };
        write!(f, "{what} at IOVA {:#x}: {:?}, {:?}", self.iova, self.reason, self.recovery)
    }
}

impl std::error::Error for Fault {}
