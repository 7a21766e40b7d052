//! Whether two `/dev/iommu`s answer alike: random programs over the whole uAPI, played on both.
//!
//! A program is what its seed makes of it ([`generator`]): a seed and a number of calls are all that
//! two machines exchange. What a call is chosen to be depends on what the calls before it answered
//! (ids, IOVAs, descriptors), so that programs get deep; two sides that answered alike so far take
//! the same decisions. [`machine`] plays a call with real system calls, [`rules`] takes out of its
//! reply what cannot be compared, [`digest`] condenses it.
//!
//! ```text
//!   compare ──"digests 1..65"──> serve ──fork──> worker: generator ⇄ machine ──> /dev/iommu
//!      │  <──one digest each───     (a worker's crash or hang ends one program, not the server)
//!      └─ on a difference: both transcripts, shrink, print decoded, and as C
//! ```
//!
//! Nothing here knows who answers: any two kernels, a kernel and a recorded baseline
//! ([`baseline`]), a kernel and softiommu.

pub mod arena;
pub mod baseline;
pub mod compare;
pub mod coverage;
pub mod digest;
pub mod generator;
pub mod machine;
mod once;
pub mod peer;
mod process;
pub mod reply;
pub mod reproducer;
mod rng;
pub mod rules;
pub mod serve;
pub mod show;
pub mod shrink;
pub mod step;
mod threads;
mod worker;

pub use process::drop_capability;
pub use reply::Reply;
pub use step::{Call, Step};
