//! Every program of `programs/` under `softiommu run`, against what the real kernel answered
//! (`golden/`, which `ci/record` makes).
//!
//! A line may differ only as `golden/deviations.txt` says. The program is the one that
//! `SOFTIOMMU_PROGRAM` names, else the one built beside this test.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod common;

/// Long enough for a machine under load; a program takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(170);

/// A difference that is meant: of which program, in which lines, and what is answered instead.
struct Deviation {
    program: String,
    line: String,
    answer: String,
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `PROGRAM | LINE | ANSWER | REASON`; a `*` stands for any text.
fn deviations() -> Vec<Deviation> {
    let text = std::fs::read_to_string(here("golden/deviations.txt")).expect("deviations.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(" | ").map(str::trim).collect();
            let [program, line, answer, reason] = words[..] else {
                panic!("deviations.txt: PROGRAM | LINE | ANSWER | REASON, not {line}");
            };
            assert!(!reason.is_empty(), "a deviation wants a reason: {line}");
            Deviation { program: program.into(), line: line.into(), answer: answer.into() }
        })
        .collect()
}

/// Whether `text` is `pattern`, in which each `*` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return text == pattern };
    text.strip_prefix(head).is_some_and(|text| {
        (0..=text.len()).any(|at| text.is_char_boundary(at) && is_like(&text[at..], rest))
    })
}

/// Reads to the end, with a limit on the child's time.
fn output(mut child: Child) -> (Option<bool>, String, String) {
    let mut pipes = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        pipes.0.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        pipes.1.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let start = Instant::now();
    let success = loop {
        match child.try_wait().expect("our own child") {
            Some(status) => break Some(status.success()),
            None if start.elapsed() > LIMIT => {
                child.kill().expect("our own child");
                child.wait().expect("our own child");
                return (None, String::new(), String::new());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    (success, out.join().expect("reader"), err.join().expect("reader"))
}

fn conforms(name: &str) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: what Linux answers to root is kept; other users may do less");
        return;
    }
    let Some(softiommu) = common::softiommu() else { return };
    let golden = std::fs::read_to_string(here(&format!("golden/linux-7.3/{name}.txt")))
        .expect("recorded by ci/record");
    let child = Command::new(softiommu)
        .arg("run")
        .args((name == "quirks").then_some("--quirks"))
        .args(["--", env!("CARGO_BIN_EXE_softiommu-probe")])
        .arg(here(&format!("programs/{name}.probe")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("RUST_LOG")
        .spawn()
        .expect("softiommu");
    let (success, said, complaints) = output(child);
    let success = success.unwrap_or_else(|| panic!("{name} still ran after {LIMIT:?}"));
    if said.is_empty() && complaints.contains("seccomp") {
        eprintln!("SKIPPED: {complaints}");
        return;
    }
    let allowed = deviations();
    let mut wrong = Vec::new();
    let (mut golden, mut said) = (golden.lines(), said.lines());
    loop {
        let (expected, got) = match (golden.next(), said.next()) {
            (None, None) => break,
            (expected, got) => (expected.unwrap_or("(nothing)"), got.unwrap_or("(nothing)")),
        };
        let meant = |deviation: &Deviation| {
            (deviation.program == name || deviation.program == "*")
                && is_like(expected, &deviation.line)
                && is_like(got, &deviation.answer)
        };
        if expected != got && !allowed.iter().any(meant) {
            wrong.push(format!("  Linux: {expected}\n  here:  {got}"));
        }
    }
    assert!(
        wrong.is_empty() && success,
        "{name}: {} lines differ from Linux 7.3's (status ok: {success})\n{}\n{complaints}",
        wrong.len(),
        wrong.join("\n")
    );
}

macro_rules! programs {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            conforms(stringify!($name));
        })*

        #[test]
        fn every_program_is_here() {
            let listed = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(here("programs")).expect("programs") {
                let path = entry.expect("an entry").path();
                let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
                assert!(listed.contains(&name), "{name}.probe has no test");
            }
        }
    };
}

programs! {
    access bits change_process dmabuf domain edges faults faults_wait file_end fork found found2 found3 found4 found5 hwpt ids ioas
    memfd memlock memlock_mm mmap pasid pointers quirks rlimit_mode sizes vfio viommu viommu2
}
