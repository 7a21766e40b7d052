//! The I/O page table of an IOAS: which IOVAs may be used, what is mapped at them, and the domains
//! and accesses that see it.
//!
//! - [`ranges`]: reserved and allowed IOVAs, alignment.
//! - [`domains`]: domains that mirror the mappings.
//! - [`access`]: kernel users (external drivers without an IOMMU, hardware queues) that pin pages
//!   or copy bytes by IOVA.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Domain;

pub mod access;
pub mod domains;
pub mod ranges;

pub use access::{Access, AccessUser};

/// Who asked for a reserved range, so that it can be given back by who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(u64);

impl Owner {
    /// One that nobody else has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the lock of an IOAS guards.
pub struct State {
    /// Ranges that must not be mapped, with who asked for it. They may overlap.
    reserved: Vec<(Owner, RangeInclusive<u64>)>,
    /// Ranges that must stay usable: sorted, apart; empty for no promise.
    allowed: Vec<RangeInclusive<u64>>,
    domains: Vec<Attached>,
    accesses: Vec<Access>,
    /// IOVAs and lengths are multiples of this.
    alignment: u64,
    huge_pages: bool,
}

struct Attached {
    domain: Arc<dyn Domain>,
    owner: Owner,
}

impl Default for State {
    fn default() -> Self {
        Self {
            reserved: Vec::new(),
            allowed: Vec::new(),
            domains: Vec::new(),
            accesses: Vec::new(),
            alignment: 1,
            huge_pages: true,
        }
    }
}
