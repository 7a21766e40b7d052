//! `softiommu serve` from a program's point of view, over FUSE, or over what
//! `SOFTIOMMU_TEST_FRONT` names (`cuse`, for which `ci/vm.d/test` boots a VM). Needs root and the
//! front; says so and passes where they are missing, unless the variable asks for them.
//!
//! Callers that must be another process (another user, a traced one, one to be killed) are this
//! test program again, copied to where every user may run it: see [`child`].
#![allow(unsafe_code)] // Raw ioctls, and identities of child processes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;

const DESTROY: u32 = 0x3b80;
const IOAS_ALLOC: u32 = 0x3b81;
const FAULT_QUEUE_ALLOC: u32 = 0x3b8e;

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    process: Child,
    node: PathBuf,
    log: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Daemon {
    fn start(options: &[&str]) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::start_named(&format!("softiommu-test-{}-{number}", std::process::id()), options)
    }

    fn start_named(name: &str, options: &[&str]) -> Option<Self> {
        let asked = std::env::var("SOFTIOMMU_TEST_FRONT");
        if asked.is_err() && (!nix::unistd::geteuid().is_root() || !can_mount()) {
            eprintln!("SKIPPED: this needs root and FUSE");
            return None;
        }
        let mut process = Command::new(env!("CARGO_BIN_EXE_softiommu"))
            .args(["serve", "--foreground", "--mode", "666", "--name", name, "--front"])
            .arg(asked.as_deref().unwrap_or("fuse"))
            .args(options)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        loop {
            let Some(line) = lines.next() else {
                panic!("the daemon ended: {}", log.lock().unwrap());
            };
            let line = line.unwrap();
            let serving = line.contains("serving");
            *log.lock().unwrap() += &format!("{line}\n");
            if serving {
                break;
            }
        }
        let rest = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *rest.lock().unwrap() += &format!("{line}\n");
            }
        });
        Some(Self { process, node: Path::new("/dev").join(name), log })
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.node).unwrap()
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    fn wait_for_log(&self, text: &str) {
        let begin = Instant::now();
        while !self.log.lock().unwrap().contains(text) {
            assert!(begin.elapsed() < PATIENCE, "no {text:?} in {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A caller in another process: this program, doing `what`.
    fn caller(&self, what: &str) -> Command {
        self.caller_by("env", &[], what)
    }

    /// The same, started by `launcher` with `options`.
    fn caller_by(&self, launcher: &str, options: &[&str], what: &str) -> Command {
        let mut command = Command::new(launcher);
        command
            .args(options)
            .arg(helper())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("SERVE_TEST_CHILD", what)
            .env("SERVE_TEST_NODE", &self.node)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .current_dir("/");
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

fn can_mount() -> bool {
    use cuse_dev::wire::mount::{Root, fuse};
    fuse(&Root::File { mode: 0o600 }, "softiommu-test").is_ok()
}

/// This program where every user can execute it.
fn helper() -> PathBuf {
    static HELPER: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let make = || {
        let mut path = PathBuf::from(format!("/tmp/softiommu-serve-test-{}", std::process::id()));
        if std::fs::create_dir(&path).is_err() {
            path =
                std::env::temp_dir().join(format!("softiommu-serve-test-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let file = path.join("helper");
        std::fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        file
    };
    HELPER.get_or_init(make).clone()
}

fn ioctl<T>(file: &File, command: u32, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the argument lives as long as the call, which writes no more than its size.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command as _, &raw mut *argument) })
}

fn ioas_alloc(file: &File) -> Result<u32, Errno> {
    // size, flags, out_ioas_id
    let mut argument = [12_u32, 0, 0];
    ioctl(file, IOAS_ALLOC, &mut argument)?;
    Ok(argument[2])
}

fn destroy(file: &File, id: u32) -> Result<(), Errno> {
    ioctl(file, DESTROY, &mut [8_u32, id]).map(drop)
}

fn fault_queue(file: &File) -> Result<(u32, OwnedFd), Errno> {
    // size, flags, out_fault_id, out_fault_fd
    let mut argument = [16_u32, 0, 0, u32::MAX];
    ioctl(file, FAULT_QUEUE_ALLOC, &mut argument)?;
    // SAFETY: the call gave us this descriptor.
    Ok((argument[2], unsafe { OwnedFd::from_raw_fd(argument[3] as i32) }))
}

/// Checks all that a program expects of a fault queue's descriptor.
fn use_fault_queue(file: &File) {
    let (id, queue) = fault_queue(file).unwrap();
    let flags = FdFlag::from_bits_retain(fcntl(&queue, FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
    fcntl(&queue, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut event = [0; 80];
    assert!(matches!(nix::unistd::read(&queue, &mut event), Err(Errno::EAGAIN) | Ok(0)));
    assert_eq!(destroy(file, id), Err(Errno::EBUSY));
    drop(queue);
    assert_eq!(destroy(file, id), Ok(()));
}

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

/// `VmPin` of this process, in KiB.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

const IOVA: u64 = 1 << 24;

/// Maps memory where a mock domain has it pinned at once.
fn map_at(file: &File, ioas: u32, memory: u64, length: u64) -> Result<(), Errno> {
    // The selftest's IOMMU_TEST_OP_MOCK_DOMAIN: size, op, the IOAS.
    let mut domain = [0_u32; 32];
    domain[..3].copy_from_slice(&[128, 2, ioas]);
    ioctl(file, 0x3ba0, &mut domain)?;
    // IOMMU_IOAS_MAP: readable, writable, at a fixed IOVA.
    let mut map = [40 | 7 << 32, u64::from(ioas), memory, length, IOVA];
    ioctl(file, 0x3b85, &mut map).map(drop)
}

/// Maps private memory, and looks whether the kernel pinned it.
fn map_private(file: &File) {
    const LENGTH: usize = 64 << 12;
    let ioas = ioas_alloc(file).unwrap();
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory of our own.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, rights, flags, -1, 0) } as u64;
    let before = pinned();
    let length = LENGTH as u64;
    map_at(file, ioas, memory, length).unwrap();
    assert_eq!(pinned() - before, length / 1024);
    // IOMMU_IOAS_UNMAP
    ioctl(file, 0x3b86, &mut [24 | u64::from(ioas) << 32, IOVA, length]).unwrap();
    assert_eq!(pinned(), before);
}

#[test]
fn private_memory_is_pinned_by_the_kernel() {
    let Some(daemon) = Daemon::start(&[]) else { return };
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|s| s.trim() == "2")
    {
        eprintln!("SKIPPED: io_uring is disabled here");
        return;
    }
    map_private(&daemon.open());
    let output = daemon.caller("pins").uid(65_534).gid(65_534).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
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

#[test]
fn a_user_has_no_more_contexts_than_allowed() {
    let Some(daemon) = Daemon::start(&["--max-contexts", "3"]) else { return };
    let mut command = daemon.caller("contexts");
    command.uid(65_534).gid(65_534);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let many: Vec<_> = (0..10).map(|_| daemon.open()).collect();
    assert_eq!(ioas_alloc(&many[9]), Ok(1));
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
        "descriptors" => {
            let file = open().unwrap();
            for _ in 0..20 {
                use_fault_queue(&file);
            }
        }
        "lowest" => {
            let file = open().unwrap();
            let expected = File::open("/dev/null").unwrap();
            let number = expected.as_raw_fd();
            drop(expected);
            let (_, queue) = fault_queue(&file).unwrap();
            assert_eq!(queue.as_raw_fd(), number);
        }
        "stuck pin" => stuck_pin(&node),
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
        "contexts" => {
            let files: Vec<_> = (0..3).map(|_| open().unwrap()).collect();
            assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EMFILE));
            drop(files);
            // The kernel tells of a close in its own time.
            let begin = Instant::now();
            while open().is_err() {
                assert!(begin.elapsed() < PATIENCE);
            }
        }
        // Its user has no request left.
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

/// Memory whose faults are never resolved, if such can be had.
fn never_answering(length: usize) -> Option<usize> {
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    // SAFETY: plain system calls on memory of our own, which nobody else uses.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
        if fd < 0 {
            return None;
        }
        let mut api = [0xaa_u64, 0, 0];
        if libc::ioctl(fd, UFFDIO_API as _, api.as_mut_ptr()) != 0 {
            return None;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0);
        let mut register = [memory as u64, length as u64, 1, 0];
        if libc::ioctl(fd, UFFDIO_REGISTER as _, register.as_mut_ptr()) != 0 {
            return None;
        }
        Some(memory as usize)
    }
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
