//! What becomes of memory that a device uses: rows of `programs/semantics.c`, under `softiommu run`.
//!
//! Each row looks at the bytes through an access of iommufd and through DMA of the mock device, which
//! it asks for at the control socket. The same program runs on the real kernel
//! (`ci/vm -- PROGRAM ROW`), where every row was seen to hold.

mod common;

use std::path::PathBuf;

use common::{Place, can_run, finish, softiommu_run, text};

/// Exit status of a row that this machine cannot play.
const SKIPPED: i32 = 77;

/// Runs rows under `--strict`, and fails with all that went wrong.
fn rows(rows: &[&str]) {
    let Some((place, program)) = program() else { return };
    if !can_run() {
        return;
    }
    let mut wrong = String::new();
    for row in rows {
        let socket = place.directory.path().join(row.replace(':', "-"));
        let mut command = softiommu_run(&["--strict", "--control", socket.to_str().unwrap()]);
        command.arg(&program).arg(row).env("SEMANTICS_CONTROL", &socket);
        let output = finish(command);
        match output.status.code() {
            Some(0) => {}
            Some(SKIPPED) => eprintln!("SKIPPED: {row}: the machine lacks what it needs"),
            _ => wrong += &format!("{row}: {}\n", text(&output)),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn program() -> Option<(Place, PathBuf)> {
    let place = Place::with_program("semantics", &[])?;
    let program = place.directory.path().join("semantics");
    Some((place, program))
}

#[test]
fn memory_is_live_in_both_directions() {
    rows(&["live:anon", "live:thp", "live:memfd", "live:shared", "live:hugetlb"]);
    rows(&["untouched:anon", "untouched:memfd", "private-file"]);
}

#[test]
fn pages_outlive_munmap_and_what_is_mapped_over_them() {
    rows(&["munmap:anon", "munmap:thp", "munmap:memfd", "munmap:shared", "munmap:hugetlb"]);
    rows(&["fixed:anon", "fixed:thp", "fixed:memfd", "fixed:shared", "fixed:hugetlb"]);
}

#[test]
fn pages_follow_mremap() {
    rows(&["mremap:anon", "mremap:memfd", "mremap:shared"]);
}

#[test]
fn advice_takes_no_page_from_a_device() {
    rows(&["dontneed:anon", "dontneed:thp", "dontneed:memfd", "free:anon"]);
    rows(&["pageout:anon", "pageout:thp", "pageout:memfd"]);
}

#[test]
#[ignore = "the bytes of shared memory are reached through a mapping, which follows the file"]
fn holes_and_truncation_take_no_page_from_a_device() {
    rows(&["remove:memfd", "remove:shared", "punch:memfd", "truncate:memfd"]);
}

#[test]
fn a_fork_leaves_the_pages_to_the_parent() {
    rows(&["fork:anon", "fork:thp", "fork:memfd", "fork:shared"]);
}

#[test]
fn maps_break_copy_on_write_first() {
    rows(&["cow:anon", "cow:thp", "cow-read:anon"]);
}

#[test]
fn protection_is_the_processs_and_not_the_devices() {
    rows(&["mprotect:anon", "mprotect:thp", "mprotect:memfd"]);
}

#[test]
fn huge_pages_may_come_and_go() {
    rows(&["collapse", "split"]);
}

#[test]
fn pages_outlive_their_process() {
    rows(&["exit:anon", "exit:thp", "exit:memfd", "exit:shared"]);
    rows(&["sigkill:anon", "sigkill:memfd"]);
    rows(&["exec:anon", "exec:thp", "exec:memfd", "exec:hugetlb"]);
}

#[test]
fn rights_and_errors_are_the_kernels() {
    rows(&["read-only", "read-only-file", "io-memory"]);
    rows(&["half-way:anon", "half-way:memfd", "half-way:shared", "late-without-pages"]);
}

#[test]
fn a_page_is_pinned_once() {
    rows(&["once:anon", "once:memfd"]);
    rows(&["late-domain:anon", "late-domain:memfd"]);
    rows(&["late-after-access:anon", "late-after-access:memfd"]);
}

#[test]
fn accounting_is_exact() {
    rows(&["limit-user:anon", "limit-user:memfd", "limit-process:anon", "limit-process:memfd"]);
    rows(&["no-limit", "account-fork"]);
}
