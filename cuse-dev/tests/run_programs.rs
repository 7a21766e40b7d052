//! Programs of all kinds under `softiommu run`: what they do works, and leaves nothing behind.

mod common;

use std::process::Command;

use common::{Place, can_run, finish, softiommu_run, text};

/// Runs each of the client's tricks under `--strict`.
fn all_succeed(flags: &[&str], tricks: &[&str]) {
    let Some(place) = Place::with_client(flags) else { return };
    if !can_run() {
        return;
    }
    for trick in tricks {
        let mut command = softiommu_run(&["--strict"]);
        command.arg(place.client()).arg(trick);
        let output = finish(command);
        assert!(output.status.success(), "{trick}: {}", text(&output));
    }
}

#[test]
fn threads_forks_execs_and_passed_descriptors() {
    all_succeed(&[], &["pair", "threads", "forks", "execs", "passes"]);
}

#[test]
fn a_static_program() {
    all_succeed(&["-static"], &["pair", "threads", "forks"]);
}

#[test]
fn a_thousand_contexts() {
    all_succeed(&[], &["contexts"]);
}

#[test]
fn hostile_arguments_get_the_kernels_errno() {
    all_succeed(&[], &["hostile"]);
}

#[test]
fn signals_neither_repeat_nor_lose_calls() {
    all_succeed(&[], &["interrupted"]);
}

#[test]
fn faults_are_injected_one_by_one() {
    all_succeed(&[], &["faults"]);
}

#[test]
fn files_of_the_engine_are_descriptors() {
    if nix::unistd::geteuid().is_root() {
        all_succeed(&[], &["access", "fault-queue"]);
    }
}

#[test]
fn every_way_to_the_node_makes_a_context() {
    all_succeed(&[], &["paths"]);
}

#[test]
fn calls_of_32_bit_code_are_answered() {
    all_succeed(&[], &["compat"]);
}

#[test]
fn a_supervisor_in_a_supervisor_says_so() {
    if !can_run() {
        return;
    }
    let mut command = softiommu_run(&[]);
    command.arg(env!("CARGO_BIN_EXE_softiommu")).args(["run", "--", "true"]);
    let output = finish(command);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(text(&output).contains("already under"), "{}", text(&output));
}

#[test]
fn gdb_outside() {
    let gdb = ["gdb", "-q", "-nx", "-batch", "-return-child-result", "-ex", "run", "--args"];
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() || !works(&gdb) {
        return;
    }
    let mut outside = Command::new(gdb[0]);
    outside.args(&gdb[1..]).arg(env!("CARGO_BIN_EXE_softiommu")).args(["run", "--strict", "--"]);
    outside.arg(place.client()).arg("threads").stdin(std::process::Stdio::null());
    outside.env("DEBUGINFOD_URLS", "");
    let output = finish(outside);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn several_at_once() {
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() {
        return;
    }
    let place = &place;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let mut command = softiommu_run(&["--strict"]);
                command.arg(place.client()).arg("threads");
                let output = finish(command);
                assert!(output.status.success(), "{}", text(&output));
            });
        }
    });
}

/// Whether the tracer works on this machine at all.
fn works(tracer: &[&str]) -> bool {
    let output = Command::new(tracer[0]).args(&tracer[1..]).arg("true").output();
    let works = output.is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("SKIPPED: {} does not work here", tracer[0]);
    }
    works
}

#[test]
fn strace_inside_and_outside() {
    let strace = ["strace", "-f", "-o", "/dev/null"];
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() || !works(&strace) {
        return;
    }
    let mut inside = softiommu_run(&["--strict"]);
    inside.args(strace).arg(place.client()).arg("forks");
    let output = finish(inside);
    assert!(output.status.success(), "{}", text(&output));

    let mut outside = Command::new(strace[0]);
    outside.args(&strace[1..]).arg(env!("CARGO_BIN_EXE_softiommu")).args(["run", "--strict", "--"]);
    outside.arg(place.client()).arg("forks").stdin(std::process::Stdio::null());
    let output = finish(outside);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn gdb_inside() {
    let gdb = ["gdb", "-q", "-nx", "-batch", "-return-child-result", "-ex", "run", "--args"];
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() || !works(&gdb) {
        return;
    }
    let mut inside = softiommu_run(&[]);
    inside.args(gdb).arg(place.client()).arg("threads");
    inside.env("DEBUGINFOD_URLS", "");
    let output = finish(inside);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn each_call_is_logged_decoded() {
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() {
        return;
    }
    let log = place.directory.path().join("log");
    let mut command = softiommu_run(&["--log", log.to_str().unwrap()]);
    command.arg(place.client());
    let output = finish(command);
    assert!(output.status.success(), "{}", text(&output));
    let log = std::fs::read_to_string(log).unwrap();
    for part in ["IOMMU_IOAS_ALLOC {size=12, flags=0, out_ioas_id=1} = 0", "IOMMU_DESTROY"] {
        assert!(log.contains(part), "{part} is not in:\n{log}");
    }
}
