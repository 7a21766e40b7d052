//! What libFuzzer found worth keeping holds still, with any compiler and no fuzzer.

use std::path::Path;

/// Runs each file of `corpus/NAME`, which must be there.
fn replay(name: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files = 0;
    for entry in std::fs::read_dir(&directory).expect("the corpus is part of the repository") {
        let path = entry.unwrap().path();
        // Shown where it fails.
        println!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        files += 1;
    }
    assert!(files > 0, "{} is empty", directory.display());
}

#[test]
fn hostile_callers() {
    replay("dispatch", softiommu_fuzz::dispatch::run);
}

#[test]
fn hostile_messages() {
    replay("wire", softiommu_fuzz::wire::run);
}
