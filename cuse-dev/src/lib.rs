//! Front ends for `/dev/iommu` and the memory of their callers.

pub(crate) mod assist;
pub mod caller;
pub mod control;
pub mod doctor;
pub mod event_files;
pub mod inject;
pub mod memory;
pub mod run;
pub mod serve;
pub(crate) mod trace;
pub mod wire;
