//! What Linux answered to random programs (`golden/linux-7.3-seeds.txt`, which `ci/conformance
//! --record` makes), checked against `softiommu run`.
//!
//! Programs whose answers depend on what else the machine does are not in the file
//! (`conformance::rules::leans_on_others`); what is known to differ is in
//! `golden/known-differences.txt`.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use softiommu_selftests::conformance::baseline::Baseline;

mod common;

/// A right to lock memory, which the programs give up and take back.
const CAP_IPC_LOCK: u8 = 14;
/// What the recorded programs had not, because containers seldom have it.
const CAP_SYS_RESOURCE: &str = "24";
/// Seeds of one test: a second's work, on a busy machine some more.
const SHARE: u64 = 40;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// Why this machine cannot answer as the one that was recorded.
fn lacking() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("what Linux answers to root is kept; other users may do less");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|rights| u64::from_str_radix(rights.trim(), 16).ok());
    if rights.unwrap_or(0) >> CAP_IPC_LOCK & 1 == 0 {
        return Some("this takes CAP_IPC_LOCK");
    }
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    fuse.is_err().then_some("event files take /dev/fuse")
}

/// Checks the programs of the seeds from `first` on, [`SHARE`] of them.
fn conforms(first: u64) {
    if let Some(why) = lacking() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let Some(softiommu) = common::softiommu() else { return };
    let tool = env!("CARGO_BIN_EXE_iommufd-conformance");
    let checked = Command::new(softiommu)
        .args(["run", "--quirks", "--", tool, "check"])
        .arg(format!("softiommu='{tool}' serve --drop {CAP_SYS_RESOURCE}"))
        .arg(golden("linux-7.3-seeds.txt"))
        .arg("--known")
        .arg(golden("known-differences.txt"))
        .args(["--first", &first.to_string(), "--last", &(first + SHARE - 1).to_string()])
        .stdin(Stdio::null())
        .env("RUST_LOG", "error")
        .output()
        .expect("softiommu");
    let (said, complaints) =
        (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    if said.is_empty() && complaints.contains("seccomp") {
        eprintln!("SKIPPED: {complaints}");
        return;
    }
    assert!(
        checked.status.success(),
        "Linux 7.3 answered otherwise ({:?}, signal {:?}):\n{said}{complaints}",
        checked.status.code(),
        checked.status.signal()
    );
    print!("{said}");
}

macro_rules! shares {
    ($($name:ident from $first:literal)*) => {
        $(#[test]
        fn $name() {
            conforms($first);
        })*

        #[test]
        fn every_seed_is_in_a_share() {
            let text = std::fs::read_to_string(golden("linux-7.3-seeds.txt")).expect("recorded");
            let baseline = Baseline::from_text(&text).expect("a baseline");
            assert!(baseline.programs.len() >= 150, "few programs: {}", baseline.programs.len());
            for seed in baseline.programs.keys() {
                let mut shares = [$($first),*].into_iter();
                assert!(shares.any(|first| (first..first + SHARE).contains(seed)), "seed {seed}");
            }
        }
    };
}

shares! {
    seeds_1 from 1
    seeds_41 from 41
    seeds_81 from 81
    seeds_121 from 121
    seeds_161 from 161
    seeds_201 from 201
    seeds_241 from 241
}
