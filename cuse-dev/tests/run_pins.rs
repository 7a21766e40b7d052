//! Private memory under `softiommu run`: pinned by the kernel, whoever calls and whatever happens to
//! them meanwhile, and nothing is left behind.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use common::{Place, can_run, finish, softiommu_run, text};

/// Says that pages are not pinned, with the reason.
const FALLBACK: &str = "pages are not pinned";

fn pins(place: &Place) -> std::path::PathBuf {
    place.directory.path().join("pins")
}

fn place() -> Option<Place> {
    if !can_run() {
        return None;
    }
    let place = Place::with_program("pins", &[])?;
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.directory.path(), readable).unwrap();
    Some(place)
}

fn run(place: &Place, before: &[&str], trick: &str) -> Output {
    let mut command = softiommu_run(&["--strict"]);
    command.env("RUST_LOG", "warn").args(before).arg(pins(place)).arg(trick);
    finish(command)
}

/// Whether rings can be made here; says so if not.
fn io_uring() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let usable = disabled.is_ok_and(|text| text.trim() == "0");
    if !usable {
        eprintln!("SKIPPED: io_uring is disabled");
    }
    usable
}

fn pinned(trick: &str) -> String {
    let Some(place) = place() else { return String::new() };
    let output = run(&place, &[], trick);
    assert!(output.status.success(), "{trick}: {}", text(&output));
    assert!(!io_uring() || !text(&output).contains(FALLBACK), "{trick}: {}", text(&output));
    text(&output)
}

/// Programs of one thread that unmap in the IOAS first, and map the same addresses again. Of several
/// threads the old event may be heard after the new map.
fn pinned_without_warning(trick: &str) {
    let said = pinned(trick);
    assert!(!said.contains("mapped in an IOAS was"), "{trick}: {said}");
}

#[test]
fn the_program_does_not_notice() {
    pinned_without_warning("held");
}

#[test]
fn a_page_counts_once_in_vmpin() {
    pinned_without_warning("counted");
}

#[test]
fn a_limit_may_be_raised_after_the_first_map() {
    pinned("raised");
}

#[test]
fn many_threads_call_at_once() {
    pinned("threads");
}

#[test]
fn signals_come_all_the_time() {
    pinned("interrupted");
}

#[test]
fn it_is_stopped_and_goes_on() {
    pinned("stopped");
}

#[test]
fn a_child_of_vfork_shares_the_helper() {
    pinned("vforked");
}

#[test]
fn another_program_has_another_mm() {
    pinned("executed");
}

#[test]
fn they_die_at_any_moment() {
    let Some(place) = place() else { return };
    // `run` ends when the last helper has ended, and `--strict` tells what it leaves.
    let output = run(&place, &[], "killed");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn memory_that_never_answers_holds_up_only_its_own_process() {
    let Some(place) = place() else { return };
    let output = run(&place, &[], "stuck");
    assert!(output.status.success(), "{}", text(&output));
    if text(&output).contains("no userfaultfd") {
        eprintln!("SKIPPED: no userfaultfd here");
    }
}

#[test]
fn a_traced_program_has_windows_and_hears_why() {
    let Some(place) = place() else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("SKIPPED: no strace");
        return;
    }
    let output = run(&place, &["strace", "-f", "-o", "/dev/null"], "held");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("traced by another program"), "{}", text(&output));
}

/// An ordinary user is limited at the page where the kernel's iommufd limits, although the kernel
/// counts the same pins once more, in its own way.
#[test]
fn a_user_is_limited_at_the_very_page() {
    let Some(place) = place() else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: another user needs root");
        return;
    }
    let program = place.directory.path().join("softiommu");
    common::copy_program(env!("CARGO_BIN_EXE_softiommu"), &program);
    for trick in ["limited", "held", "counted", "interrupted", "threads"] {
        let mut command = Command::new(&program);
        command.args(["run", "--strict", "--"]).arg(pins(&place)).arg(trick);
        command.uid(65_534).gid(65_534).env("RUST_LOG", "warn");
        let output = finish(command);
        assert!(output.status.success(), "{trick}: {}", text(&output));
        let fallback = text(&output).contains(FALLBACK);
        // At its limit the kernel's own count may have no room for the last pages.
        assert!(trick == "limited" || !io_uring() || !fallback, "{trick}: {}", text(&output));
    }
}
