//! `softiommu show` beside `softiommu serve`.

mod common;

use std::process::Command;
use std::time::Instant;

use common::serve::{Daemon, PATIENCE, ioas_alloc};

#[test]
fn who_asks_sees_the_contexts_of_all_callers() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("control");
    let path = socket.to_str().unwrap();
    let Some(daemon) = Daemon::start(&["--control", path]) else { return };
    let file = daemon.open();
    assert_eq!(ioas_alloc(&file), Ok(1));
    let mut show = Command::new(env!("CARGO_BIN_EXE_softiommu"));
    let output = show.args(["show", "--json", "--control", path]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let objects = seen["contexts"][0]["objects"].as_array().unwrap();
    assert!(objects.iter().any(|object| object["kind"] == "ioas" && object["id"] == 1), "{seen}");
    drop(file);
    drop(daemon);
    // The daemon may not remove files any more: its janitor does, when it is gone.
    let begun = Instant::now();
    while socket.exists() {
        assert!(begun.elapsed() < PATIENCE, "the socket stays");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
