//! Callers of `softiommu serve` whose memory never answers hold neither others nor the daemon's end.
#![allow(unsafe_code)] // Raw ioctls.

mod common;

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::Child;
use std::time::{Duration, Instant};

use common::serve::{
    Daemon, IOAS_ALLOC, PATIENCE, destroy, ioas_alloc, map_at, map_private, never_answering,
    use_fault_queues,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// A caller, another user than root, whose three requests hang on memory that never answers.
fn stuck_caller(daemon: &Daemon) -> Option<Child> {
    caller_that_is_stuck(daemon, "stuck")
}

fn caller_that_is_stuck(daemon: &Daemon, how: &str) -> Option<Child> {
    let mut child = daemon.caller(how).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.as_mut().unwrap());
    let mut said = String::new();
    while !said.contains("stuck") {
        said.clear();
        if output.read_line(&mut said).unwrap() == 0 {
            eprintln!("SKIPPED: no userfaultfd for callers here");
            let _ = child.wait();
            return None;
        }
    }
    Some(child)
}

#[test]
fn faults_that_the_caller_keeps_do_not_hold_others() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let Some(mut child) = stuck_caller(&daemon) else { return };
    let file = daemon.open();
    for _ in 0..100 {
        let id = ioas_alloc(&file).unwrap();
        destroy(&file, id).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ioas_alloc(&file), Ok(1));
}

#[test]
fn callers_that_hold_requests_up_do_not_hold_the_end_up() {
    let Some(mut daemon) = Daemon::start(&[]) else { return };
    let Some(mut child) = stuck_caller(&daemon) else { return };
    let pid = nix::unistd::Pid::from_raw(daemon.process.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert!(daemon.process.wait().unwrap().success());
    assert!(!daemon.node.exists());
    // Its calls are answered by the kernel.
    let mut rest = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_stuck_pin_holds_no_other_users_pins() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let Some(mut child) = caller_that_is_stuck(&daemon, "stuck pin") else { return };
    std::thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    map_private(&daemon.open());
    assert!(begin.elapsed() < PATIENCE);
    child.kill().unwrap();
    child.wait().unwrap();
    map_private(&daemon.open());
}

#[test]
fn one_users_stuck_requests_are_bounded() {
    let Some(daemon) = Daemon::start(&["--max-requests", "4"]) else { return };
    let mut callers: Vec<_> = (0..4).map_while(|_| stuck_caller(&daemon)).collect();
    let mut command = daemon.caller("refused");
    command.uid(65_534).gid(65_534);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(ioas_alloc(&daemon.open()), Ok(1));
    for caller in &mut callers {
        caller.kill().unwrap();
        caller.wait().unwrap();
    }
    // What they held is free again.
    let mut command = daemon.caller("descriptors");
    command.uid(65_534).gid(65_534);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What a caller in another process does. No test by itself.
#[test]
fn child() {
    let Ok(what) = std::env::var("SERVE_TEST_CHILD") else { return };
    let node = std::env::var("SERVE_TEST_NODE").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&node);
    match what.as_str() {
        "stuck pin" => stuck_pin(&node),
        "descriptors" => use_fault_queues(&open().unwrap()),
        "refused" => {
            let file = open().unwrap();
            let begin = Instant::now();
            while ioas_alloc(&file) != Err(Errno::EAGAIN) {
                assert!(begin.elapsed() < PATIENCE);
            }
        }
        "stuck" => stuck(&node),
        other => panic!("no such caller: {other}"),
    }
}

/// Has memory pinned whose faults are never resolved.
fn stuck_pin(node: &str) {
    let Some(memory) = never_answering(16 << 12) else { return };
    nix::unistd::setgid(65_534.into()).unwrap();
    nix::unistd::setuid(65_534.into()).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(node).unwrap();
    let ioas = ioas_alloc(&file).unwrap();
    println!("stuck");
    std::io::stdout().flush().unwrap();
    map_at(&file, ioas, memory as u64, 16 << 12).unwrap();
}

/// Calls with a pointer to memory whose fault is never resolved.
fn stuck(node: &str) {
    let Some(memory) = never_answering(4096) else { return };
    nix::unistd::setgid(65_534.into()).unwrap();
    nix::unistd::setuid(65_534.into()).unwrap();
    let file = &OpenOptions::new().read(true).write(true).open(node).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            // SAFETY: the kernel copies, or does not.
            scope.spawn(move || unsafe {
                libc::ioctl(file.as_raw_fd(), IOAS_ALLOC as _, memory);
            });
        }
        // Once the first is in the daemon's hands the others are, or will be.
        std::thread::sleep(Duration::from_millis(20));
        println!("stuck");
        let _ = std::io::stdout().flush();
    });
}
