//! Chance makes a side answer otherwise once: what it answered then is told.

use std::process::Command;

/// The side's node is missing for the first play, and there when its programs are played again.
#[test]
fn what_differed_once_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("left"), "").unwrap();
    let tool = env!("CARGO_BIN_EXE_iommufd-conformance");
    let tasks = format!(
        "while IFS= read -r line; do case $line in *Transcript*) : >'{}' ;; esac; \
         printf '%s\\n' \"$line\"; done",
        path("right")
    );
    let output = Command::new(tool)
        .arg("compare")
        .arg(format!("left='{tool}' serve --node '{}'", path("left")))
        .arg(format!("right={tasks} | '{tool}' serve --node '{}'", path("right")))
        .args(["--seed", "7", "--programs", "1", "--calls", "5", "--keep", &path("")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("seed 7: differed once, and not again"), "{said}");
    assert!(said.contains("right, first: open(0o2) = ENOENT"), "{said}");
    assert!(said.contains("right, again: open(0o2) = 4"), "{said}");
    let kept = std::fs::read_to_string(path("once-7.txt")).unwrap();
    let shown = |who: &str| kept.lines().filter(|line| line.contains(who)).count();
    assert!(kept.lines().count() > 5 && shown("left, first:") == shown("right, again:"), "{kept}");
}
