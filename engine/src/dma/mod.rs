//! DMA as a device sees it: loads, stores and atomics at an IOVA.
//!
//! The uAPI says which memory a device *may* reach; this module is what a device model calls to
//! reach it. A [`Port`] is one requester: a device, or one PASID of it. The port follows what the
//! device is attached to. An access looks into the port's IOTLB; on a miss the hardware's walk runs
//! over the real IOPTEs (both stages when the HWPT is nested), checks the rights, sets accessed and
//! dirty bits, and the frame it ends at is turned back into pinned bytes ([`Frames`]).
//!
//! # Locks
//! The port's lock comes after the IOAS lock (see [`crate::context`]): an unmap holds the IOAS lock
//! when it invalidates ports. So a port never looks a frame up with its own lock held; it lets go,
//! takes the IOAS's for the fill and then its own again. A transfer holds the port's lock while it
//! copies, at most [`port::SLICE`] bytes at once; an invalidation therefore waits until no copy
//! uses what is about to be unpinned, as the hardware's invalidation completes only then.
//!
//! A device model calls a port without holding any lock of the engine.

pub mod atomic;
pub mod fault;
mod gate;
mod iotlb;
pub mod port;
pub mod walk;

#[cfg(test)]
mod tests;

pub use fault::{Fault, Reason, Recovery};
pub use port::{Extent, Frames, LookUp, PageRequests, Port, Target};
pub use walk::{FirstStage, GuestTable, Leaf, Ports, Walk, WalkFault};
