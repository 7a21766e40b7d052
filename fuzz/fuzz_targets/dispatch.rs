//! Hostile callers of the engine. See `softiommu_fuzz::dispatch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| softiommu_fuzz::dispatch::run(bytes));
