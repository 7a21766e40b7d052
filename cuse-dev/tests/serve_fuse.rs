//! `softiommu serve` from a program's point of view: the node, what each user may have of it, the
//! daemon's rights, its end and its death.
#![allow(unsafe_code)] // Raw ioctls.

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::serve::{
    Daemon, IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, IOVA, NOBODY, PATIENCE, destroy, fault_queue,
    ioas_alloc, ioctl, map_at,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;

#[test]
fn objects_come_and_go() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let file = daemon.open();
    assert_eq!(ioas_alloc(&file), Ok(1));
    assert_eq!(ioas_alloc(&file), Ok(2));
    assert_eq!(destroy(&file, 1), Ok(()));
    assert_eq!(destroy(&file, 1), Err(Errno::ENOENT));
    assert_eq!(ioctl(&file, 0x3bf0, &mut [8_u32, 0]), Err(Errno::ENOTTY));
    // SAFETY: the address is a bad one on purpose; the call copies through the kernel.
    let bad = unsafe { libc::ioctl(file.as_raw_fd(), IOAS_ALLOC as _, 8_usize) };
    assert_eq!(Errno::result(bad), Err(Errno::EFAULT));
    let other = daemon.open();
    assert_eq!(ioas_alloc(&other), Ok(1));
}

#[test]
fn a_killed_daemon_hangs_nobody_and_can_be_started_again() {
    let Some(mut daemon) = Daemon::start(&[]) else { return };
    let file = daemon.open();
    assert_eq!(ioas_alloc(&file), Ok(1));
    let name = daemon.node.file_name().unwrap().to_str().unwrap().to_owned();
    daemon.process.kill().unwrap();
    daemon.process.wait().unwrap();
    assert_eq!(ioas_alloc(&file), Err(Errno::ENOTCONN));
    let again = Daemon::start_named(&name, &[]).unwrap();
    assert_eq!(ioas_alloc(&file), Err(Errno::ENOTCONN));
    assert_eq!(ioas_alloc(&again.open()), Ok(1));
}

#[test]
fn each_call_is_logged_decoded() {
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("log");
    let Some(daemon) = Daemon::start_logging(&log) else { return };
    let file = daemon.open();
    ioas_alloc(&file).unwrap();
    destroy(&file, 7).unwrap_err();
    let log = std::fs::read_to_string(log).unwrap();
    let alloc = "iommufd 1: IOMMU_IOAS_ALLOC {size=12, flags=0, out_ioas_id=1} = 0";
    for part in [alloc, "IOMMU_DESTROY {size=8, id=7} = -1 ENOENT"] {
        assert!(log.contains(part), "{part} is not in:\n{log}");
    }
}

/// A caller's memory may stay pinned after its end, and all that is known of it with that.
#[test]
fn the_dead_cost_no_processor_time() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let file = daemon.open();
    let shared = Stdio::from(file.try_clone().unwrap());
    let mut caller = daemon.caller("maps on its standard input");
    assert!(caller.stdin(shared).stdout(Stdio::null()).status().unwrap().success());
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let times = rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        times.sum::<u64>()
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(1));
    // Of a hundred in that second.
    assert!(used() - before < 50, "{} ticks", used() - before);
    assert_eq!(ioas_alloc(&file), Ok(2));
}

#[test]
fn ending_answers_everyone_and_takes_the_node_away() {
    let Some(mut daemon) = Daemon::start(&[]) else { return };
    let file = daemon.open();
    let (_, queue) = fault_queue(&file).unwrap();
    let reader = std::thread::spawn(move || nix::unistd::read(&queue, &mut [0; 80]));
    let pid = nix::unistd::Pid::from_raw(daemon.process.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert!(daemon.process.wait().unwrap().success());
    assert!(!daemon.node.exists());
    assert_eq!(ioas_alloc(&file), Err(Errno::ENOTCONN));
    // Whether it read before the end or after, it does not wait for ever.
    let _ = reader.join().unwrap();
}

/// A user without rights meets a limit, of which root knows nothing.
fn limited(option: &str, most: &str, what: &str) -> Option<Daemon> {
    let daemon = Daemon::start(&[option, most])?;
    let output = daemon.caller(what).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Some(daemon)
}

#[test]
fn a_user_has_no_more_contexts_than_allowed() {
    let Some(daemon) = limited("--max-contexts", "3", "contexts") else { return };
    let many: Vec<_> = (0..10).map(|_| daemon.open()).collect();
    assert_eq!(ioas_alloc(&many[9]), Ok(1));
}

#[test]
fn a_user_has_no_more_objects_than_allowed() {
    let Some(daemon) = limited("--max-objects", "3", "objects") else { return };
    let file = daemon.open();
    assert_eq!((0..10).map(|_| ioas_alloc(&file).unwrap()).max(), Some(10));
}

#[test]
fn a_user_has_no_more_queues_than_allowed() {
    let Some(daemon) = limited("--max-queues", "2", "queues") else { return };
    let file = daemon.open();
    let queues: Vec<_> = (0..10).map(|_| fault_queue(&file).unwrap()).collect();
    drop(queues);
}

#[test]
fn a_user_maps_no_more_areas_than_allowed() {
    let Some(daemon) = limited("--max-areas", "2", "areas") else { return };
    let (file, page) = (daemon.open(), Page::new());
    let ioas = ioas_alloc(&file).unwrap();
    for at in 0..10 {
        page.map(&file, ioas, IOVA + at * 4096).unwrap();
    }
}

#[test]
fn a_user_has_no_more_memory_pinned_than_allowed() {
    let Some(daemon) = limited("--max-pinned", "64K", "pinned") else { return };
    let file = daemon.open();
    let ioas = ioas_alloc(&file).unwrap();
    let memory = vec![1_u8; 33 << 12];
    map_at(&file, ioas, (memory.as_ptr() as u64).next_multiple_of(4096), 32 << 12).unwrap();
}

/// Memory with a whole page in it.
struct Page(Box<[u8; 8192]>);

impl Page {
    fn new() -> Self {
        Self(Box::new([1; 8192]))
    }

    fn address(&self) -> u64 {
        (self.0.as_ptr() as u64).next_multiple_of(4096)
    }

    fn map(&self, file: &File, ioas: u32, iova: u64) -> Result<(), Errno> {
        let mut map = [40 | 7 << 32, u64::from(ioas), self.address(), 4096, iova];
        ioctl(file, IOAS_MAP, &mut map).map(drop)
    }
}

fn unmap(file: &File, ioas: u32, length: u64) -> Result<(), Errno> {
    ioctl(file, IOAS_UNMAP, &mut [24 | u64::from(ioas) << 32, IOVA, length]).map(drop)
}

/// Tries until it succeeds: the kernel tells of a close in its own time.
fn in_time<T>(mut attempt: impl FnMut() -> Result<T, Errno>, meanwhile: Errno) -> T {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(error) => assert_eq!(error, meanwhile),
        }
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_daemon_keeps_few_rights() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let effective = u64::from_str_radix(&daemon.status("CapEff:"), 16).unwrap();
    let kept = 1 << 1 | 1 << 5 | 1 << 19 | 1 << 24 | 1 << 40;
    assert_eq!(effective & !kept, 0, "{effective:#x}");
    assert_eq!(daemon.status("CapInh:"), "0000000000000000");
    assert_eq!(daemon.status("NoNewPrivs:"), "1");
    assert_eq!(daemon.status("Seccomp:"), "2");
    for thread in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten() {
        let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        let line = |name| status.lines().find_map(|line: &str| line.strip_prefix(name));
        let effective = u64::from_str_radix(line("CapEff:").unwrap().trim(), 16).unwrap();
        assert_eq!(effective & !kept, 0, "{status}");
        assert_eq!(line("Seccomp:").map(str::trim), Some("2"), "{status}");
    }
}

#[test]
fn a_taken_node_is_refused_with_a_reason() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let serve = |name: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_softiommu"))
            .args(["serve", "--foreground", "--name", name, "--front"])
            .arg(std::env::var("SOFTIOMMU_TEST_FRONT").as_deref().unwrap_or("fuse"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let name = daemon.node.file_name().unwrap().to_str().unwrap();
    assert!(serve(name).contains("served already"));
    assert!(serve("null").contains("softiommu run"));
}

/// What a caller in another process does. No test by itself.
#[test]
fn child() {
    let Ok(what) = std::env::var("SERVE_TEST_CHILD") else { return };
    let node = std::env::var("SERVE_TEST_NODE").unwrap();
    let open = || {
        let opened = OpenOptions::new().read(true).write(true).open(&node);
        opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))
    };
    match what.as_str() {
        "contexts" => {
            let files: Vec<_> = (0..3).map(|_| open()).collect::<Result<_, _>>().unwrap();
            assert_eq!(open().err(), Some(Errno::EMFILE));
            drop(files);
            in_time(open, Errno::EMFILE);
        }
        "objects" => {
            let (file, other) = (open().unwrap(), open().unwrap());
            let ids = [ioas_alloc(&file).unwrap(), ioas_alloc(&file).unwrap()];
            ioas_alloc(&other).unwrap();
            assert_eq!(ioas_alloc(&file), Err(Errno::ENOMEM));
            assert_eq!(ioas_alloc(&other), Err(Errno::ENOMEM));
            destroy(&file, ids[0]).unwrap();
            assert_eq!(ioas_alloc(&file), Ok(ids[0]));
            drop(other);
            in_time(|| ioas_alloc(&file), Errno::ENOMEM);
        }
        "queues" => {
            let file = open().unwrap();
            let queues = [fault_queue(&file).unwrap().1, fault_queue(&file).unwrap().1];
            let another = || fault_queue(&open().unwrap()).map(drop);
            assert_eq!(another(), Err(Errno::EMFILE));
            // They hold their context, whoever closes its iommufd.
            drop(file);
            assert_eq!(another(), Err(Errno::EMFILE));
            drop(queues);
            in_time(another, Errno::EMFILE);
        }
        "areas" => {
            let (file, page) = (open().unwrap(), Page::new());
            let ioas = ioas_alloc(&file).unwrap();
            page.map(&file, ioas, IOVA).unwrap();
            page.map(&file, ioas, IOVA + 4096).unwrap();
            assert_eq!(page.map(&file, ioas, IOVA + 8192), Err(Errno::ENOMEM));
            unmap(&file, ioas, 4096).unwrap();
            page.map(&file, ioas, IOVA + 8192).unwrap();
        }
        "maps on its standard input" => {
            let file = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
            Page::new().map(&file, ioas_alloc(&file).unwrap(), IOVA).unwrap();
        }
        "pinned" => {
            let (file, other) = (open().unwrap(), open().unwrap());
            let (ioas, ioas_of_other) = (ioas_alloc(&file).unwrap(), ioas_alloc(&other).unwrap());
            let (memory, page) = (vec![1_u8; 17 << 12], Page::new());
            let start = (memory.as_ptr() as u64).next_multiple_of(4096);
            map_at(&file, ioas, start, 16 << 12).unwrap();
            let refused = map_at(&other, ioas_of_other, page.address(), 4096);
            assert_eq!(refused, Err(Errno::ENOMEM));
            unmap(&file, ioas, 16 << 12).unwrap();
            page.map(&other, ioas_of_other, IOVA).unwrap();
        }
        other => panic!("no such caller: {other}"),
    }
}
