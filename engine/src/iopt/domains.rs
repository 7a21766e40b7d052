//! Domains of an IOAS: each mirrors all its mappings.

use std::sync::Arc;

use crate::Errno;
use crate::domain::Domain;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;

use super::ranges::granule;
use super::{Attached, Owner};

impl Ioas {
    /// Makes `domain` mirror this IOAS from now on: its aperture's complement is reserved, its
    /// granularity respected, and everything that is mapped is mapped in it. All or nothing.
    ///
    /// `EINVAL` for a granularity above the page size, `EADDRINUSE` when a mapping does not suit
    /// it, `ENOMEM`, and what pinning answers.
    pub fn attach_domain(&self, domain: &Arc<dyn Domain>) -> Result<(), Errno> {
        let mut state = self.lock();
        if state.domains.iter().any(|a| same(&a.domain, domain)) {
            return Err(Errno::EEXIST);
        }
        inject::site("iopt: domain slot")?;
        let wanted = granule(domain.page_sizes());
        if wanted > PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        let alignment = state.wanted_alignment(Some(wanted));
        let owner = Owner::unique();
        let aperture = domain.aperture();
        let below = aperture.start().checked_sub(1).map(|last| 0..=last);
        let above = aperture.end().checked_add(1).map(|first| first..=u64::MAX);
        let outside: Vec<_> = below.into_iter().chain(above).collect();
        state.reserve(owner, &outside)?;
        state.domains.push(Attached { domain: domain.clone(), owner });
        state.alignment = alignment;
        Ok(())
    }

    /// Takes everything out of `domain` and forgets it.
    pub fn detach_domain(&self, domain: &Arc<dyn Domain>) {
        let mut state = self.lock();
        let found = state.domains.iter().position(|a| same(&a.domain, domain));
        if let Some(index) = found {
            let attached = state.domains.remove(index);
            state.unreserve(attached.owner);
            state.alignment = state.wanted_alignment(None);
        }
    }
}

/// Whether both are the same object, whatever trait it was seen through on its way here.
fn same(a: &Arc<dyn Domain>, b: &Arc<dyn Domain>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}
