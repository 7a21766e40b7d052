//! The object table of a context: ids, kinds, and who still uses what.
//!
//! Ids are the kernel's: the lowest free one, from 1. An object that another one needs is held by
//! a [`Use`]; while there is one, `IOMMU_DESTROY` answers `EBUSY`. An object that goes gives back
//! what it used by dropping its `Use`s, so a context can be emptied in any order that the objects
//! allow.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use ioctl_abi::iommufd::iommu_destroy;

use crate::Errno;
use crate::call::Call;
use crate::inject;
use crate::inspect::{Detail, Scope};
use crate::quota::{Quota, Resource, Taken};
use crate::sync::{AtomicU32, Mutex, Ordering};

/// What an object is, named as in the uAPI header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A kernel user of an IOAS, from the kAPI.
    Access,
    /// A device bound by an external driver.
    Device,
    /// A fault queue.
    Fault,
    /// A hardware queue of a vIOMMU.
    HwQueue,
    /// A hardware page table that maps an IOAS.
    HwptPaging,
    /// A hardware page table whose first stage the user owns.
    HwptNested,
    /// An I/O address space.
    Ioas,
    /// A device made by the selftest's mock bus.
    SelftestDevice,
    /// A device as a vIOMMU sees it.
    Vdevice,
    /// An event queue of a vIOMMU.
    Veventq,
    /// A virtual IOMMU.
    Viommu,
}

/// Something with an id.
pub trait Object: Any + Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Whether `IOMMU_DESTROY` may end it (a bound device it may not: `EBUSY`).
    fn destroyable(&self) -> bool {
        true
    }

    /// What it is worth telling people.
    fn report(&self, scope: Scope) -> Detail;

    /// Undoes what the object did to others. It is out of the table and nobody uses it.
    fn destroy(&self) {}
}

/// A reference that keeps an object from being destroyed.
pub struct Use<T: ?Sized> {
    object: Arc<T>,
    users: Arc<AtomicU32>,
}

impl<T: ?Sized> Use<T> {
    /// The object, for who must not keep it from being destroyed.
    pub fn object(&self) -> &Arc<T> {
        &self.object
    }
}

impl<T: ?Sized> Deref for Use<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T: ?Sized> Clone for Use<T> {
    fn clone(&self) -> Self {
        self.users.fetch_add(1, Ordering::Relaxed);
        Self { object: self.object.clone(), users: self.users.clone() }
    }
}

impl<T: ?Sized> Drop for Use<T> {
    fn drop(&mut self) {
        self.users.fetch_sub(1, Ordering::Release);
    }
}

impl<T: ?Sized> fmt::Debug for Use<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Use").field("users", &self.users).finish_non_exhaustive()
    }
}

struct Entry {
    /// Nothing while the id is only reserved.
    object: Option<Arc<dyn Object>>,
    users: Arc<AtomicU32>,
    /// Its place in its user's quota, as long as the id is taken.
    _taken: Taken,
}

/// Ids are indices, so that a look-up is one step; given-back ones wait in a heap, lowest first.
#[derive(Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: BinaryHeap<Reverse<u32>>,
    taken: usize,
}

impl Table {
    fn take(&mut self, taken: Taken) -> Result<u32, Errno> {
        let id = match self.free.pop() {
            Some(Reverse(id)) => id,
            None => {
                // The kernel's ids are positive ints.
                let id = i32::try_from(self.entries.len().max(1)).map_err(|_| Errno::ENOSPC)?;
                self.entries.resize_with(id as usize + 1, || None);
                id as u32
            }
        };
        self.entries[id as usize] =
            Some(Entry { object: None, users: Arc::default(), _taken: taken });
        self.taken += 1;
        Ok(id)
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    fn remove(&mut self, id: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(id as usize)?.take()?;
        self.taken -= 1;
        if self.taken == 0 {
            self.entries.clear();
            self.free.clear();
        } else {
            self.free.push(Reverse(id));
        }
        Some(entry)
    }

    fn ids(&self) -> impl DoubleEndedIterator<Item = (u32, &Entry)> {
        self.entries.iter().enumerate().filter_map(|(id, e)| Some((id as u32, e.as_ref()?)))
    }
}

/// Ids and objects of one context. Its lock is held for a look-up and never while an object works.
#[derive(Default)]
pub struct Objects {
    table: Mutex<Table>,
    quota: Option<Arc<Quota>>,
}

/// An id that is taken and not yet visible. Dropping it gives the id back.
pub struct Reserved<'a> {
    objects: &'a Objects,
    id: u32,
    armed: bool,
}

impl Reserved<'_> {
    /// The id that the object will have.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Makes `object` visible under the id.
    pub fn commit(mut self, object: Arc<dyn Object>) {
        self.armed = false;
        if let Some(entry) = self.objects.table.lock().entry_mut(self.id) {
            entry.object = Some(object);
        }
    }

    /// Makes `object` visible and used by the caller from the first moment.
    pub fn commit_used<T: Object>(mut self, object: Arc<T>) -> Use<T> {
        self.armed = false;
        let users = Arc::new(AtomicU32::new(1));
        if let Some(entry) = self.objects.table.lock().entry_mut(self.id) {
            entry.object = Some(object.clone());
            entry.users = users.clone();
        }
        Use { object, users }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.objects.table.lock().remove(self.id);
        }
    }
}

impl Objects {
    /// No objects, of which there may be as many as `quota` has room for.
    pub(crate) fn within(quota: Option<Arc<Quota>>) -> Self {
        Self { table: Mutex::default(), quota }
    }

    /// Takes the lowest free id. `ENOMEM` by fault injection, when no id is left, or past the quota.
    pub fn reserve(&self) -> Result<Reserved<'_>, Errno> {
        inject::site("object: allocate")?;
        inject::site("object: id")?;
        let taken = Taken::of(self.quota.as_ref(), Resource::Objects)?;
        let id = self.table.lock().take(taken)?;
        Ok(Reserved { objects: self, id, armed: true })
    }

    /// The object `id`, kept from being destroyed while the answer lives. `ENOENT` when there is
    /// none or it is of another kind.
    pub fn get<T: Object>(&self, id: u32) -> Result<Use<T>, Errno> {
        let any = self.get_any(id)?;
        let erased: Arc<dyn Any + Send + Sync> = any.object.clone();
        let object = erased.downcast::<T>().map_err(|_| Errno::ENOENT)?;
        any.users.fetch_add(1, Ordering::Relaxed);
        Ok(Use { object, users: any.users.clone() })
    }

    /// The object `id` of any kind. `ENOENT` when there is none.
    pub fn get_any(&self, id: u32) -> Result<Use<dyn Object>, Errno> {
        let table = self.table.lock();
        let entry = table.entry(id).ok_or(Errno::ENOENT)?;
        let object = entry.object.clone().ok_or(Errno::ENOENT)?;
        entry.users.fetch_add(1, Ordering::Acquire);
        Ok(Use { object, users: entry.users.clone() })
    }

    /// Takes the object `id` out, if nobody uses it, and undoes it. `ENOENT`, `EBUSY`.
    pub fn destroy(&self, id: u32) -> Result<(), Errno> {
        let object = {
            let mut table = self.table.lock();
            let entry = table.entry(id).ok_or(Errno::ENOENT)?;
            let object = entry.object.clone().ok_or(Errno::ENOENT)?;
            if entry.users.load(Ordering::Acquire) != 0 || !object.destroyable() {
                return Err(Errno::EBUSY);
            }
            table.remove(id);
            object
        };
        object.destroy();
        Ok(())
    }

    /// Takes `id` out although it may not be destroyed by its user: for its owner in the engine.
    /// Answers whether it was there and unused.
    pub fn remove(&self, id: u32) -> bool {
        let mut table = self.table.lock();
        let unused = table.entry(id).is_some_and(|e| e.users.load(Ordering::Acquire) == 0);
        let object = if unused { table.remove(id).and_then(|e| e.object) } else { None };
        drop(table);
        if let Some(object) = object {
            object.destroy();
        }
        unused
    }

    /// Ends the object `id`, but keeps the id taken, naming nothing, until the table is cleared.
    pub(crate) fn bury(&self, id: u32) {
        let object = self.table.lock().entry_mut(id).and_then(|entry| entry.object.take());
        if let Some(object) = object {
            object.destroy();
        }
    }

    /// Destroys all, users before what they use. Answers the ids that would not go: none, unless
    /// somebody outside the table still holds a [`Use`].
    pub fn clear(&self) -> Vec<u32> {
        loop {
            let gone: Vec<Entry> = {
                let mut table = self.table.lock();
                let free: Vec<u32> = table
                    .ids()
                    .rev()
                    .filter(|(_, e)| e.users.load(Ordering::Acquire) == 0)
                    .map(|(id, _)| id)
                    .collect();
                free.iter().filter_map(|&id| table.remove(id)).collect()
            };
            if gone.is_empty() {
                return self.table.lock().ids().map(|(id, _)| id).collect();
            }
            for entry in gone {
                if let Some(object) = entry.object {
                    object.destroy();
                }
            }
        }
    }

    /// The object `id`, for who only looks and keeps it from nothing.
    pub(crate) fn look<T: Object>(&self, id: u32) -> Option<Arc<T>> {
        let object = self.table.lock().entry(id)?.object.clone()?;
        let erased: Arc<dyn Any + Send + Sync> = object;
        erased.downcast().ok()
    }

    /// All objects with their ids and how many use them, for who only looks.
    pub(crate) fn all(&self) -> Vec<(u32, u32, Arc<dyn Object>)> {
        let table = self.table.lock();
        let shown = |(id, entry): (u32, &Entry)| {
            Some((id, entry.users.load(Ordering::Relaxed), entry.object.clone()?))
        };
        table.ids().filter_map(shown).collect()
    }

    /// Runs `each` on the objects of one type.
    pub fn each<T: Object>(&self, mut each: impl FnMut(u32, &Arc<T>)) {
        let found: Vec<(u32, Arc<T>)> = {
            let table = self.table.lock();
            table
                .ids()
                .filter_map(|(id, entry)| {
                    let erased: Arc<dyn Any + Send + Sync> = entry.object.clone()?;
                    Some((id, erased.downcast().ok()?))
                })
                .collect()
        };
        for (id, object) in &found {
            each(*id, object);
        }
    }

    /// How many ids are taken.
    pub fn len(&self) -> usize {
        self.table.lock().taken
    }

    /// Whether no id is taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `IOMMU_DESTROY`.
pub(crate) fn destroy(call: &Call<'_>, command: &mut iommu_destroy) -> Result<(), Errno> {
    call.context.objects().destroy(command.id)
}
