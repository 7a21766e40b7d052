//! What hostile bytes are driven through, and what must hold whatever they are.
//!
//! Each module takes bytes and panics where a promise is broken: no panic of the code below, no
//! leak, every request answered once. `fuzz_targets/` hands it libFuzzer's bytes (`ci/fuzz`),
//! `tests/corpus.rs` those that libFuzzer found worth keeping, with any compiler.

pub mod dispatch;
pub mod wire;
