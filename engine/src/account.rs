//! Who pays for pinned pages: `RLIMIT_MEMLOCK`, by user or by mm.
//!
//! A page that is pinned is charged once, to the process that mapped it, in the mode of its
//! context. The mm's count of pinned pages (`VmPin`) rises in every mode; the user's or the mm's
//! count of locked pages (the latter is `VmLck`) is what the limit is compared with. A process that
//! has `CAP_IPC_LOCK` when it maps is counted and not limited.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::Errno;
use crate::caller::{Capability, Process};
use crate::inspect::PayerReport;
use crate::memory::{MmId, PAGE_SIZE};
use crate::quota::{Quota, Resource};

/// What the limit is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the mapping process had `CAP_IPC_LOCK`.
    Unlimited,
    /// All that the user has locked.
    User,
    /// What the mm has locked.
    Mm,
}

impl Mode {
    /// For reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::User => "user",
            Self::Mm => "process",
        }
    }
}

/// One account among those of a report: mm, user, mode.
pub(crate) type PayerId = (MmId, u32, &'static str);

#[derive(Default)]
struct Counter {
    pinned: AtomicU64,
    locked: AtomicU64,
}

/// The counters of one daemon: by mm and by user.
#[derive(Default)]
pub struct Accounts {
    mms: Table<MmId>,
    users: Table<u32>,
}

/// Pages that are charged to an mm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pinned: `VmPin` is this many pages.
    pub pinned: u64,
    /// Locked by accounting per process: adds to `VmLck`.
    pub locked: u64,
}

/// Counters by key, gone when nobody charges them any more.
struct Table<K> {
    counters: Mutex<HashMap<K, Weak<Counter>>>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { counters: Mutex::default() }
    }
}

impl<K: Eq + Hash> Table<K> {
    fn counter(&self, key: K) -> Arc<Counter> {
        let mut counters = self.counters.lock();
        if let Some(counter) = counters.get(&key).and_then(Weak::upgrade) {
            return counter;
        }
        if counters.len() == counters.capacity() {
            counters.retain(|_, counter| counter.strong_count() > 0);
        }
        let counter = Arc::new(Counter::default());
        counters.insert(key, Arc::downgrade(&counter));
        counter
    }

    fn existing(&self, key: &K) -> Option<Arc<Counter>> {
        self.counters.lock().get(key)?.upgrade()
    }
}

impl Accounts {
    /// The account that pins of `mm`, mapped by `process`, are charged to, and `quota` with it.
    pub(crate) fn open(
        &self,
        mm: MmId,
        process: Arc<dyn Process>,
        mode: Mode,
        quota: Option<Arc<Quota>>,
    ) -> Arc<Account> {
        let mode = effective(mode, &*process);
        let uid = process.uid();
        Arc::new(Account {
            mm: self.mms.counter(mm),
            user: self.users.counter(uid),
            mm_id: mm,
            uid,
            mode,
            process,
            quota,
        })
    }

    /// What is charged to `mm` now.
    pub fn totals(&self, mm: MmId) -> Totals {
        self.mms.existing(&mm).map_or_else(Totals::default, |counter| Totals {
            pinned: counter.pinned.load(Ordering::Relaxed),
            locked: counter.locked.load(Ordering::Relaxed),
        })
    }

    /// Pages that any account is charged with now.
    pub fn pinned(&self) -> u64 {
        let counters = self.mms.counters.lock();
        let living = counters.values().filter_map(Weak::upgrade);
        living.map(|counter| counter.pinned.load(Ordering::Relaxed)).sum()
    }

    /// The users whose pins accounting per user counts, with their pages, by id.
    pub fn users(&self) -> Vec<(u32, u64)> {
        let counters = self.users.counters.lock();
        let mut users: Vec<_> = counters
            .iter()
            .filter_map(|(&uid, counter)| Some((uid, counter.upgrade()?)))
            .map(|(uid, counter)| (uid, counter.locked.load(Ordering::Relaxed)))
            .filter(|&(_, locked)| locked != 0)
            .collect();
        users.sort_unstable();
        users
    }

    /// Pages that accounting per user has locked for `uid`.
    pub fn locked_by_user(&self, uid: u32) -> u64 {
        self.users.existing(&uid).map_or(0, |counter| counter.locked.load(Ordering::Relaxed))
    }
}

fn effective(mode: Mode, process: &dyn Process) -> Mode {
    if process.capable(Capability::IpcLock) { Mode::Unlimited } else { mode }
}

/// Who pays for the pages of one mapping.
pub(crate) struct Account {
    mm: Arc<Counter>,
    user: Arc<Counter>,
    mm_id: MmId,
    uid: u32,
    mode: Mode,
    process: Arc<dyn Process>,
    /// What the context's user may have, whatever the mode.
    quota: Option<Arc<Quota>>,
}

impl Account {
    /// Charges `pages`. `ENOMEM` when that would pass the limit, or the quota.
    pub(crate) fn charge(&self, pages: u64) -> Result<(), Errno> {
        if let Some(quota) = &self.quota {
            quota.add(Resource::Pages, pages)?;
        }
        self.charge_process(pages).inspect_err(|_| {
            if let Some(quota) = &self.quota {
                quota.sub(Resource::Pages, pages);
            }
        })
    }

    fn charge_process(&self, pages: u64) -> Result<(), Errno> {
        if let Some(locked) = self.locked() {
            let limit = self.process.memlock_limit() / PAGE_SIZE;
            locked
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                    now.checked_add(pages).filter(|&sum| sum <= limit)
                })
                .map_err(|_| Errno::ENOMEM)?;
        }
        self.mm.pinned.fetch_add(pages, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a charge back.
    pub(crate) fn uncharge(&self, pages: u64) {
        if let Some(quota) = &self.quota {
            quota.sub(Resource::Pages, pages);
        }
        if let Some(locked) = self.locked() {
            locked.fetch_sub(pages, Ordering::Relaxed);
        }
        self.mm.pinned.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Whether it is the account of `process` with memory `mm` in `mode`.
    pub(crate) fn serves(&self, mm: MmId, process: &dyn Process, mode: Mode) -> bool {
        self.mm_id == mm
            && self.process.pid() == process.pid()
            && self.uid == process.uid()
            && self.mode == effective(mode, process)
    }

    /// Whether `other` charges the same counters in the same way.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.mm_id == other.mm_id && self.uid == other.uid && self.mode == other.mode
    }

    /// The account of `process` in the mode of this one, for `IOMMU_IOAS_CHANGE_PROCESS`.
    pub(crate) fn for_process(
        &self,
        accounts: &Accounts,
        mm: MmId,
        process: Arc<dyn Process>,
    ) -> Arc<Self> {
        let uid = process.uid();
        Arc::new(Self {
            mm: accounts.mms.counter(mm),
            user: accounts.users.counter(uid),
            mm_id: mm,
            uid,
            mode: self.mode,
            process,
            quota: self.quota.clone(),
        })
    }

    /// The process that pays.
    pub(crate) fn process(&self) -> &Arc<dyn Process> {
        &self.process
    }

    /// Adds this account to a report.
    pub(crate) fn add_to(&self, payers: &mut BTreeMap<PayerId, PayerReport>) {
        let mode = self.mode.name();
        payers.entry((self.mm_id, self.uid, mode)).or_insert_with(|| {
            let limit = self.process.memlock_limit();
            PayerReport {
                pid: self.process.pid(),
                uid: self.uid,
                mode: mode.into(),
                limit_pages: (limit != u64::MAX).then_some(limit / PAGE_SIZE),
                pinned_pages: self.mm.pinned.load(Ordering::Relaxed),
                locked_pages: self.mm.locked.load(Ordering::Relaxed),
            }
        });
    }

    fn locked(&self) -> Option<&AtomicU64> {
        match self.mode {
            Mode::Unlimited => None,
            Mode::User => Some(&self.user.locked),
            Mode::Mm => Some(&self.mm.locked),
        }
    }
}
