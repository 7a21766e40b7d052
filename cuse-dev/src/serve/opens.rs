//! The contexts that are open through the node, and what each user may have.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::{Context, Errno, Most, Quota};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use super::assist::Assisted;

/// Threads that answer requests of the node.
pub(super) const THREADS: usize = 512;

/// How many of them callers other than root may hold. A request could hold its thread whatever it
/// is, so past that they get `EAGAIN`; what is left is for root, and for noticing.
const SIEGE: usize = THREADS * 3 / 4;

/// How many users are kept in mind, whether they have anything or not.
const REMEMBERED: usize = 64;

/// How long one whose request held the reader is served apart.
const WARY: Duration = Duration::from_secs(1);

/// What one user may have at a time. Root may have as much as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Contexts: opens of the node.
    pub contexts: usize,
    /// Requests that are being answered apart, each of which holds a thread of the daemon.
    pub requests: usize,
    /// What all of the user's contexts may have together.
    pub most: Most,
}

impl Default for Limits {
    fn default() -> Self {
        let most = Most {
            objects: 1 << 16,
            queues: 256,
            events: 1 << 16,
            // VFIO's own limit is 65535 mappings a container.
            areas: 1 << 18,
            pages: most_of_memory() / engine::memory::PAGE_SIZE,
        };
        Self { contexts: 1024, requests: 32, most }
    }
}

/// Bytes of three quarters of the machine's memory.
fn most_of_memory() -> u64 {
    let bytes = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    bytes / 4 * 3
}

/// One open of the node.
pub(super) struct Open {
    pub(super) context: Arc<Context>,
    user: Arc<User>,
    /// For `softiommu run --via`.
    pub(super) assisted: Assisted,
    /// Requests that are being answered by other threads than the reader.
    apart: AtomicUsize,
}

impl Open {
    /// Who opened it.
    pub(super) fn uid(&self) -> u32 {
        self.user.uid
    }

    /// Nobody has it open any more. Answers how many objects would not go.
    pub(super) fn close(&self) -> usize {
        self.assisted.close();
        self.context.close()
    }
}

/// One user's share.
pub(super) struct User {
    uid: u32,
    contexts: AtomicUsize,
    requests: AtomicUsize,
    /// Requests that held the reader, perhaps on purpose, and are not over.
    stuck: AtomicUsize,
    /// Nothing for root, who may have as much as it likes.
    quota: Option<Arc<Quota>>,
    /// Milliseconds since the start until which requests are answered apart; 0 for none.
    wary_until: AtomicU64,
}

impl User {
    fn new(uid: u32, most: Most) -> Arc<Self> {
        Arc::new(Self {
            uid,
            quota: (uid != 0).then(|| Quota::new(most)),
            contexts: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            stuck: AtomicUsize::new(0),
            wary_until: AtomicU64::new(0),
        })
    }
}

/// All of them.
pub(super) struct Opens {
    limits: Limits,
    started: Instant,
    by_handle: RwLock<FxHashMap<u64, Arc<Open>>>,
    /// Threads that callers other than root hold.
    held: Arc<AtomicUsize>,
    /// The requests that held the reader, by their number.
    stalled: Mutex<FxHashMap<u64, (Held, Option<Stuck>)>>,
    users: Mutex<HashMap<u32, Arc<User>>>,
}

impl Opens {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            by_handle: RwLock::default(),
            held: Arc::default(),
            stalled: Mutex::default(),
            users: Mutex::default(),
        }
    }

    /// The open with that handle.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<Open>> {
        self.by_handle.read().get(&handle).cloned()
    }

    /// Adds one for `uid` and answers its handle. `EMFILE` when the user has as many as allowed.
    pub(super) fn add(
        &self,
        uid: u32,
        make: impl FnOnce(Option<Arc<Quota>>) -> Arc<Context>,
    ) -> Result<u64, Errno> {
        let user = {
            let mut users = self.users.lock();
            let user = self.user(&mut users, uid);
            if uid != 0 && user.contexts.load(Ordering::Relaxed) >= self.limits.contexts {
                return Err(Errno::EMFILE);
            }
            // Under the lock, as the removal of a user without contexts is.
            user.contexts.fetch_add(1, Ordering::Relaxed);
            user
        };
        let context = make(user.quota.clone());
        let handle = context.id().0;
        let open = Arc::new(Open {
            context,
            user,
            assisted: Assisted::default(),
            apart: AtomicUsize::new(0),
        });
        self.by_handle.write().insert(handle, open);
        Ok(handle)
    }

    /// Takes one out.
    pub(super) fn remove(&self, handle: u64) -> Option<Arc<Open>> {
        let open = self.by_handle.write().remove(&handle)?;
        let mut users = self.users.lock();
        open.user.contexts.fetch_sub(1, Ordering::Relaxed);
        if users.len() > REMEMBERED {
            users.retain(|_, user| !self.is_nobody(user));
        }
        Some(open)
    }

    /// Every open that is left, taken out.
    pub(super) fn drain(&self) -> Vec<Arc<Open>> {
        self.by_handle.write().drain().map(|(_, open)| open).collect()
    }

    /// Whether the next request of `open` is to be answered apart from the reader: one of it is
    /// already and may hold its lock, or its user held the reader, lately or with a request that
    /// still goes on.
    pub(super) fn is_wary(&self, open: &Open) -> bool {
        open.apart.load(Ordering::Relaxed) > 0 || self.is_in_disgrace(&open.user)
    }

    /// The user `uid`, for whom somebody has to be counted before the lock goes.
    fn user(&self, users: &mut HashMap<u32, Arc<User>>, uid: u32) -> Arc<User> {
        if users.len() > REMEMBERED && !users.contains_key(&uid) {
            users.retain(|_, user| !self.is_nobody(user));
        }
        users.entry(uid).or_insert_with(|| User::new(uid, self.limits.most)).clone()
    }

    /// Whether a user has nothing, and nothing that has to be remembered. Queues keep their context,
    /// and so its quota, when the node is closed.
    fn is_nobody(&self, user: &Arc<User>) -> bool {
        let shared = user.quota.as_ref().is_some_and(|quota| Arc::strong_count(quota) > 1);
        Arc::strong_count(user) == 1
            && user.contexts.load(Ordering::Relaxed) == 0
            && !shared
            && !self.is_in_disgrace(user)
    }

    fn is_in_disgrace(&self, user: &User) -> bool {
        let until = user.wary_until.load(Ordering::Relaxed);
        let wary = until != 0 && self.now() < until;
        if until != 0 && !wary {
            user.wary_until.store(0, Ordering::Relaxed);
        }
        wary || user.stuck.load(Ordering::Relaxed) > 0
    }

    /// The request `unique` of `uid` holds its thread, until [`Opens::resumed`]. If `wary`, it may
    /// be meant to.
    pub(super) fn stalled(&self, unique: u64, uid: u32, wary: bool) {
        // Who calls need not be who opened.
        let user = self.user(&mut self.users.lock(), uid);
        if wary {
            let until = self.now() + WARY.as_millis() as u64;
            user.wary_until.store(until, Ordering::Relaxed);
        }
        let stuck = wary.then(|| Stuck::new(user.clone()));
        let held = Held::new(&self.held, user);
        self.stalled.lock().insert(unique, (held, stuck));
    }

    /// The request `unique`, which was stalled, is over.
    pub(super) fn resumed(&self, unique: u64) {
        self.stalled.lock().remove(&unique);
    }

    /// Before any request of `open`. `EAGAIN` when callers hold so many threads that another
    /// must not be risked.
    pub(super) fn admit(&self, open: &Open) -> Result<(), Errno> {
        let besieged = open.user.uid != 0 && self.held.load(Ordering::Relaxed) >= SIEGE;
        if besieged { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// A request of `open` is answered apart until the answer is dropped. `EAGAIN` when too many
    /// of its user are.
    pub(super) fn enter(&self, open: &Arc<Open>) -> Result<Apart, Errno> {
        open.apart.fetch_add(1, Ordering::Relaxed);
        let held = Held::new(&self.held, open.user.clone());
        let apart = Apart { open: open.clone(), _held: held };
        let with_this = open.user.requests.load(Ordering::Relaxed);
        if open.user.uid != 0 && with_this > self.limits.requests {
            return Err(Errno::EAGAIN);
        }
        Ok(apart)
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// See [`Opens::enter`].
pub(super) struct Apart {
    open: Arc<Open>,
    _held: Held,
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.open.apart.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A thread that a request of a user holds.
struct Held {
    all: Arc<AtomicUsize>,
    user: Arc<User>,
}

impl Held {
    fn new(all: &Arc<AtomicUsize>, user: Arc<User>) -> Self {
        user.requests.fetch_add(1, Ordering::Relaxed);
        all.fetch_add(usize::from(user.uid != 0), Ordering::Relaxed);
        Self { all: all.clone(), user }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.user.requests.fetch_sub(1, Ordering::Relaxed);
        self.all.fetch_sub(usize::from(self.user.uid != 0), Ordering::Relaxed);
    }
}

/// A request by which a user holds a thread, perhaps on purpose.
struct Stuck(Arc<User>);

impl Stuck {
    fn new(user: Arc<User>) -> Self {
        user.stuck.fetch_add(1, Ordering::Relaxed);
        Self(user)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.stuck.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use engine::{Engine, Node};

    use super::*;

    fn opens(contexts: usize, requests: usize) -> (Opens, Arc<Engine>) {
        (Opens::new(Limits { contexts, requests, ..Limits::default() }), Engine::new())
    }

    #[test]
    fn a_user_has_so_many_contexts_and_no_more() {
        let (opens, engine) = opens(2, 1);
        let open = |uid| opens.add(uid, |quota| engine.open_within(Node::Iommu, quota));
        let first = open(7).unwrap();
        open(7).unwrap();
        assert_eq!(open(7), Err(Errno::EMFILE));
        open(8).unwrap();
        opens.remove(first).unwrap();
        open(7).unwrap();
        for _ in 0..5 {
            open(0).unwrap();
        }
    }

    #[test]
    fn a_user_holds_so_many_threads_and_no_more() {
        let (opens, engine) = opens(2, 1);
        let handle = opens.add(7, |quota| engine.open_within(Node::Iommu, quota)).unwrap();
        let open = opens.get(handle).unwrap();
        let held = opens.enter(&open).unwrap();
        assert_eq!(opens.enter(&open).err(), Some(Errno::EAGAIN));
        assert!(opens.is_wary(&open));
        drop(held);
        assert!(!opens.is_wary(&open));
        assert!(opens.enter(&open).is_ok());
    }

    #[test]
    fn one_who_holds_a_thread_is_served_apart_however_long_that_lasts() {
        let (opens, engine) = opens(2, 1);
        let open = opens.get(open_of_nobody(&opens, &engine, 7)).unwrap();
        opens.stalled(1, 7, true);
        // A second later.
        open.user.wary_until.store(0, Ordering::Relaxed);
        assert!(opens.is_wary(&open));
        assert_eq!(opens.enter(&open).err(), Some(Errno::EAGAIN));
        opens.resumed(1);
        assert!(!opens.is_wary(&open));
    }

    #[test]
    fn one_who_held_the_reader_is_remembered_over_its_close() {
        let (opens, engine) = opens(2, 1);
        let handle = opens.add(7, |quota| engine.open_within(Node::Iommu, quota)).unwrap();
        opens.stalled(1, 7, true);
        opens.resumed(1);
        opens.remove(handle).unwrap();
        let handle = opens.add(7, |quota| engine.open_within(Node::Iommu, quota)).unwrap();
        assert!(opens.is_wary(&opens.get(handle).unwrap()));
    }

    #[test]
    fn a_quota_is_the_users_over_all_contexts_and_over_their_close() {
        let most = Most { objects: 1, ..Limits::default().most };
        let opens = Opens::new(Limits { most, ..Limits::default() });
        let engine = Engine::new();
        let quotas = std::cell::RefCell::new(Vec::new());
        let open = |uid| {
            opens.add(uid, |quota| {
                quotas.borrow_mut().push(quota.clone());
                engine.open_within(Node::Iommu, quota)
            })
        };
        let (first, second) = (open(7).unwrap(), open(7).unwrap());
        opens.remove(first).unwrap();
        opens.remove(second).unwrap();
        // The test still holds the quota, as a queue's file would.
        for uid in 1000..1000 + 2 * REMEMBERED as u32 {
            opens.remove(open(uid).unwrap()).unwrap();
        }
        open(7).unwrap();
        open(0).unwrap();
        let quotas = quotas.into_inner();
        let same = |a: usize, b: usize| match (&quotas[a], &quotas[b]) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        assert!(same(0, 1) && same(0, quotas.len() - 2));
        assert!(!same(0, 2));
        assert!(quotas.last().unwrap().is_none(), "root has no limits");
        drop(quotas);
        for uid in 5000..5010 {
            opens.remove(open_of_nobody(&opens, &engine, uid)).unwrap();
        }
        assert!(opens.users.lock().len() <= REMEMBERED + 2);
    }

    fn open_of_nobody(opens: &Opens, engine: &Arc<Engine>, uid: u32) -> u64 {
        opens.add(uid, |quota| engine.open_within(Node::Iommu, quota)).unwrap()
    }

    #[test]
    fn many_users_together_do_not_hold_all_threads() {
        let (opens, engine) = opens(2, 1000);
        let open_of = |uid| {
            opens
                .get(opens.add(uid, |quota| engine.open_within(Node::Iommu, quota)).unwrap())
                .unwrap()
        };
        let (one, root) = (open_of(7), open_of(0));
        for unique in 0..SIEGE as u64 {
            assert_eq!(opens.admit(&one), Ok(()));
            opens.stalled(unique, 7, true);
        }
        assert_eq!(opens.admit(&open_of(8)), Err(Errno::EAGAIN));
        assert_eq!(opens.admit(&root), Ok(()));
        opens.resumed(0);
        assert_eq!(opens.admit(&open_of(9)), Ok(()));
    }
}
