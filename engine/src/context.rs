//! The engine and its contexts: one [`Context`] for each open of `/dev/iommu`.
//!
//! # Locks
//! In this order, left before right; a lock may be skipped, never taken against the order.
//! 1. [`Context::serial`]: commands of one context run one after another. Calls of external
//!    drivers that change what a device is attached to (the kAPI's bind, attach, replace, detach)
//!    take it, too. The selftest's command is such a driver: it takes no lock and calls the kAPI.
//!    It is reentrant, because an object that is destroyed may belong to an external driver,
//!    which then unbinds its device.
//! 2. The lock of an IOAS (`iopt`), one at a time; `IOMMU_IOAS_COPY` takes them in id order.
//! 3. The lock inside one object (a device's group, a vIOMMU, an event queue).
//! 4. The object table ([`crate::object::Objects`]) and accounts: held for a look-up only.
//!
//! An access's unmap callback runs with `serial` held and no IOAS lock, and may call the kAPI's
//! unpin. Contexts share no lock but the accounts' counters, which are atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::file::ContextId;
use crate::object::Objects;
use crate::viommu::mmap::Mmaps;

/// Which node was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// `/dev/iommu`.
    Iommu,
    /// `/dev/vfio/vfio`, VFIO's container: accounts by process as VFIO does.
    VfioContainer,
}

/// What all contexts of a daemon share.
pub struct Engine {
    next_context: AtomicU64,
}

/// One open of `/dev/iommu`.
pub struct Context {
    id: ContextId,
    node: Node,
    engine: Arc<Engine>,
    serial: ReentrantMutex<()>,
    objects: Objects,
    mmaps: Mmaps,
    /// The opener, until [`Context::close`], and every [`Hold`].
    holds: AtomicUsize,
}

/// Keeps a context open after its last descriptor is closed, as a file of it or an external
/// driver's device does. The last one to go closes it.
pub struct Hold {
    context: Arc<Context>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.context.close();
    }
}

impl Engine {
    /// An engine without contexts.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { next_context: AtomicU64::new(1) })
    }

    /// Answers an open of `node`.
    pub fn open(self: &Arc<Self>, node: Node) -> Arc<Context> {
        let id = ContextId(self.next_context.fetch_add(1, Ordering::Relaxed));
        Arc::new(Context {
            id,
            node,
            engine: self.clone(),
            serial: ReentrantMutex::new(()),
            objects: Objects::default(),
            mmaps: Mmaps::default(),
            holds: AtomicUsize::new(1),
        })
    }
}

impl Context {
    /// Which open this is.
    pub fn id(&self) -> ContextId {
        self.id
    }

    /// Which node was opened.
    pub fn node(&self) -> Node {
        self.node
    }

    /// What it shares with other contexts.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The object table.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Makes this the only command of the context.
    pub(crate) fn serial(&self) -> ReentrantMutexGuard<'_, ()> {
        self.serial.lock()
    }

    /// What `mmap` finds.
    pub(crate) fn mmaps(&self) -> &Mmaps {
        &self.mmaps
    }

    /// Keeps it open while the answer lives.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold { context: self.clone() }
    }

    /// The last descriptor is closed: destroys every object, unless something holds the context
    /// open, which then does it at its own end. Answers how many objects would not go.
    pub fn close(&self) -> usize {
        if self.holds.fetch_sub(1, Ordering::AcqRel) != 1 {
            return 0;
        }
        let _serial = self.serial();
        self.objects.clear().len()
    }
}
