//! The control socket, as a person and a tool see it: `softiommu show`, `walk`, `pfn` and `dma` beside
//! a program under `softiommu run`.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Place, can_run, finish, softiommu_run, text};
use serde_json::Value;

/// A program that has mapped memory at IOVA 0x1000000 and waits, under `softiommu run`.
struct Subject {
    _place: Place,
    socket: PathBuf,
    run: Child,
    said: BufReader<ChildStdout>,
}

impl Subject {
    fn start() -> Option<Self> {
        Self::with("memfd")
    }

    /// One that has mapped memory of the kind.
    fn with(kind: &str) -> Option<Self> {
        let place = Place::with_program("semantics", &[])?;
        if !can_run() {
            return None;
        }
        let directory = place.directory.path();
        let socket = directory.join("control");
        let mut run = softiommu_run(&["--strict", "--control", socket.to_str().unwrap()])
            .arg(directory.join("semantics"))
            .arg(format!("wait:{kind}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(run.stdout.take().unwrap());
        let mut subject = Self { _place: place, socket, run, said };
        assert_eq!(subject.heard(), "ready\n");
        Some(subject)
    }

    /// The next line of the program.
    fn heard(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    /// Has the program do to its memory what `what` says, and answers where that is.
    fn does(&mut self, what: &[u8; 1]) -> u64 {
        self.run.stdin.as_mut().unwrap().write_all(what).unwrap();
        let line = self.heard();
        u64::from_str_radix(line.trim().trim_start_matches("0x"), 16).unwrap()
    }

    /// The warnings so far that name `iova`.
    fn warnings_of(&self, iova: u64) -> Vec<Value> {
        let show = self.json(&["show"]);
        let warnings = show["warnings"].as_array().unwrap().iter();
        let iova = format!("{iova:#x}");
        warnings.filter(|warning| warning["fields"]["iova"] == iova.as_str()).cloned().collect()
    }

    /// The warnings that name `iova`, once there is one.
    fn told_of(&self, iova: u64) -> Vec<Value> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let told = self.warnings_of(iova);
            if !told.is_empty() {
                return told;
            }
            assert!(Instant::now() < end, "nothing is told of IOVA {iova:#x}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `softiommu WORDS... --control SOCKET`.
    fn ask(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        command.args(words).arg("--control").arg(&self.socket).stdin(Stdio::null());
        finish(command)
    }

    fn text(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[words, &["--json"]].concat())).unwrap()
    }

    /// The first area of the first IOAS.
    fn area(&self) -> Value {
        let show = self.json(&["show"]);
        let objects = show["contexts"][0]["objects"].as_array().unwrap();
        let ioas = objects.iter().find(|object| object["kind"] == "ioas").unwrap();
        ioas["areas"][0].clone()
    }

    /// The object id of the device.
    fn device(&self) -> String {
        let show = self.json(&["show"]);
        let objects = show["contexts"][0]["objects"].as_array().unwrap();
        let device = objects.iter().find(|object| object["kind"] == "device").unwrap();
        device["id"].to_string()
    }

    fn line(&self, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(line).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn end(mut self) {
        drop(self.run.stdin.take());
        assert!(self.run.wait().unwrap().success());
        assert!(!self.socket.exists(), "the socket goes with the daemon");
    }
}

#[test]
fn everything_is_shown_for_people_and_tools() {
    let Some(subject) = Subject::start() else { return };
    let shown = subject.text(&["show"]);
    for part in ["context 1: /dev/iommu", "IOAS: 1 area", "IOMMU_IOAS_MAP by pid", "iommufd_mock"] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
    let show = subject.json(&["show"]);
    let objects = show["contexts"][0]["objects"].as_array().unwrap();
    let ioas = objects.iter().find(|object| object["kind"] == "ioas").unwrap();
    let area = &ioas["areas"][0];
    assert_eq!(area["iova"], "0x1000000");
    assert_eq!(area["length"], 4 * 4096);
    assert_eq!(area["pins"][0]["held"], "shared");
    assert_eq!(area["source"]["call"], "IOMMU_IOAS_MAP");
    assert_eq!(show["payers"][0]["pinned_pages"], 4);
    assert_eq!(show["payers"][0]["pid"], area["source"]["pid"]);
    let hidden = subject.text(&["show", "--areas", "0"]);
    assert!(hidden.contains("1 areas are not shown"), "{hidden}");
    subject.end();
}

#[test]
fn a_device_reads_and_writes_from_outside() {
    let Some(subject) = Subject::start() else { return };
    let device = subject.device();
    let dma = |what: &str, rest: &[&str]| {
        subject.ask(&[&["dma", what, "--device", &device], rest].concat())
    };
    let read = dma("read", &["0x1000000", "1", "--raw"]);
    assert_eq!(read.stdout, b"a");
    assert!(dma("write", &["0x1000fff", "--text", "over two pages"]).status.success());
    let read = dma("read", &["0x1000fff", "14", "--raw"]);
    assert_eq!(read.stdout, b"over two pages");
    let dump = dma("read", &["0x1000fff", "14"]);
    assert!(text(&dump).contains("01000fff: 6f 76 65 72"), "{}", text(&dump));
    let old = dma("atomic", &["0x1002000", "fetch-add", "2", "--width", "4"]);
    assert!(text(&old).contains("61 00 00 00"), "{}", text(&old));
    assert_eq!(dma("read", &["0x1002000", "1", "--raw"]).stdout, b"c");

    let fault = dma("read", &["0x1003ff0", "32"]);
    assert_eq!(fault.status.code(), Some(1));
    let said = text(&fault);
    assert!(said.contains("read fault at IOVA 0x1004000: not mapped (second stage)"), "{said}");
    let refused = subject.ask(&["dma", "read", "--device", "77", "0", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("there is no device 77"), "{}", text(&refused));
    let much = dma("read", &["0x1000000", "0x1000000"]);
    assert_eq!(much.status.code(), Some(2), "{}", text(&much));
    subject.end();
}

#[test]
fn a_walk_leads_to_a_frame_and_the_frame_to_its_bytes() {
    let Some(subject) = Subject::start() else { return };
    let device = subject.device();
    let words = ["walk", "--device", &device, "0x1001010"];
    let walk = subject.json(&words);
    let physical = walk["physical"].as_str().unwrap();
    assert!(physical.ends_with("010"), "{physical}");
    let steps = walk["stages"][0]["steps"].as_array().unwrap();
    assert!(steps.len() > 1 && steps.last().unwrap()["text"].as_str().unwrap().contains("page"));
    let frame = format!("0x{}", &physical[2..physical.len() - 3]);
    let found = subject.json(&["pfn", &frame, "--bytes"]);
    assert_eq!(found[0]["iova"], "0x1001000");
    assert_eq!(found[0]["held"], "shared");
    assert!(found[0]["bytes"].as_str().unwrap().starts_with("6100"));
    let told = subject.text(&words);
    assert!(told.contains("level") && told.contains("VA 0x"), "{told}");
    let nobody = subject.text(&["pfn", "0x3fffffffff"]);
    assert!(nobody.contains("no context has this frame"), "{nobody}");
    subject.end();
}

#[test]
fn nonsense_is_answered_and_harms_nobody() {
    let Some(subject) = Subject::start() else { return };
    for line in [&b"\n"[..], b"{}\n", b"\xff\xfe\n", b"{\"ask\":\"dma\"}\n", b"[[[[[[[[\n"] {
        let answer = subject.line(line);
        assert!(answer.contains("not understood"), "{answer}");
    }
    let device = subject.device();
    let wide = format!(
        "{{\"ask\":\"dma\",\"device\":{device},\"iova\":0,\"access\":\"atomic\",\"width\":3,\"op\":\"swap\",\
         \"operand\":1}}\n"
    );
    assert!(subject.line(wide.as_bytes()).contains("4 or 8 bytes"));
    // Peers that say nothing, and leave.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&subject.socket).unwrap()).collect();
    drop(silent);
    // Far too long a line.
    let mut stream = UnixStream::connect(&subject.socket).unwrap();
    let _ = stream.write_all(&vec![b' '; 3 << 20]);
    drop(stream);
    subject.text(&["show"]);
    subject.end();
}

#[test]
fn the_socket_is_its_users_alone() {
    let Some(subject) = Subject::start() else { return };
    let mode = std::fs::metadata(&subject.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if !nix::unistd::Uid::effective().is_root() {
        return subject.end();
    }
    // Another user who can reach the socket is turned away by the credentials alone.
    std::fs::set_permissions(&subject.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let directory = subject.socket.parent().unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.join("softiommu");
    common::copy_program(env!("CARGO_BIN_EXE_softiommu"), &program);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]).arg(program);
    command.arg("show").arg("--control").arg(&subject.socket);
    let output = finish(command);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("may not ask"), "{}", text(&output));
    subject.end();
}

#[test]
fn daemons_are_found_without_being_named() {
    let Some(place) = Place::with_program("semantics", &[]) else { return };
    if !can_run() {
        return;
    }
    let runtime = place.directory.path();
    let ask = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        command.args(words).env("XDG_RUNTIME_DIR", runtime).stdin(Stdio::null());
        finish(command)
    };
    let start = || {
        let mut run = softiommu_run(&["--strict"])
            .arg(runtime.join("semantics"))
            .arg("wait:memfd")
            .env("XDG_RUNTIME_DIR", runtime)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        run
    };
    let nobody = ask(&["show"]);
    assert!(text(&nobody).contains("no softiommu of this user is running"), "{}", text(&nobody));
    let mut first = start();
    let alone = ask(&["show"]);
    assert!(alone.status.success() && text(&alone).contains("wait:memfd"), "{}", text(&alone));
    let mut second = start();
    let which = ask(&["show"]);
    assert!(text(&which).contains("choose with --pid"), "{}", text(&which));
    let chosen = ask(&["show", "--pid", &second.id().to_string()]);
    assert!(text(&chosen).starts_with("ExitStatus"), "{}", text(&chosen));
    assert!(text(&chosen).contains(&format!("softiommu {}", second.id())), "{}", text(&chosen));
    for run in [&mut first, &mut second] {
        drop(run.stdin.take());
        assert!(run.wait().unwrap().success());
    }
    let left = std::fs::read_dir(runtime.join("softiommu")).unwrap().count();
    assert_eq!(left, 0, "sockets are left");
}

#[test]
fn what_happens_to_mapped_memory_is_told() {
    let Some(mut subject) = Subject::with("anon") else { return };
    let area = subject.area();
    if area["pins"][0]["held"] != "pinned" {
        eprintln!("SKIPPED: the process has no helper");
        return subject.end();
    }
    for (page, (letter, what)) in (0..).zip([
        (b"d", "thrown away by madvise"),
        (b"u", "unmapped, or mapped over"),
        (b"m", "by mremap"),
        (b"o", "unmapped, or mapped over"),
    ]) {
        let at = subject.does(letter);
        let told = subject.told_of(0x100_0000 + page * 0x1000);
        assert!(told[0]["message"].as_str().unwrap().contains(what), "{told:?}");
        let fields = &told[0]["fields"];
        let pid = format!("pid {} (semantics)", area["source"]["pid"]);
        assert_eq!(fields["owner"], pid.as_str());
        assert_eq!(fields["va"], format!("{:#x}", at + page * 0x1000));
        assert_eq!(fields["length"], "0x1000");
        assert_eq!(fields["call"], "IOMMU_IOAS_MAP");
    }
    // What is not mapped in an IOAS tells nothing, though it was once part of the same mapping. What
    // comes after it is told after it.
    let before = subject.warnings_of(0x100_0000).len();
    subject.does(b"i");
    subject.told_of(0x120_0000);
    assert_eq!(subject.warnings_of(0x100_0000).len(), before);
    subject.end();
}

#[test]
fn what_a_file_loses_is_told_once() {
    let Some(mut subject) = Subject::start() else { return };
    let area = subject.area();
    if area["pins"][0]["held"] != "shared" {
        eprintln!("SKIPPED: the file's pages are not pinned");
        return subject.end();
    }
    // Pages of a file that somebody throws out of a mapping are no less the file's.
    let at = subject.does(b"d");
    subject.does(b"p");
    let told = subject.told_of(0x100_1000);
    let fields = &told[0]["fields"];
    assert_eq!(fields["va"], format!("{:#x}", at + 0x1000));
    assert_eq!(fields["length"], "0x1000");
    assert_eq!(fields["call"], "IOMMU_IOAS_MAP");
    assert_eq!(fields["ioas"], "1");
    assert_eq!(fields["pid"], area["source"]["pid"].to_string());
    // The file has a page there again: a device that looks finds out.
    subject.does(b"f");
    let device = subject.device();
    let read = subject.ask(&["dma", "read", "--device", &device, "0x1002000", "1", "--raw"]);
    assert_eq!(read.stdout, b"a");
    subject.told_of(0x100_2000);
    subject.does(b"r");
    subject.told_of(0x100_3000);
    for (page, warnings) in [(0, 0), (1, 1), (2, 1), (3, 1)] {
        let told = subject.warnings_of(0x100_0000 + page * 0x1000);
        assert_eq!(told.len(), warnings, "{told:?}");
    }
    subject.end();
}
