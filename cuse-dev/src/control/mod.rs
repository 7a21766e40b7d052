//! The control socket: how a person, or a tool, asks a running softiommu what it does.
//!
//! Whoever debugs a VMM's DMA stands outside of it: what is mapped, who mapped it, how is it held,
//! why does this access fault? Each `softiommu run` therefore listens on a Unix socket of its own
//! ([`place`] says where). `softiommu show`, `walk`, `pfn` and `dma` connect to it, and so can any
//! program:
//!
//! - One connection, one question: a line of JSON ([`Request`]), answered by a line of JSON
//!   ([`Reply`]), after which the daemon closes.
//! - The socket has mode 0600, and the peer's user must be the daemon's or root, which the kernel
//!   tells (`SO_PEERCRED`).
//! - What is asked changes nothing, but for DMA, which is made as a device would make it. No answer
//!   waits for a command of the program for longer than [`engine::inspect::PATIENCE`].
//!
//! [`server`] is the daemon's side, [`client`] the other; [`text`] is for people. [`warnings`]
//! remembers what the daemon warned of.

pub mod client;
pub mod place;
pub mod protocol;
pub mod server;
pub mod text;
pub mod warnings;

pub use protocol::{Reply, Request};
pub use server::Server;
pub use warnings::Warnings;
