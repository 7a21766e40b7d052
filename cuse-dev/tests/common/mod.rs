//! What the tests of `softiommu run` share: the client program, built once a test binary, and a
//! place that every user can read.
#![allow(dead_code)] // each test binary uses its part

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) mod serve;

/// The tests' programs and files; gone when dropped.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    /// Builds the client with `flags`. Nothing where the machine has no C compiler that can.
    pub(crate) fn with_client(flags: &[&str]) -> Option<Self> {
        Self::with_program("client", flags)
    }

    /// Builds `tests/programs/NAME.c` with `flags`. Nothing where the machine has no C compiler
    /// that can.
    pub(crate) fn with_program(name: &str, flags: &[&str]) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("softiommu-test-").tempdir().unwrap();
        let place = Self { directory };
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        let built = Command::new("cc")
            .args(["-O2", "-pthread", "-o"])
            .arg(place.program(name))
            .args(flags)
            .arg(sources.join(name).with_extension("c"))
            .stdin(Stdio::null())
            .output();
        match built {
            Ok(output) if output.status.success() => Some(place),
            Ok(output) => {
                // The compiler may lack what flags ask for, and nothing else.
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(!flags.is_empty(), "{name}.c: {said}");
                eprintln!("SKIPPED: cc: {said}");
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: no C compiler: {error}");
                None
            }
        }
    }

    pub(crate) fn client(&self) -> PathBuf {
        self.program("client")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Copies a program that is to be run, by a process of its own: what this one opens for writing, another
/// thread's new child has open, too, until it executes, and such a file is "busy".
pub(crate) fn copy_program(from: impl AsRef<OsStr>, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// `softiommu run` with `options`; the program and its arguments follow.
pub(crate) fn softiommu_run(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
    command.arg("run").args(options).arg("--").stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Whether this machine lets us run anything under the filter (an old kernel, or a supervisor
/// around us, does not). Says so if not.
pub(crate) fn can_run() -> bool {
    let output = softiommu_run(&[]).arg("true").output().unwrap();
    if !output.status.success() {
        eprintln!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// Runs to the end; fails when that takes minutes.
pub(crate) fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(240);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} hangs: {}", text(&output));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// All that it said.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
