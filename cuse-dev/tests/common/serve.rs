//! What the tests of `softiommu serve` share: a daemon over FUSE, or over what
//! `SOFTIOMMU_TEST_FRONT` names (`cuse`, for which `ci/vm.d/test` boots a VM), raw calls on its node,
//! and callers in other processes.
//!
//! They need root and the front; they say so and pass where they are missing, unless the variable
//! asks for them. Callers that must be another process (another user, a traced one, one to be
//! killed) are the test program again, copied to where every user may run it: its test `child`.
#![allow(unsafe_code)] // Raw ioctls, and identities of child processes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use tempfile::TempDir;

pub(crate) const DESTROY: u32 = 0x3b80;
pub(crate) const IOAS_ALLOC: u32 = 0x3b81;
pub(crate) const IOAS_MAP: u32 = 0x3b85;
pub(crate) const IOAS_UNMAP: u32 = 0x3b86;
pub(crate) const FAULT_QUEUE_ALLOC: u32 = 0x3b8e;

/// Long enough for a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A user without rights.
pub(crate) const NOBODY: u32 = 65_534;

/// `softiommu serve` in the foreground, ended when dropped.
pub(crate) struct Daemon {
    pub(crate) process: Child,
    pub(crate) node: PathBuf,
    pub(crate) log: std::sync::Arc<std::sync::Mutex<String>>,
    /// Where callers find this program.
    place: OnceLock<TempDir>,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Option<Self> {
        Self::start_named(&Self::new_name(), options)
    }

    fn new_name() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("softiommu-test-{}-{number}", std::process::id())
    }

    /// One that is to be started, if it can be.
    fn command(name: &str, options: &[&str]) -> Option<Command> {
        let asked = std::env::var("SOFTIOMMU_TEST_FRONT");
        if asked.is_err() && (!nix::unistd::geteuid().is_root() || !can_mount()) {
            eprintln!("SKIPPED: this needs root and FUSE");
            return None;
        }
        let program = std::env::var_os("SERVE_TEST_PROGRAM")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_softiommu").into());
        let mut command = Command::new(program);
        command
            .args(["serve", "--foreground", "--mode", "666", "--name", name, "--front"])
            .arg(asked.as_deref().unwrap_or("fuse"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Some(command)
    }

    fn of(process: Child, name: &str) -> Self {
        let node = Path::new("/dev").join(name);
        Self { process, node, log: Default::default(), place: OnceLock::new() }
    }

    /// One that logs to the file `log`.
    pub(crate) fn start_logging(log: &Path) -> Option<Self> {
        let name = Self::new_name();
        let mut command = Self::command(&name, &["--log", log.to_str().unwrap()])?;
        let mut daemon = Self::of(command.env_remove("RUST_LOG").spawn().unwrap(), &name);
        while !std::fs::read_to_string(log).is_ok_and(|text| text.contains("serving")) {
            assert_eq!(daemon.process.try_wait().unwrap(), None, "the daemon ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(daemon)
    }

    pub(crate) fn start_named(name: &str, options: &[&str]) -> Option<Self> {
        let mut command = Self::command(name, options)?;
        let process = command.env("RUST_LOG", "info").stderr(Stdio::piped()).spawn().unwrap();
        let mut daemon = Self::of(process, name);
        let mut lines = BufReader::new(daemon.process.stderr.take().unwrap()).lines();
        let log = daemon.log.clone();
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
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *log.lock().unwrap() += &format!("{line}\n");
            }
        });
        Some(daemon)
    }

    pub(crate) fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.node).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        let begin = Instant::now();
        while !self.log.lock().unwrap().contains(text) {
            assert!(begin.elapsed() < PATIENCE, "no {text:?} in {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// This program where every user can execute it.
    fn helper(&self) -> PathBuf {
        let file = self.place.get_or_init(place_for_all).path().join("helper");
        if !file.exists() {
            super::copy_program(std::env::current_exe().unwrap(), &file);
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
        file
    }

    /// A caller in another process: this program, doing `what`.
    pub(crate) fn caller(&self, what: &str) -> Command {
        self.caller_by("env", &[], what)
    }

    /// The same, started by `launcher` with `options`.
    pub(crate) fn caller_by(&self, launcher: &str, options: &[&str], what: &str) -> Command {
        let mut command = Command::new(launcher);
        command
            .args(options)
            .arg(self.helper())
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

pub(crate) fn can_mount() -> bool {
    use cuse_dev::wire::mount::{Root, fuse};
    fuse(&Root::File { mode: 0o600 }, "softiommu-test").is_ok()
}

/// A place whose programs every user can execute.
fn place_for_all() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("softiommu-serve-test-");
    // The environment's own may be for one user.
    let place = builder.tempdir_in("/tmp").or_else(|_| builder.tempdir()).unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    place
}

pub(crate) fn ioctl<T>(file: &File, command: u32, argument: &mut T) -> Result<i32, Errno> {
    // SAFETY: the argument lives as long as the call, which writes no more than its size.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), command as _, &raw mut *argument) })
}

pub(crate) fn ioas_alloc(file: &File) -> Result<u32, Errno> {
    // size, flags, out_ioas_id
    let mut argument = [12_u32, 0, 0];
    ioctl(file, IOAS_ALLOC, &mut argument)?;
    Ok(argument[2])
}

pub(crate) fn destroy(file: &File, id: u32) -> Result<(), Errno> {
    ioctl(file, DESTROY, &mut [8_u32, id]).map(drop)
}

pub(crate) fn fault_queue(file: &File) -> Result<(u32, OwnedFd), Errno> {
    // size, flags, out_fault_id, out_fault_fd
    let mut argument = [16_u32, 0, 0, u32::MAX];
    ioctl(file, FAULT_QUEUE_ALLOC, &mut argument)?;
    // SAFETY: the call gave us this descriptor.
    Ok((argument[2], unsafe { OwnedFd::from_raw_fd(argument[3] as i32) }))
}

/// Checks all that a program expects of a fault queue's descriptor.
pub(crate) fn use_fault_queue(file: &File) {
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

/// A caller that does so several times.
pub(crate) fn use_fault_queues(file: &File) {
    for _ in 0..20 {
        use_fault_queue(file);
    }
}

pub(crate) const IOVA: u64 = 1 << 24;

/// `IOMMU_IOAS_MAP_FIXED_IOVA` and `IOMMU_IOAS_MAP_READABLE`.
pub(crate) const READABLE: u64 = 5;
/// The same, and `IOMMU_IOAS_MAP_WRITEABLE`.
pub(crate) const WRITABLE: u64 = 7;

/// Maps memory where a mock domain has it pinned at once.
pub(crate) fn map_at(file: &File, ioas: u32, memory: u64, length: u64) -> Result<(), Errno> {
    map_as(file, ioas, memory, length, WRITABLE)
}

/// The same, with these flags.
pub(crate) fn map_as(
    file: &File,
    ioas: u32,
    memory: u64,
    length: u64,
    flags: u64,
) -> Result<(), Errno> {
    // The selftest's IOMMU_TEST_OP_MOCK_DOMAIN: size, op, the IOAS.
    let mut domain = [0_u32; 32];
    domain[..3].copy_from_slice(&[128, 2, ioas]);
    ioctl(file, 0x3ba0, &mut domain)?;
    let mut map = [40 | flags << 32, u64::from(ioas), memory, length, IOVA];
    ioctl(file, IOAS_MAP, &mut map).map(drop)
}

/// Maps private memory, and unmaps it.
pub(crate) fn map_private(file: &File) {
    const LENGTH: usize = 64 << 12;
    let ioas = ioas_alloc(file).unwrap();
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory of our own.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, rights, flags, -1, 0) } as u64;
    let length = LENGTH as u64;
    map_at(file, ioas, memory, length).unwrap();
    ioctl(file, IOAS_UNMAP, &mut [24 | u64::from(ioas) << 32, IOVA, length]).unwrap();
}

/// Memory whose faults are never resolved, if such can be had.
pub(crate) fn never_answering(length: usize) -> Option<usize> {
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
