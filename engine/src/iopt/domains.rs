//! Domains of an IOAS: each mirrors all its mappings.

use std::sync::Arc;

use crate::Errno;
use crate::domain::Domain;
use crate::inject;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;

use super::ranges::granule;
use super::{Attached, Owner, State};

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
        state.check_alignment(alignment)?;
        state.reserve(owner, &outside)?;
        if let Err(error) = state.fill_domain(&**domain) {
            state.unreserve(owner);
            return Err(error);
        }
        state.domains.push(Attached { domain: domain.clone(), owner });
        state.alignment = alignment;
        Ok(())
    }

    /// The page sizes of each domain.
    pub(crate) fn domain_page_sizes(&self) -> impl Iterator<Item = u64> {
        let sizes: Vec<u64> = self.lock().domains.iter().map(|a| a.domain.page_sizes()).collect();
        sizes.into_iter()
    }

    /// Whether all domains keep DMA coherent with the CPU's caches.
    pub(crate) fn cache_coherent(&self) -> bool {
        self.lock().domains.iter().all(|attached| attached.domain.enforce_cache_coherency())
    }

    /// Takes everything out of `domain` and forgets it.
    pub fn detach_domain(&self, domain: &Arc<dyn Domain>) {
        let mut state = self.lock();
        let found = state.domains.iter().position(|a| same(&a.domain, domain));
        if let Some(index) = found {
            let attached = state.domains.remove(index);
            let last = state.domains.is_empty();
            for (&start, area) in &mut state.areas {
                if area.filled {
                    domain.unmap(start, area.length(start));
                }
                if area.filled && last {
                    area.pages.release(area.all_pages(start));
                    area.filled = false;
                }
            }
            state.unreserve(attached.owner);
            state.alignment = state.wanted_alignment(None);
        }
    }
}

impl State {
    /// Maps all areas in one more domain. If it is the first their pages are pinned; the others'
    /// pins serve it, too. All or nothing.
    fn fill_domain(&mut self, domain: &dyn Domain) -> Result<(), Errno> {
        let (first, huge) = (self.domains.is_empty(), self.huge_pages);
        let mut failed = None;
        for (&start, area) in &mut self.areas {
            if area.pages.revoked() {
                continue;
            }
            let pages = area.all_pages(start);
            let pinned = if first { area.acquire(pages.clone()) } else { Ok(()) };
            let mapped = pinned.and_then(|()| {
                area.map(start, domain, huge).inspect_err(|_| {
                    if first {
                        area.pages.release(pages);
                    }
                })
            });
            if let Err(error) = mapped {
                failed = Some((start, error));
                break;
            }
            area.filled = true;
        }
        let Some((end, error)) = failed else { return Ok(()) };
        for (&start, area) in self.areas.range_mut(..end).filter(|(_, area)| area.filled) {
            domain.unmap(start, area.length(start));
            if first {
                area.pages.release(area.all_pages(start));
                area.filled = false;
            }
        }
        Err(error)
    }
}

/// Whether both are the same object, whatever trait it was seen through on its way here.
fn same(a: &Arc<dyn Domain>, b: &Arc<dyn Domain>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}
