//! End-to-end and conformance tests of softiommu.
//!
//! [`probe`] plays small programs, written as text over the uAPI's own names, against whatever
//! `/dev/iommu` is there, and says what each call answered. What the real kernel answered is kept
//! in `golden/`; `tests/conformance.rs` plays the same programs under `softiommu run`.

pub mod conformance;
pub mod probe;
