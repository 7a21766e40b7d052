//! `softiommu run` for an ordinary user, with a `/dev/fuse` that is open to all and without one.
//!
//! Started by root, the tests become a user without rights, in a mount namespace of their own.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::{Place, can_run, finish, text};

/// A user that no machine has.
const USER: &str = "54321";

/// What the user finds as `/dev/fuse`.
#[derive(Clone, Copy, PartialEq)]
enum Fuse {
    /// As udev makes it.
    Open,
    /// Only root may open it.
    Closed,
}

/// The program and the client where every user can read them.
struct User {
    place: Place,
    program: PathBuf,
}

impl User {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: root can become another user, others cannot");
            return None;
        }
        let place = Place::with_client(&[])?;
        if !can_run() {
            return None;
        }
        let directory = place.directory.path();
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        let program = directory.join("softiommu");
        common::copy_program(env!("CARGO_BIN_EXE_softiommu"), &program);
        std::fs::create_dir(directory.join("dev")).unwrap();
        Some(Self { place, program })
    }

    /// Runs the client's `what` as the user.
    fn run(&self, fuse: Fuse, what: &str) -> Output {
        let mode = if fuse == Fuse::Open { "666" } else { "600" };
        let script = "set -e
            dev=$1 mode=$2 user=$3; shift 3
            mount -t tmpfs -o mode=755 none $dev
            mknod $dev/fuse c 10 229; chmod $mode $dev/fuse
            [ ! -e /dev/fuse ] || mount --bind $dev/fuse /dev/fuse
            cd /
            exec setpriv --reuid $user --regid $user --clear-groups --inh-caps=-all \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(self.place.directory.path().join("dev")).args([mode, USER]);
        command.arg(&self.program).args(["run", "--strict", "--"]);
        command.arg(self.place.client()).arg(what);
        command.stdin(std::process::Stdio::null()).env_remove("RUST_LOG");
        finish(command)
    }
}

/// Whether the machine lets users have user namespaces, and FUSE in them.
fn has_fuse(output: &Output) -> bool {
    let missing = String::from_utf8_lossy(&output.stderr).contains("no descriptor for");
    if missing {
        eprintln!("SKIPPED: {}", text(output));
    }
    !missing
}

#[test]
fn a_user_does_what_needs_no_right() {
    let Some(user) = User::new() else { return };
    for what in ["pair", "threads", "forks", "execs", "passes", "contexts", "hostile", "faults"] {
        let output = user.run(Fuse::Open, what);
        assert!(output.status.success(), "{what}: {}", text(&output));
    }
}

#[test]
fn a_user_with_fuse_gets_event_files() {
    let Some(user) = User::new() else { return };
    for what in ["access", "fault-queue"] {
        let output = user.run(Fuse::Open, what);
        if !has_fuse(&output) {
            return;
        }
        assert!(output.status.success(), "{what}: {}", text(&output));
    }
}

#[test]
fn a_user_without_fuse_gets_what_nobody_reads_from() {
    let Some(user) = User::new() else { return };
    let output = user.run(Fuse::Closed, "access");
    assert!(output.status.success(), "{}", text(&output));
    let output = user.run(Fuse::Closed, "no-fault-queue");
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/dev/fuse"), "{said}");
}
