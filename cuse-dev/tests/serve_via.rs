//! `softiommu run --via NODE`: a program whose node is a daemon's has what `run` alone gives it, and
//! the daemon gives nobody more by it than the descriptor does.
#![allow(unsafe_code)] // Raw ioctls.

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use common::serve::{Daemon, IOAS_ALLOC, NOBODY, fault_queue, ioas_alloc, ioctl};
use common::{Place, can_run, finish, text};
use nix::errno::Errno;

/// A daemon, and programs and softiommu where every user finds them.
struct Bench {
    daemon: Daemon,
    place: Place,
}

impl Bench {
    fn new(program: &str) -> Option<Self> {
        let place = Place::with_program(program, &[])?;
        let daemon = Daemon::start(&[])?;
        if !can_run() {
            return None;
        }
        let directory = place.directory.path();
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        common::copy_program(env!("CARGO_BIN_EXE_softiommu"), &directory.join("softiommu"));
        Some(Self { daemon, place })
    }

    fn run(&self, uid: u32, program: &str, what: &str) -> Output {
        let mut command = Command::new(self.place.program("softiommu"));
        command.args(["run", "--via"]).arg(&self.daemon.node).arg("--");
        command.arg(self.place.program(program)).arg(what);
        command.stdin(std::process::Stdio::null()).current_dir("/").uid(uid).gid(uid);
        finish(command)
    }

    fn all_succeed(&self, program: &str, tricks: &[&str]) {
        for uid in [0, NOBODY] {
            for trick in tricks {
                let output = self.run(uid, program, trick);
                assert!(output.status.success(), "{trick} as {uid}: {}", text(&output));
            }
        }
    }
}

#[test]
fn programs_do_what_they_do_under_run() {
    let Some(bench) = Bench::new("client") else { return };
    bench.all_succeed(
        "client",
        &["pair", "threads", "forks", "execs", "passes", "hostile", "paths", "interrupted"],
    );
}

#[test]
fn event_files_and_faults() {
    let Some(bench) = Bench::new("client") else { return };
    bench.all_succeed("client", &["access", "fault-queue", "faults"]);
}

#[test]
fn what_a_node_alone_lacks() {
    let Some(bench) = Bench::new("assisted") else { return };
    bench.all_succeed("assisted", &["maps", "nothing", "pins"]);
}

#[test]
fn only_a_node_of_softiommu_will_do() {
    if !can_run() {
        return;
    }
    for (node, why) in [("/dev/null", "not served by softiommu"), ("/dev/nowhere", "ENOENT")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        command.args(["run", "--via", node, "--", "true"]);
        let output = finish(command);
        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
        assert!(text(&output).contains(why), "{}", text(&output));
    }
}

const MAP: u32 = 0x7e02;
const FAULT: u32 = 0x7e03;
const PINS: u32 = 0x7e04;

fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: takes integers, and makes a new descriptor.
    unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) }
}

fn memfd(text: &str) -> File {
    let memfd = nix::sys::memfd::memfd_create(c"count", nix::sys::memfd::MFdFlags::empty());
    let file = File::from(memfd.unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).unwrap();
    file
}

fn count(file: &File) -> String {
    let mut text = String::new();
    let mut copy = file.try_clone().unwrap();
    std::io::Seek::rewind(&mut copy).unwrap();
    std::io::Read::read_to_string(&mut copy, &mut text).unwrap();
    text
}

#[test]
fn a_fault_is_for_one_call_of_one_context() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let (one, other) = (daemon.open(), daemon.open());
    // The test's thread is not its process's first one.
    let thread = nix::unistd::gettid().as_raw();
    // SAFETY: takes integers, and makes a new descriptor; PIDFD_THREAD is O_EXCL.
    let thread = unsafe { libc::syscall(libc::SYS_pidfd_open, thread, libc::O_EXCL) };
    if thread < 0 {
        eprintln!("SKIPPED: this kernel has no pidfds of threads");
        return;
    }
    // SAFETY: the call just made it.
    let thread = unsafe { OwnedFd::from_raw_fd(thread as i32) };
    let arm = |file: &File, count: &File| {
        ioctl(file, FAULT, &mut [thread.as_raw_fd(), count.as_raw_fd()])
    };
    let nth = memfd("1");
    arm(&one, &nth).unwrap();
    assert_eq!(ioas_alloc(&other), Ok(1));
    assert_eq!(ioas_alloc(&one), Err(Errno::ENOMEM));
    assert_eq!(count(&nth), "0\n");
    assert_eq!(ioas_alloc(&one), Ok(1));

    // What is not memory, or not the caller's to write, is refused.
    let null = File::open("/dev/null").unwrap();
    let (pipe, _end) = nix::unistd::pipe().unwrap();
    let read_only = File::open(format!("/proc/self/fd/{}", nth.as_raw_fd())).unwrap();
    for bad in [null, File::from(pipe), read_only] {
        assert_eq!(arm(&one, &bad), Err(Errno::EINVAL));
    }
    let (_, queue) = fault_queue(&one).unwrap();
    assert_eq!(arm(&one, &File::from(queue)), Err(Errno::EINVAL));
    assert_eq!(ioctl(&one, FAULT, &mut [-1, nth.as_raw_fd()]), Err(Errno::EBADF));
    assert_eq!(ioctl(&one, FAULT, &mut [nth.as_raw_fd(), nth.as_raw_fd()]), Err(Errno::EBADF));
}

#[test]
fn only_what_the_context_offers_can_be_mapped() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let file = daemon.open();
    // offset, length, rights | flags << 32
    let ask =
        |offset, length, flags: u64| ioctl(&file, MAP, &mut [offset, length, 3 | flags << 32]);
    let (shared, private) = (libc::MAP_SHARED as u64, libc::MAP_PRIVATE as u64);
    for (offset, length) in [(0, 4096), (4096, 4096), (u64::MAX, u64::MAX), (4096, 0)] {
        assert_eq!(ask(offset, length, shared), Err(Errno::ENXIO));
    }
    assert_eq!(ask(4096, 4096, private), Err(Errno::EINVAL));
    // SAFETY: the address is a bad one on purpose; the daemon copies through the kernel.
    let bad = unsafe { libc::ioctl(file.as_raw_fd(), MAP.into(), 8_usize) };
    assert_eq!(Errno::result(bad), Err(Errno::EFAULT));
    assert_eq!(ioctl(&file, 0x7e7f, &mut [0_u64; 4]), Err(Errno::ENOTTY));
    assert_eq!(ioctl(&file, IOAS_ALLOC, &mut [12_u32, 0, 0]), Ok(0));
}

#[test]
fn pins_are_shown_to_their_user() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let output = daemon.caller("pins of others").uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let file = daemon.open();
    let mut other = Command::new("sleep").arg("600").uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let process = pidfd(other.id());
    let mut pins = [u64::from(process.as_raw_fd() as u32), 0, 0];
    let answer = ioctl(&file, PINS, &mut pins);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(answer, Ok(0));
}

/// What a caller in another process does. No test by itself.
#[test]
fn child() {
    let Ok(what) = std::env::var("SERVE_TEST_CHILD") else { return };
    let node = std::env::var("SERVE_TEST_NODE").unwrap();
    let file = File::options().read(true).write(true).open(node).unwrap();
    assert_eq!(what, "pins of others");
    let ask = |pid| {
        let process = pidfd(pid);
        let mut pins = [u64::from(process.as_raw_fd() as u32), 0, 0];
        ioctl(&file, PINS, &mut pins)
    };
    assert_eq!(ask(std::process::id()), Ok(0));
    assert_eq!(ask(1), Err(Errno::EPERM));
}
