//! Locks and lifetimes under loom: every order in which threads can do what they do, and all that
//! memory ordering allows.
//!
//! The engine's own files are built here a second time, with [`sync`] in place of the engine's.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each model uses its part")]

#[path = "../../src/dma/gate.rs"]
mod gate;
#[path = "../../src/object.rs"]
mod object;
#[path = "../../src/quota.rs"]
mod quota;
mod sync;

use std::sync::Arc;

use engine::inspect::{Detail, Scope};
pub(crate) use engine::{Errno, inject, inspect};
use loom::thread;

use gate::Gate;
use object::{Kind, Object, Objects};
use sync::{AtomicU32, Ordering};

/// What `IOMMU_DESTROY`'s entry wants of a call.
mod call {
    pub struct Call<'a> {
        pub context: &'a Context,
    }

    pub struct Context(crate::object::Objects);

    impl Context {
        pub fn objects(&self) -> &crate::object::Objects {
            &self.0
        }
    }
}

/// An object that counts how often it was undone.
#[derive(Default)]
struct Thing {
    undone: Arc<AtomicU32>,
}

impl Object for Thing {
    fn kind(&self) -> Kind {
        Kind::Ioas
    }

    fn report(&self, _: Scope) -> Detail {
        Detail::SelftestDevice { device: None }
    }

    fn destroy(&self) {
        self.undone.fetch_add(1, Ordering::Relaxed);
    }
}

/// A table with one object, which has the id 1, and the count of its ends.
fn one() -> (Arc<Objects>, Arc<AtomicU32>) {
    let (objects, undone) = (Arc::new(Objects::default()), Arc::<AtomicU32>::default());
    objects.reserve().unwrap().commit(Arc::new(Thing { undone: undone.clone() }));
    (objects, undone)
}

#[test]
fn a_gate_lets_one_in_at_a_time() {
    let mut model = loom::model::Builder::new();
    // Who spins could be preferred for ever.
    model.preemption_bound = Some(3);
    model.check(|| {
        let gate = Arc::new(Gate::<u64>::default());
        let other = gate.clone();
        let there = thread::spawn(move || *other.lock() += 1);
        *gate.lock() += 1;
        there.join().unwrap();
        assert_eq!(*gate.lock(), 2);
    });
}

#[test]
fn what_is_used_is_not_undone() {
    loom::model(|| {
        let (objects, undone) = one();
        let (there, seen) = (objects.clone(), undone.clone());
        let user = thread::spawn(move || {
            if let Ok(thing) = there.get::<Thing>(1) {
                assert_eq!(seen.load(Ordering::Relaxed), 0, "undone while it was used");
                drop(thing);
            }
        });
        let first = objects.destroy(1);
        user.join().unwrap();
        match first {
            Ok(()) => assert_eq!(objects.destroy(1), Err(Errno::ENOENT)),
            Err(error) => {
                assert_eq!(error, Errno::EBUSY);
                assert_eq!(objects.destroy(1), Ok(()));
            }
        }
        assert_eq!(undone.load(Ordering::Relaxed), 1);
        assert!(objects.is_empty());
    });
}

#[test]
fn two_that_destroy_undo_once() {
    loom::model(|| {
        let (objects, undone) = one();
        let there = objects.clone();
        let other = thread::spawn(move || there.destroy(1).is_ok());
        let mine = objects.destroy(1).is_ok();
        assert!(mine != other.join().unwrap(), "destroyed by both or by none");
        assert_eq!(undone.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn an_id_names_one_object() {
    loom::model(|| {
        let objects = Arc::new(Objects::default());
        let there = objects.clone();
        let make = |objects: &Objects| {
            let thing = Arc::new(Thing::default());
            let reserved = objects.reserve().unwrap();
            let id = reserved.id();
            reserved.commit(thing.clone());
            let found = objects.get::<Thing>(id).unwrap();
            assert!(Arc::ptr_eq(found.object(), &thing), "another's object");
            drop(found);
            objects.destroy(id).unwrap();
        };
        let other = thread::spawn(move || make(&there));
        make(&objects);
        other.join().unwrap();
        assert!(objects.is_empty());
        assert_eq!(objects.reserve().unwrap().id(), 1, "the lowest free id");
    });
}

#[test]
fn what_is_made_in_use_is_its_makers() {
    loom::model(|| {
        let objects = Arc::new(Objects::default());
        let undone = Arc::<AtomicU32>::default();
        let (there, count) = (objects.clone(), undone.clone());
        let maker = thread::spawn(move || {
            let reserved = there.reserve().unwrap();
            let thing = reserved.commit_used(Arc::new(Thing { undone: count.clone() }));
            assert_eq!(count.load(Ordering::Relaxed), 0, "undone before it was let go");
            drop(thing);
        });
        let early = objects.destroy(1);
        maker.join().unwrap();
        let late = objects.destroy(1);
        assert!(early.is_ok() != late.is_ok(), "{early:?}, then {late:?}");
        assert_eq!(undone.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn clearing_takes_all_that_nobody_uses() {
    loom::model(|| {
        let (objects, undone) = one();
        let used = objects.get::<Thing>(1).unwrap();
        let user = thread::spawn(move || drop(used));
        let left = objects.clear();
        user.join().unwrap();
        assert!(left.is_empty() || left == [1]);
        assert!(objects.clear().is_empty());
        assert_eq!(undone.load(Ordering::Relaxed), 1);
    });
}
