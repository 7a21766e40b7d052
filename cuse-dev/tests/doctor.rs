//! `softiommu doctor` and `softiommu pages`, as a person or a script runs them.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_softiommu");

fn run(command: &mut Command) -> (Output, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

fn checks(json: &str) -> serde_json::Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

#[test]
fn the_exit_status_says_what_the_report_says() {
    for purpose in ["run", "serve"] {
        let mut command = Command::new(PROGRAM);
        let (output, text) = run(command.args(["doctor", "--json", "--for", purpose]));
        let works = checks(&text)[purpose].as_bool().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!works)), "{text}");
    }
}

#[test]
fn a_pipe_gets_no_colours() {
    let (_, text) = run(Command::new(PROGRAM).arg("doctor"));
    assert!(text.contains("softiommu run"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn who_is_not_root_is_told_what_that_costs() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    // Where every user can execute it.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = directory.path().join("softiommu");
    // By another process: a file that this one has open for writing may not be executable yet.
    assert!(Command::new("cp").arg(PROGRAM).arg(&copy).status().unwrap().success());
    let mut command = Command::new(&copy);
    command.args(["doctor", "--json", "--for", "serve"]).uid(65_534).gid(65_534).current_dir("/");
    let (output, text) = run(&mut command);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report = checks(&text);
    let root = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "root");
    let root = root.unwrap();
    assert_eq!(root["state"], "missing");
    assert!(root["remedy"].as_str().unwrap().contains("sudo"), "{root}");
}

/// Under `run` there is a supervisor already, which is what a second one would be told.
#[test]
fn a_supervised_program_cannot_be_supervised_again() {
    let inner = [PROGRAM, "doctor", "--json", "--for", "run"];
    let (output, text) = run(Command::new(PROGRAM).args(["run", "--"]).args(inner));
    if output.status.code() == Some(125) {
        eprintln!("SKIPPED: `softiommu run` does not work here");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report = checks(&text);
    let seccomp = &report["checks"].as_array().unwrap()[1];
    assert_eq!(
        (&seccomp["name"], &seccomp["state"]),
        (&"seccomp-notify".into(), &"missing".into())
    );
    assert!(seccomp["remedy"].as_str().unwrap().contains("another supervisor"), "{seccomp}");
}

#[test]
fn pages_and_completions_come_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let (output, _) = run(Command::new(PROGRAM).arg("pages").arg(directory.path()));
    assert!(output.status.success());
    let mut pages: Vec<_> = std::fs::read_dir(directory.path().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    let expected = ["softiommu-doctor.1", "softiommu-run.1", "softiommu-serve.1", "softiommu.1"];
    assert!(expected.iter().all(|page| pages.iter().any(|found| found == page)), "{pages:?}");
    assert!(!pages.iter().any(|page| page.contains("pages") || page.contains("help")), "{pages:?}");
    let serve = std::fs::read_to_string(directory.path().join("man/softiommu-serve.1")).unwrap();
    for option in ["front", "mode", "group"] {
        assert!(serve.contains(&format!("\\-\\-{option}")), "--{option} is missing");
    }
    let bash = directory.path().join("completions/softiommu.bash");
    assert!(std::fs::read_to_string(bash).unwrap().contains("--foreground"));
}
