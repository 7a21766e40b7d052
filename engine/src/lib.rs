//! iommufd in userspace: contexts, objects, IOAS, pins, HWPTs, devices and simulated IOMMUs.
//!
//! A front end (see [`caller`]) gives each open of `/dev/iommu` a [`Context`] and hands it the
//! calls of its callers. The engine decides what the kernel would answer. It knows no FUSE, no
//! seccomp and no descriptor number.

pub mod caller;
pub mod context;
pub mod domain;
pub mod file;
pub mod inject;
pub mod memory;
pub mod object;

pub use context::{Context, Engine, Node};
pub use nix::errno::Errno;
