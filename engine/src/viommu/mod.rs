//! Virtual IOMMUs, and what belongs to one: virtual devices, event queues, hardware queues and
//! memory that the user may map.

pub(crate) mod handle;
pub(crate) mod mmap;
pub(crate) mod veventq;
