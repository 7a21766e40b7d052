//! A child process that does what a test tells it: system calls and memory accesses of its own.
//!
//! It is forked, so it runs only code that may run between fork and exec: a loop of `read`,
//! the asked thing, `write`. It dies with the test.
#![allow(unsafe_code, dead_code)] // fork and raw system calls; each test uses a part of it

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use cuse_dev::caller::Callers;
use engine::memory::AddressSpace;

/// Whether rings can be made here.
pub(crate) fn io_uring() -> bool {
    let mut params = [0_u8; 120];
    // SAFETY: `params` has the size of `struct io_uring_params`; the ring ends with its descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr());
        fd >= 0 && libc::close(fd as i32) == 0
    }
}

/// The memory of `puppet`, which waits for orders, ready for kernel pins.
pub(crate) fn memory(callers: &Callers, puppet: &Puppet) -> Arc<dyn AddressSpace> {
    let process = callers.resolve(puppet.pid).unwrap();
    // It waits in an interruptible call: the stop needs no answer, and the call goes on after it.
    assert!(process.prepare_pins(puppet.pid, || Ok(())));
    process.memory()
}

/// What the puppet is asked: a kind and six words.
type Order = [u64; 8];

const SYSCALL: u64 = 0;
const FILL: u64 = 1;
const SUM: u64 = 2;
const FORK: u64 = 3;

/// 4096.
pub(crate) const PAGE: u64 = 4096;

/// The child.
pub(crate) struct Puppet {
    /// Its process id.
    pub(crate) pid: u32,
    strings: UnixStream,
    ours: bool,
}

impl Puppet {
    /// A new child.
    pub(crate) fn new() -> Self {
        Self::start(|| {})
    }

    /// A new child that runs `first`, which must be async-signal-safe.
    pub(crate) fn start(first: impl FnOnce()) -> Self {
        let (strings, theirs) = UnixStream::pair().unwrap();
        strings.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let parent = std::process::id();
        // SAFETY: the child runs `first` and `obey`, which allocate nothing and take no locks.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                // SAFETY: plain system calls.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    if libc::getppid() as u32 != parent {
                        libc::_exit(1);
                    }
                }
                let socket = theirs.as_raw_fd() as u32;
                // Other tests' sockets must close when their puppets go.
                // SAFETY: nothing here uses the descriptors that this copy of the process has.
                unsafe {
                    libc::syscall(libc::SYS_close_range, 3, socket - 1, 0);
                    libc::syscall(libc::SYS_close_range, socket + 1, u32::MAX, 0);
                }
                first();
                obey(theirs.as_raw_fd());
            }
            pid => Self { pid: pid as u32, strings, ours: true },
        }
    }

    fn order(&self, order: Order) -> i64 {
        let mut strings = &self.strings;
        strings.write_all(&order.map(u64::to_ne_bytes).concat()).unwrap();
        let mut answer = [0; 8];
        strings.read_exact(&mut answer).unwrap();
        i64::from_ne_bytes(answer)
    }

    /// The child's system call: its result or -errno.
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> i64 {
        let [a, b, c, d, e, f] = arguments;
        self.order([SYSCALL, number as u64, a, b, c, d, e, f])
    }

    fn must(&self, number: libc::c_long, arguments: [u64; 6]) -> u64 {
        let result = self.call(number, arguments);
        u64::try_from(result).unwrap_or_else(|_| panic!("call {number}: {result}"))
    }

    /// `mmap`.
    pub(crate) fn mmap(&self, at: u64, length: u64, rights: i32, flags: i32, fd: i32) -> u64 {
        let arguments = [at, length, rights as u64, flags as u64, fd as u64, 0];
        self.must(libc::SYS_mmap, arguments)
    }

    /// Private anonymous memory, not yet touched.
    pub(crate) fn anonymous(&self, pages: u64) -> u64 {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        self.mmap(0, pages * PAGE, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Shared anonymous memory, not yet touched.
    pub(crate) fn shared(&self, pages: u64) -> u64 {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        self.mmap(0, pages * PAGE, rights, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// `munmap`.
    pub(crate) fn munmap(&self, at: u64, pages: u64) {
        self.must(libc::SYS_munmap, [at, pages * PAGE, 0, 0, 0, 0]);
    }

    /// `madvise`.
    pub(crate) fn madvise(&self, at: u64, pages: u64, advice: i32) -> i64 {
        self.call(libc::SYS_madvise, [at, pages * PAGE, advice as u64, 0, 0, 0])
    }

    /// `mprotect`.
    pub(crate) fn mprotect(&self, at: u64, pages: u64, rights: i32) {
        self.must(libc::SYS_mprotect, [at, pages * PAGE, rights as u64, 0, 0, 0]);
    }

    /// The child stores `byte` in each of `length` bytes.
    pub(crate) fn fill(&self, at: u64, length: u64, byte: u8) {
        self.order([FILL, at, length, byte.into(), 0, 0, 0, 0]);
    }

    /// The byte that the child reads in all `length` bytes; `None` when they differ.
    pub(crate) fn byte(&self, at: u64, length: u64) -> Option<u8> {
        u8::try_from(self.order([SUM, at, length, 0, 0, 0, 0, 0])).ok()
    }

    /// The child forks; the grandchild obeys the second puppet.
    pub(crate) fn fork(&self) -> Puppet {
        let (strings, theirs) = UnixStream::pair().unwrap();
        strings.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let fd = self.adopt(theirs.into());
        let pid = self.order([FORK, fd, 0, 0, 0, 0, 0, 0]);
        assert!(pid > 0, "fork: {pid}");
        Puppet { pid: pid as u32, strings, ours: false }
    }

    /// Gives the child a descriptor of this process: its number there.
    pub(crate) fn adopt(&self, file: OwnedFd) -> u64 {
        let pidfd = self.must(libc::SYS_pidfd_open, [std::process::id().into(), 0, 0, 0, 0, 0]);
        let fd = file.as_raw_fd() as u64;
        // SAFETY: lets the child fetch descriptors from here where Yama would not.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let fd = self.must(libc::SYS_pidfd_getfd, [pidfd, fd, 0, 0, 0, 0]);
        self.must(libc::SYS_close, [pidfd, 0, 0, 0, 0, 0]);
        fd
    }

    /// The child executes `/bin/sleep` or the like and obeys no more.
    pub(crate) fn exec(&self, path: &std::ffi::CStr, argument: &std::ffi::CStr) {
        let at = self.anonymous(1);
        let mut page = Vec::new();
        for text in [path, argument] {
            page.extend_from_slice(text.to_bytes_with_nul());
        }
        let vector = 1024;
        let second = at + path.to_bytes_with_nul().len() as u64;
        page.resize(vector, 0);
        page.extend([at, second, 0].map(u64::to_ne_bytes).concat());
        let remote = [nix::sys::uio::RemoteIoVec { base: at as usize, len: page.len() }];
        let local = [std::io::IoSlice::new(&page)];
        let pid = nix::unistd::Pid::from_raw(self.pid as i32);
        nix::sys::uio::process_vm_writev(pid, &local, &remote).unwrap();
        let list = at + vector as u64;
        let order: Order = [SYSCALL, libc::SYS_execve as u64, at, list, list + 16, 0, 0, 0];
        let mut strings = &self.strings;
        strings.write_all(&order.map(u64::to_ne_bytes).concat()).unwrap();
        // The socket closes with the exec.
        loop {
            match strings.read(&mut [0; 8]) {
                Ok(length) => return assert_eq!(length, 0, "exec failed"),
                // SIGCHLD of a tracee.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                }
            }
        }
    }

    /// SIGKILL, and waits until the child is gone.
    pub(crate) fn kill(&mut self) {
        // SAFETY: signals a child of ours that is not reaped, or one that dies with it.
        unsafe { libc::kill(self.pid as i32, libc::SIGKILL) };
        self.reap();
    }

    /// The child leaves by itself.
    pub(crate) fn exit(&mut self) {
        let order: Order = [SYSCALL, libc::SYS_exit_group as u64, 0, 0, 0, 0, 0, 0];
        let mut strings = &self.strings;
        strings.write_all(&order.map(u64::to_ne_bytes).concat()).unwrap();
        self.reap();
    }

    fn reap(&mut self) {
        if self.ours {
            // SAFETY: a child of ours that was not reaped; the status is not wanted.
            unsafe { libc::waitpid(self.pid as i32, std::ptr::null_mut(), 0) };
            self.ours = false;
        } else {
            // The socket closes when the process is gone.
            let _ = (&self.strings).read(&mut [0; 8]);
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if self.ours {
            self.kill();
        } else {
            // A grandchild ends when its socket does.
            let _ = self.strings.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Obeys until the other end closes. Allocates nothing and never returns.
fn obey(mut socket: i32) -> ! {
    loop {
        let mut order: Order = [0; 8];
        // SAFETY: `order` has 64 bytes.
        let got = unsafe { libc::recv(socket, order.as_mut_ptr().cast(), 64, libc::MSG_WAITALL) };
        if got != 64 {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        let answer: i64 = match order[0] {
            SYSCALL => {
                // SAFETY: the test asks only for calls that leave this loop's memory alone.
                let result = unsafe {
                    libc::syscall(
                        order[1] as libc::c_long,
                        order[2],
                        order[3],
                        order[4],
                        order[5],
                        order[6],
                        order[7],
                    )
                };
                // SAFETY: this thread's errno.
                if result == -1 { -i64::from(unsafe { *libc::__errno_location() }) } else { result }
            }
            FILL => {
                // SAFETY: the test names memory that it mapped in this process.
                unsafe {
                    std::ptr::write_bytes(order[1] as *mut u8, order[3] as u8, order[2] as usize);
                }
                0
            }
            SUM => {
                // SAFETY: as above.
                let bytes =
                    unsafe { std::slice::from_raw_parts(order[1] as *const u8, order[2] as usize) };
                let first = bytes[0];
                if bytes.iter().all(|&byte| byte == first) { first.into() } else { -1 }
            }
            _ => {
                // SAFETY: the child goes on in this loop.
                match unsafe { libc::fork() } {
                    0 => {
                        // SAFETY: closes the parent's socket here.
                        unsafe { libc::close(socket) };
                        socket = order[1] as i32;
                        continue;
                    }
                    pid => {
                        // SAFETY: the grandchild has it.
                        unsafe { libc::close(order[1] as i32) };
                        pid.into()
                    }
                }
            }
        };
        // SAFETY: `answer` has 8 bytes.
        unsafe { libc::send(socket, (&raw const answer).cast(), 8, libc::MSG_NOSIGNAL) };
    }
}
