//! Descriptors that `softiommu serve` puts into its callers' tables, and their pins: for every user and
//! namespace, many threads, under signals, a tracer and SIGKILL.
#![allow(unsafe_code)] // Raw ioctls.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::serve::{
    Daemon, IOVA, PATIENCE, READABLE, WRITABLE, destroy, fault_queue, ioas_alloc, ioctl, map_as,
    map_private, use_fault_queue, use_fault_queues,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

#[test]
fn root_gets_descriptors() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    use_fault_queue(&daemon.open());
}

#[test]
fn the_descriptor_is_the_lowest_free_one() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let output = daemon.caller("lowest").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn other_users_and_namespaces_get_descriptors() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    for (name, options, uid) in [
        ("user", &[][..], Some(65_534)),
        ("pid namespace", &["--pid", "--fork"], None),
        ("user namespace", &["--user"], Some(65_534)),
        (
            "root of a user namespace",
            &["--user", "--map-root-user", "--pid", "--fork"],
            Some(65_534),
        ),
    ] {
        let mut probe = Command::new("unshare");
        let mut command = daemon.caller_by("unshare", options, "descriptors");
        for command in [&mut probe, &mut command] {
            if let Some(uid) = uid {
                command.uid(uid).gid(uid);
            }
        }
        if !probe.args(options).arg("true").status().is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: no {name} here");
            continue;
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Whether root can make rings here; says so if not.
fn io_uring() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let usable = disabled.is_ok_and(|text| text.trim() != "2");
    if !usable {
        eprintln!("SKIPPED: io_uring is disabled here");
    }
    usable
}

#[test]
fn private_memory_is_pinned_by_the_kernel() {
    // Whether the kernel counts pins in `VmPin` depends on its release and on who pins: the daemon
    // says of what it could not pin.
    let Some(daemon) = Daemon::start(&[]) else { return };
    if !io_uring() {
        return;
    }
    map_private(&daemon.open());
    let output = daemon.caller("pins").uid(65_534).gid(65_534).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // A line that comes of an ioctl is written before the ioctl returns, and read a little later: a
    // later line shows that all before it were read.
    let traced = daemon.caller("warned").output().unwrap();
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stdout));
    daemon.wait_for_log("pages are not pinned");
    let log = daemon.log.lock().unwrap();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("not pinned")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
}

/// A truncated page is a SIGBUS to who touches it, and the daemon's threads want no signals.
#[test]
fn a_truncated_file_is_no_end_of_the_daemon() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    if !io_uring() {
        return;
    }
    let file = daemon.open();
    let memfd = memfd_create(c"ram", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::sys::uio::pwrite(&memfd, &[b'a'; 8192], 0).unwrap();
    let ioas = ioas_alloc(&file).unwrap();
    // The selftest's IOMMU_TEST_OP_MOCK_DOMAIN, which has pages pinned at once.
    let selftest = |mut words: [u64; 9]| {
        ioctl(&file, 0x3ba0, &mut words).unwrap();
        words
    };
    selftest([72 | 2 << 32, ioas.into(), 0, 0, 0, 0, 0, 0, 0]);
    // IOMMU_IOAS_MAP_FILE: size, flags, ioas_id, fd, start, length, iova.
    let fd = memfd.as_raw_fd() as u64;
    let mut map = [40 | WRITABLE << 32, u64::from(ioas) | fd << 32, 0, 8192, IOVA];
    ioctl(&file, 0x3b8f, &mut map).unwrap();
    // IOMMU_TEST_OP_CREATE_ACCESS, and IOMMU_TEST_OP_ACCESS_RW of more than a page.
    let access = selftest([72 | 5 << 32, ioas.into(), 1 << 32, 0, 0, 0, 0, 0, 0])[2] as u32;
    // SAFETY: the call made this descriptor.
    let _access = unsafe { OwnedFd::from_raw_fd(access as i32) };
    let read = || {
        let mut bytes = [0_u8; 8192];
        let at = bytes.as_mut_ptr() as u64;
        selftest([72 | 8 << 32, access.into(), IOVA, 8192, at, 0, 0, 0, 0]);
        bytes
    };
    assert_eq!(read(), [b'a'; 8192]);
    nix::unistd::ftruncate(&memfd, 4096).unwrap();
    assert_eq!(read(), [b'a'; 8192], "the pages are pinned");
    ioas_alloc(&daemon.open()).unwrap();
}

#[test]
fn many_threads_get_descriptors_under_signals() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let output = daemon.caller("storm").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_traced_caller_gets_an_error_and_a_hint() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    let mut child = daemon.caller("traced").spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("ready") {
        said.clear();
        assert_ne!(output.read_line(&mut said).unwrap(), 0, "the caller ended");
    }
    // Every thread of it, as a debugger does.
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let tid = thread.unwrap().file_name().to_string_lossy().parse().unwrap();
        let tid = nix::unistd::Pid::from_raw(tid);
        nix::sys::ptrace::seize(tid, nix::sys::ptrace::Options::empty()).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    daemon.wait_for_log("softiommu run");
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("answer EPERM"), "{rest}");
    // What was traced is buried by its tracer.
    let end = nix::sys::wait::WaitPidFlag::__WALL | nix::sys::wait::WaitPidFlag::__WNOTHREAD;
    while nix::sys::wait::waitpid(None, Some(end)).is_ok_and(|status| status.pid() != Some(pid)) {}
    let _ = child.wait();
}

#[test]
fn killed_callers_leave_nothing_behind() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    use_fault_queue(&daemon.open());
    let before = daemon.descriptors();
    for round in 0..3 {
        let mut children: Vec<_> =
            (0..8).map(|_| daemon.caller("busy").stdout(Stdio::null()).spawn().unwrap()).collect();
        // Somewhere in the middle of it.
        std::thread::sleep(Duration::from_millis(30 * (round + 1)));
        let file = daemon.open();
        assert_eq!(ioas_alloc(&file), Ok(1));
        for child in &mut children {
            child.kill().unwrap();
        }
        for child in &mut children {
            child.wait().unwrap();
        }
    }
    // What is known of a dead process is dropped when another calls.
    let begin = Instant::now();
    loop {
        use_fault_queue(&daemon.open());
        let now = daemon.descriptors();
        if now <= before + 8 {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{now} descriptors, {before} before");
        std::thread::sleep(Duration::from_millis(10));
    }
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next(), fields.next());
        let ours = parent == Some(&daemon.pid().to_string());
        assert!(!(ours && state == Some("Z")), "a zombie: {stat}");
    }
}

/// What a caller in another process does. No test by itself.
#[test]
fn child() {
    let Ok(what) = std::env::var("SERVE_TEST_CHILD") else { return };
    let node = std::env::var("SERVE_TEST_NODE").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&node);
    match what.as_str() {
        "descriptors" => use_fault_queues(&open().unwrap()),
        "lowest" => {
            let file = open().unwrap();
            let expected = File::open("/dev/null").unwrap();
            let number = expected.as_raw_fd();
            drop(expected);
            let (_, queue) = fault_queue(&file).unwrap();
            assert_eq!(queue.as_raw_fd(), number);
        }
        // Read-only memory is never pinned.
        "warned" => {
            let (file, length) = (open().unwrap(), 4096);
            let (rights, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: new memory of our own.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, -1, 0) };
            let ioas = ioas_alloc(&file).unwrap();
            map_as(&file, ioas, at as u64, length as u64, READABLE).unwrap();
        }
        "pins" => map_private(&open().unwrap()),
        "storm" => storm(&open().unwrap()),
        "traced" => {
            let file = open().unwrap();
            println!("ready");
            std::io::stdout().flush().unwrap();
            std::io::stdin().read_line(&mut String::new()).unwrap();
            let error = fault_queue(&file).err().unwrap();
            assert_eq!(ioas_alloc(&file), Ok(1));
            println!("answer {error:?}");
        }
        "busy" => loop {
            let files: Vec<_> = (0..10).map(|_| open().unwrap()).collect();
            for file in &files {
                let _ = ioas_alloc(file);
                let _ = fault_queue(file).map(|(_, queue)| std::mem::forget(queue));
            }
        },
        other => panic!("no such caller: {other}"),
    }
}

fn storm(file: &File) {
    extern "C" fn nothing(_: libc::c_int) {}
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..25 {
                        // A signal may make the call restart before it began, never run twice.
                        let (id, queue) = fault_queue(file).unwrap();
                        drop(queue);
                        destroy(file, id).unwrap();
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            let own = SigSet::from(Signal::SIGUSR1);
            own.thread_block().unwrap();
            while !done.load(Ordering::Relaxed) {
                let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGUSR1);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(fds < 20, "{fds} descriptors are left");
}
