//! iommufd in userspace: contexts, objects, IOAS, pins, HWPTs, devices and simulated IOMMUs.
//!
//! A front end (see [`caller`]) gives each open of `/dev/iommu` a [`Context`] and hands it the
//! calls of its callers. The engine decides what the kernel would answer. It knows no FUSE, no
//! seccomp and no descriptor number.

pub(crate) mod access;
pub mod account;
pub mod call;
pub mod caller;
pub mod context;
pub(crate) mod device;
pub mod dma;
pub mod dmabuf;
pub mod domain;
pub mod driver;
pub(crate) mod fault_queue;
pub mod file;
pub(crate) mod group;
pub(crate) mod hwpt;
pub mod inject;
pub mod inspect;
pub mod ioas;
pub mod iopt;
pub mod kapi;
pub mod kept;
pub mod memory;
pub mod mock;
pub mod object;
pub(crate) mod option;
pub mod pages;
pub mod quota;
pub(crate) mod selftest;
mod sync;
pub mod testing;
pub(crate) mod user_data;
pub(crate) mod vfio;
pub(crate) mod viommu;
pub(crate) mod watch;

pub use call::Call;
pub use context::{Context, Engine, Node};
pub use nix::errno::Errno;
pub use quota::{Most, Quota};
pub use viommu::mmap::{Mapping, MmapRequest};
