//! Hostile messages to a FUSE or CUSE server. See `softiommu_fuzz::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| softiommu_fuzz::wire::run(bytes));
