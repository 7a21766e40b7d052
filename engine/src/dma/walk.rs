//! What a simulated IOMMU shows to DMA: a walk over its table, and who must hear of a change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::port::Port;
use crate::domain::Prot;

/// What a walk ended at: one leaf IOPTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First IOVA that the leaf translates.
    pub iova: u64,
    /// Last IOVA that the leaf translates, inclusive.
    pub last: u64,
    /// The physical address (or guest-physical, for a first stage) of `iova`.
    pub physical: u64,
    /// What the leaf and its tables allow.
    pub prot: Prot,
}

impl Leaf {
    /// The address that `iova`, which the leaf covers, translates to.
    pub fn translate(&self, iova: u64) -> u64 {
        self.physical + (iova - self.iova)
    }
}

/// Why a walk found nothing to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// No present entry.
    NotPresent,
    /// The entry does not allow the access.
    Permission,
    /// The IOVA is wider than the table.
    OutOfRange,
}

/// The hardware's side of a paging domain.
pub trait Walk: Send + Sync {
    /// Walks for one access. Sets the accessed bit, and for `write` the dirty bit while writes are
    /// tracked, where the format has them. The answer allows the access.
    fn walk(&self, iova: u64, write: bool) -> Result<Leaf, WalkFault>;

    /// The entry of every level on the way of `iova`, the top's first, for people: sets no bit.
    /// None where the driver does not show its levels.
    fn steps(&self, iova: u64) -> Result<Vec<io_pgtable::Step>, WalkFault> {
        let _ = iova;
        Ok(Vec::new())
    }

    /// The ports that may hold translations of this table.
    fn ports(&self) -> &Ports;
}

/// The user's first stage of a nested domain. Its table lies in guest memory.
pub trait FirstStage: Send + Sync {
    /// Walks the first stage for one access; the leaf's `physical` is an IOVA of the parent.
    fn walk(&self, iova: u64, write: bool, table: &mut dyn GuestTable) -> Result<Leaf, WalkFault>;

    /// The ports that may hold translations of this table.
    fn ports(&self) -> &Ports;
}

/// A table in guest memory, reached through the second stage.
pub trait GuestTable {
    /// Loads the little-endian entry at the 8-byte aligned `address`.
    fn load(&mut self, address: u64) -> Result<u64, WalkFault>;

    /// Stores `new` at `address` if `old` is still there; answers whether it was.
    fn update(&mut self, address: u64, old: u64, new: u64) -> Result<bool, WalkFault>;
}

/// The ports that a table's owner has to invalidate. Costs one load while there is none.
#[derive(Default)]
pub struct Ports {
    count: AtomicUsize,
    list: Mutex<Vec<Weak<Port>>>,
}

impl Ports {
    /// Notes that `port` translates by this table from now on.
    pub(super) fn add(&self, port: &Arc<Port>) {
        let mut list = self.list.lock();
        list.retain(|p| p.strong_count() > 0);
        list.push(Arc::downgrade(port));
        self.count.store(list.len(), Ordering::Release);
    }

    /// Forgets one note of `port`.
    pub(super) fn remove(&self, port: &Port) {
        let mut list = self.list.lock();
        if let Some(at) = list.iter().position(|p| std::ptr::eq(p.as_ptr(), port)) {
            list.swap_remove(at);
        }
        self.count.store(list.len(), Ordering::Release);
    }

    /// After this no port uses a translation of `length` bytes at `iova` that it had before.
    pub fn invalidate(&self, iova: u64, length: u64) {
        if length != 0 {
            self.each(|port| port.invalidate(iova, iova.saturating_add(length - 1)));
        }
    }

    /// After this no port uses any translation that it had before.
    pub fn invalidate_all(&self) {
        self.each(|port| port.invalidate(0, u64::MAX));
    }

    fn each(&self, with: impl Fn(&Port)) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        // The list's lock is not held over a port's: a port that retargets takes them the other
        // way round.
        let ports: Vec<_> = self.list.lock().iter().filter_map(Weak::upgrade).collect();
        for port in ports {
            with(&port);
        }
    }
}
