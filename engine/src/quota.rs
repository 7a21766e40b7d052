//! What one user of a daemon may have: so that one who makes things without end costs others
//! nothing.
//!
//! The kernel charges such memory to the user's control group. A daemon cannot: what it holds for
//! its callers is its own. So a front end that serves several users gives the contexts of one user
//! a common [`Quota`] ([`crate::Engine::open_within`]), and each thing that is counted holds a
//! [`Taken`] of it as long as it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Errno;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Ids in the object tables. Past the limit: `ENOMEM`, as where the kernel's memory is short.
    Objects,
    /// Fault and event queues, each of which is a file. Past the limit: `EMFILE`.
    Queues,
    /// Faults and events that wait in queues, to be read or answered. Past the limit: `ENOMEM`, or
    /// the event is lost.
    Events,
    /// Areas of IOVAs that are mapped. Past the limit: `ENOMEM`.
    Areas,
    /// Pinned pages, in every mode of accounting. Past the limit: `ENOMEM`.
    Pages,
}

/// How many of each one user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Of [`Resource::Objects`].
    pub objects: u64,
    /// Of [`Resource::Queues`].
    pub queues: u64,
    /// Of [`Resource::Events`].
    pub events: u64,
    /// Of [`Resource::Areas`].
    pub areas: u64,
    /// Of [`Resource::Pages`].
    pub pages: u64,
}

/// What one user has, and may have. Shared by all contexts of the user.
#[derive(Debug)]
pub struct Quota {
    most: Most,
    taken: [AtomicU64; 5],
}

impl Quota {
    /// Nothing is taken of it.
    pub fn new(most: Most) -> Arc<Self> {
        Arc::new(Self { most, taken: Default::default() })
    }

    /// How many of `what` are taken.
    pub fn taken(&self, what: Resource) -> u64 {
        self.taken[what as usize].load(Ordering::Relaxed)
    }

    fn most(&self, what: Resource) -> (u64, Errno) {
        match what {
            Resource::Objects => (self.most.objects, Errno::ENOMEM),
            Resource::Queues => (self.most.queues, Errno::EMFILE),
            Resource::Events => (self.most.events, Errno::ENOMEM),
            Resource::Areas => (self.most.areas, Errno::ENOMEM),
            Resource::Pages => (self.most.pages, Errno::ENOMEM),
        }
    }

    /// Counts `count` more of `what`, or answers the errno of [`Resource`].
    pub(crate) fn add(&self, what: Resource, count: u64) -> Result<(), Errno> {
        let (most, error) = self.most(what);
        let taken = &self.taken[what as usize];
        let more = |now: u64| now.checked_add(count).filter(|&sum| sum <= most);
        match taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(now) => {
                tracing::debug!(?what, now, count, most, "a user's limit");
                Err(error)
            }
        }
    }

    /// Takes an [`Quota::add`] back.
    pub(crate) fn sub(&self, what: Resource, count: u64) {
        self.taken[what as usize].fetch_sub(count, Ordering::Relaxed);
    }
}

/// One of something, counted until it is dropped. Where there is no quota it counts nothing.
#[derive(Debug, Default)]
pub(crate) struct Taken(Option<(Arc<Quota>, Resource)>);

impl Taken {
    /// Takes one of `what`, if there is a quota to keep to.
    pub(crate) fn of(quota: Option<&Arc<Quota>>, what: Resource) -> Result<Self, Errno> {
        let Some(quota) = quota else { return Ok(Self(None)) };
        quota.add(what, 1)?;
        Ok(Self(Some((quota.clone(), what))))
    }

    /// Another one of the same.
    pub(crate) fn another(&self) -> Result<Self, Errno> {
        match &self.0 {
            Some((quota, what)) => Self::of(Some(quota), *what),
            None => Ok(Self(None)),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some((quota, what)) = &self.0 {
            quota.sub(*what, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_its_own_limit_and_errno() {
        let quota = Quota::new(Most { objects: 1, queues: 0, events: 1, areas: 1, pages: 8 });
        let one = Taken::of(Some(&quota), Resource::Objects).unwrap();
        assert_eq!(one.another().unwrap_err(), Errno::ENOMEM);
        assert_eq!(Taken::of(Some(&quota), Resource::Queues).unwrap_err(), Errno::EMFILE);
        drop(one);
        assert!(Taken::of(Some(&quota), Resource::Objects).is_ok());
        assert_eq!(quota.taken(Resource::Objects), 0);
        quota.add(Resource::Pages, 8).unwrap();
        assert_eq!(quota.add(Resource::Pages, 1), Err(Errno::ENOMEM));
        assert_eq!(quota.add(Resource::Pages, u64::MAX), Err(Errno::ENOMEM));
        quota.sub(Resource::Pages, 8);
        assert_eq!(quota.taken(Resource::Pages), 0);
    }

    #[test]
    fn without_a_quota_nothing_is_counted() {
        let free = Taken::of(None, Resource::Queues).unwrap();
        assert!(free.another().is_ok());
    }
}
