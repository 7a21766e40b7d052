//! What the tests of this directory share.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// `softiommu`; built when it is not there. `None` where this machine cannot run it.
pub(crate) fn softiommu() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            if let Some(path) =
                std::env::var_os("SOFTIOMMU_PROGRAM").filter(|path| !path.is_empty())
            {
                return Some(path.into());
            }
            let probe = Path::new(env!("CARGO_BIN_EXE_softiommu-probe"));
            let path = probe.with_file_name("softiommu");
            if path.exists() {
                return Some(path);
            }
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--package", "softiommu", "--bin", "softiommu"]);
            if probe.parent().is_some_and(|dir| dir.ends_with("release")) {
                build.arg("--release");
            }
            let built = build.stdin(Stdio::null()).status().is_ok_and(|status| status.success());
            if !built {
                eprintln!("SKIPPED: no {}, and cargo cannot build it", path.display());
                return None;
            }
            Some(path)
        })
        .as_deref()
}
