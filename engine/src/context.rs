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

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, ReentrantMutex, ReentrantMutexGuard};

use crate::Errno;
use crate::account::{Account, Accounts, Mode, Totals};
use crate::call::Call;
use crate::file::ContextId;
use crate::ioas::Ioas;
use crate::kept::{Ends, Kept};
use crate::memory::MmId;
use crate::object::Objects;
use crate::quota::{Quota, Resource, Taken};
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
    accounts: Accounts,
    contexts: Mutex<BTreeMap<ContextId, Weak<Context>>>,
    quirks: bool,
    ends: Ends,
}

/// One open of `/dev/iommu`.
pub struct Context {
    id: ContextId,
    node: Node,
    engine: Arc<Engine>,
    serial: ReentrantMutex<()>,
    objects: Objects,
    mmaps: Mmaps,
    /// What its user may have; nothing for no limits.
    quota: Option<Arc<Quota>>,
    account_mode: Mutex<Mode>,
    /// The account of the latest mapping: mostly the next one's, too.
    account: Mutex<Option<Arc<Account>>>,
    /// What VFIO's ioctls work on.
    compat_ioas: Mutex<Weak<Ioas>>,
    /// What its areas keep open.
    kept: Kept,
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
        self.context.let_go();
    }
}

impl Engine {
    /// An engine without contexts.
    pub fn new() -> Arc<Self> {
        Self::with_quirks(false)
    }

    /// The same; with `quirks` it does as Linux 7.3 does even where Linux is plainly at fault
    /// (docs/differences.md).
    pub fn with_quirks(quirks: bool) -> Arc<Self> {
        Arc::new(Self {
            next_context: AtomicU64::new(1),
            accounts: Accounts::default(),
            contexts: Mutex::default(),
            quirks,
            ends: Ends::default(),
        })
    }

    /// Whether Linux's faults are answered, too.
    pub fn quirks(&self) -> bool {
        self.quirks
    }

    /// Answers an open of `node`.
    pub fn open(self: &Arc<Self>, node: Node) -> Arc<Context> {
        self.open_within(node, None)
    }

    /// The same for a user who may have no more than `quota`, together with the user's other
    /// contexts.
    pub fn open_within(self: &Arc<Self>, node: Node, quota: Option<Arc<Quota>>) -> Arc<Context> {
        let id = ContextId(self.next_context.fetch_add(1, Ordering::Relaxed));
        let account_mode = match node {
            Node::Iommu => Mode::User,
            Node::VfioContainer => Mode::Mm,
        };
        let context = Arc::new(Context {
            id,
            node,
            engine: self.clone(),
            serial: ReentrantMutex::new(()),
            objects: Objects::within(quota.clone()),
            mmaps: Mmaps::default(),
            quota,
            account_mode: Mutex::new(account_mode),
            account: Mutex::default(),
            compat_ioas: Mutex::default(),
            kept: Kept::default(),
            holds: AtomicUsize::new(1),
        });
        self.contexts.lock().insert(id, Arc::downgrade(&context));
        context
    }

    /// The counters that pins are charged to.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What is charged to `mm` now: `VmPin` and what accounting adds to `VmLck`.
    pub fn pinned(&self, mm: MmId) -> Totals {
        self.accounts.totals(mm)
    }

    /// The contexts that are open.
    pub fn contexts(&self) -> Vec<Arc<Context>> {
        self.contexts.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// The open context `id`.
    pub(crate) fn context(&self, id: ContextId) -> Option<Arc<Context>> {
        self.contexts.lock().get(&id)?.upgrade()
    }

    /// What areas no longer keep.
    pub(crate) fn ends(&self) -> &Ends {
        &self.ends
    }

    /// [`Context::memory_changed`] in all contexts.
    pub fn memory_changed(
        &self,
        mm: MmId,
        addresses: &Range<u64>,
        when: Instant,
        what: &str,
    ) -> usize {
        let contexts = self.contexts();
        contexts.iter().map(|context| context.memory_changed(mm, addresses, when, what)).sum()
    }

    /// [`Context::pages_lost`] in all contexts.
    pub fn pages_lost(&self) -> usize {
        self.contexts().iter().map(|context| context.pages_lost()).sum()
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

    /// The same, unless a command runs for longer than `patience`.
    pub(crate) fn serial_within(&self, patience: Duration) -> Option<ReentrantMutexGuard<'_, ()>> {
        self.serial.try_lock_for(patience)
    }

    /// `IOMMU_OPTION_RLIMIT_MODE`.
    pub(crate) fn account_mode(&self) -> Mode {
        *self.account_mode.lock()
    }

    pub(crate) fn set_account_mode(&self, mode: Mode) {
        *self.account_mode.lock() = mode;
    }

    /// Who pays for what `call` maps.
    pub(crate) fn account(&self, call: &Call<'_>) -> Arc<Account> {
        let (mm, process, mode) = (call.memory.id(), call.caller.process(), self.account_mode());
        let mut latest = self.account.lock();
        if let Some(account) = &*latest
            && account.serves(mm, &*process, mode)
        {
            return account.clone();
        }
        let account = self.engine.accounts.open(mm, process, mode, self.quota.clone());
        *latest = Some(account.clone());
        account
    }

    /// What its user may have.
    pub(crate) fn quota(&self) -> Option<&Arc<Quota>> {
        self.quota.as_ref()
    }

    /// One more of `what` for its user.
    pub(crate) fn take(&self, what: Resource) -> Result<Taken, Errno> {
        Taken::of(self.quota(), what)
    }

    /// The IOAS that VFIO's ioctls work on. Gone when the IOAS is.
    pub(crate) fn compat_ioas(&self) -> Option<Arc<Ioas>> {
        let ioas = self.compat_ioas.lock().upgrade()?;
        // An id that another object has by now is not this one's.
        let current = self.objects.get::<Ioas>(ioas.id()).ok()?;
        Arc::ptr_eq(current.object(), &ioas).then_some(ioas)
    }

    pub(crate) fn set_compat_ioas(&self, ioas: Option<&Arc<Ioas>>) {
        *self.compat_ioas.lock() = ioas.map_or_else(Weak::new, Arc::downgrade);
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

    /// The same, unless it is closed.
    pub(crate) fn hold_open(self: &Arc<Self>) -> Option<Hold> {
        let more = |holds: usize| (holds > 0).then_some(holds + 1);
        self.holds.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(Hold { context: self.clone() })
    }

    /// What its areas keep open.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The last descriptor is closed: destroys every object, unless something holds the context
    /// open, which then does it at its own end. Answers how many objects would not go.
    pub fn close(&self) -> usize {
        self.kept.let_go();
        let left = self.let_go();
        self.engine.end_kept();
        left
    }

    fn let_go(&self) -> usize {
        if self.holds.fetch_sub(1, Ordering::AcqRel) != 1 {
            return 0;
        }
        let _serial = self.serial();
        self.engine.contexts.lock().remove(&self.id);
        self.account.lock().take();
        self.objects.clear().len()
    }
}
