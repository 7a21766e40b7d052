//! Fakes of what stands around the engine: a caller with real bytes, and a domain that notices
//! what must not happen. For tests and benches, here and in other crates.

mod caller;
mod domain;
mod memory;

pub use caller::{TestCaller, TestProcess};
pub use domain::TestDomain;
pub use memory::{TestFile, TestMemory};
