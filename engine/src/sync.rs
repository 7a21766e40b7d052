//! What locks and lifetimes are made of.
//!
//! The files that take it from here are built a second time by `tests/models`, where every one of
//! these is loom's, which tries all orders of what threads do and all that memory ordering allows.

pub(crate) use std::cell::UnsafeCell;
pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
pub(crate) use std::thread::yield_now;

pub(crate) use parking_lot::Mutex;
