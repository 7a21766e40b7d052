//! What becomes of memory that a device uses: rows of `programs/semantics.c`, under `softiommu run`.
//!
//! Each row looks at the bytes through an access of iommufd and through DMA of the mock device, which
//! it asks for at the control socket. The same program runs on the real kernel
//! (`ci/vm -- PROGRAM ROW`), where every row was seen to hold. Root's tests play them as an ordinary user,
//! too.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Place, can_run, finish, softiommu_run, text};

/// Exit status of a row that this machine cannot play.
const SKIPPED: i32 = 77;

/// A user who has no capability: another one at each call, as the kernel counts what a user has pinned
/// and takes its time to count that back.
fn any_user() -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let calls = CALLS.fetch_add(1, Ordering::Relaxed);
    (20_000 + (std::process::id() * 128 + calls) % 40_000).to_string()
}

/// Rows that an ordinary user cannot play: they need rights that it lacks on the real kernel, too
/// (`/dev/mem`, accounting per process, `CAP_IPC_LOCK`).
const NEED_RIGHTS: [&str; 4] =
    ["io-memory", "limit-process:anon", "limit-process:memfd", "no-limit"];

/// Runs rows under `--strict`, and fails with all that went wrong: as the user that the tests have and,
/// if that is root, as an ordinary one.
fn rows(rows: &[&str]) {
    let Some((place, program)) = program() else { return };
    if !can_run() {
        return;
    }
    let mut wrong = String::new();
    for row in rows {
        let mut command = place.command(row, None);
        command.arg(&program).arg(row);
        wrong += &outcome(row, command);
    }
    if nix::unistd::geteuid().is_root() {
        let softiommu = place.for_all_users();
        for row in rows.iter().filter(|row| !NEED_RIGHTS.contains(row)) {
            let mut command = place.command(row, Some(&softiommu));
            command.arg(&program).arg(row);
            wrong += &outcome(&format!("{row} as a user"), command);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What went wrong in a row, if anything.
fn outcome(row: &str, command: Command) -> String {
    let output = finish(command);
    match output.status.code() {
        Some(0) => String::new(),
        Some(SKIPPED) => {
            eprintln!("SKIPPED: {row}: the machine lacks what it needs");
            String::new()
        }
        _ => format!("{row}: {}\n", text(&output)),
    }
}

/// What rows need of a place.
trait Rows {
    /// The daemon's program where every user can run it, in a place that every user can write to.
    fn for_all_users(&self) -> PathBuf;

    /// `softiommu run` for a row: of the ordinary user, if its program is given.
    fn command(&self, row: &str, user: Option<&Path>) -> Command;
}

impl Rows for Place {
    fn for_all_users(&self) -> PathBuf {
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let directory = self.directory.path();
        allow(directory, 0o777);
        let program = directory.join("softiommu");
        common::copy_program(env!("CARGO_BIN_EXE_softiommu"), &program);
        // Whatever the umask of who built them.
        allow(&program, 0o755);
        allow(&directory.join("semantics"), 0o755);
        program
    }

    fn command(&self, row: &str, user: Option<&Path>) -> Command {
        let name = row.replace(':', "-");
        let name = if user.is_some() { name + "-user" } else { name };
        let socket = self.directory.path().join(name);
        let options = ["--strict", "--control", socket.to_str().unwrap()];
        let mut command = match user {
            None => softiommu_run(&options),
            Some(program) => {
                let (mut command, user) = (Command::new("setpriv"), any_user());
                command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
                command.arg("--inh-caps=-all").arg(program).arg("run").args(options).arg("--");
                // Where every user may be.
                command.stdin(Stdio::null()).env_remove("RUST_LOG").current_dir("/");
                command
            }
        };
        command.env("SEMANTICS_CONTROL", &socket);
        command
    }
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
fn madvise_remove_takes_no_page_from_a_device() {
    rows(&["remove:memfd", "remove:tmpfs", "remove:hugetlb", "remove:shared"]);
    rows(&["remove:memfd:file", "remove:tmpfs:file", "remove:hugetlb:file"]);
}

#[test]
fn holes_take_no_page_from_a_device() {
    rows(&["punch:memfd", "punch:tmpfs", "punch:hugetlb"]);
    rows(&["punch:memfd:file", "punch:tmpfs:file", "punch:hugetlb:file"]);
}

#[test]
fn truncation_takes_no_page_from_a_device() {
    rows(&["truncate:memfd", "truncate:tmpfs", "truncate:hugetlb"]);
    rows(&["truncate:memfd:file", "truncate:tmpfs:file", "truncate:hugetlb:file"]);
    rows(&["truncate-all:memfd", "truncate-all:tmpfs", "truncate-all:hugetlb"]);
    rows(&["truncate-all:memfd:file", "truncate-all:hugetlb:file"]);
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
fn memory_that_its_process_only_reads_is_pinned() {
    rows(&["rom:anon", "rom:thp", "rom:zero", "rom:copy", "rom-code", "rom-sealed"]);
    rows(&["rom-gone:anon", "rom-gone:thp", "rom-gone:zero", "rom-gone:copy"]);
    rows(&["rom-over:anon", "rom-over:zero", "rom-over:copy"]);
    rows(&["rom-fork:anon", "rom-fork:thp", "rom-fork:zero", "rom-fork:copy"]);
    rows(&["rom-collapse:anon", "rom-collapse:zero", "rom-collapse:copy"]);
    rows(&["rom-ends:anon", "rom-ends:thp", "rom-ends:zero", "rom-ends:copy"]);
}

/// Pins would make it writable for a moment: never while anybody could write.
#[test]
fn what_can_only_be_read_nobody_can_write() {
    rows(&["rom-thread", "rom-sharer"]);
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
