//! Accesses: kernel users that reach memory by IOVA through the CPU.
//!
//! An access is told before a range goes ([`AccessUser::unmap`]) and has to unpin what it pinned
//! there. `IOMMU_IOAS_UNMAP` waits for that.

use std::sync::Arc;

use crate::Errno;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;

use super::Owner;

/// The other end of an access.
pub trait AccessUser: Send + Sync {
    /// IOVAs `iova` to `iova + length - 1` are being unmapped: unpin what is pinned there before
    /// returning. Called without the IOAS lock.
    fn unmap(&self, iova: u64, length: u64);
}

/// An access of an IOAS.
#[derive(Clone)]
pub struct Access {
    owner: Owner,
    user: Arc<dyn AccessUser>,
    alignment: u64,
}

impl Access {
    pub(super) fn alignment(&self) -> u64 {
        self.alignment
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

/// A copy between a kernel user and the memory behind IOVAs.
pub enum Transfer<'a> {
    /// Out of the memory.
    Read(&'a mut [u8]),
    /// Into the memory.
    Write(&'a [u8]),
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
        state.accesses.push(Access { owner, user, alignment });
        state.alignment = state.wanted_alignment(None);
        Ok(AccessId(owner))
    }

    /// Removes an access, which has nothing pinned any more.
    pub fn remove_access(&self, id: AccessId) {
        let mut state = self.lock();
        state.accesses.retain(|access| access.owner != id.0);
        state.alignment = state.wanted_alignment(None);
    }
}
