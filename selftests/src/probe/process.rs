//! Steps about processes, threads, signals and limits.
#![allow(unsafe_code)] // fork, signals and limits are raw system calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;

use super::machine::{Machine, result};

/// Steps that run beside the program, by name.
pub(super) type Threads = Arc<Mutex<BTreeMap<String, JoinHandle<String>>>>;

/// `CAP_IPC_LOCK` of `<linux/capability.h>`.
const CAP_IPC_LOCK: u32 = 14;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// capget(2)'s and capset(2)'s arguments, this thread's.
fn capabilities(set: Option<[[u32; 3]; 2]>) -> Result<[[u32; 3]; 2], Errno> {
    let header = [CAPABILITY_VERSION, 0];
    let mut data = set.unwrap_or_default();
    let call = if set.is_some() { libc::SYS_capset } else { libc::SYS_capget };
    // SAFETY: version 3's header and two structs of three words each.
    result(unsafe { libc::syscall(call, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(data)
}

/// Whether this thread may lock as much memory as it likes.
pub(super) fn may_lock_memory() -> bool {
    capabilities(None).is_ok_and(|sets| sets[0][0] & (1 << CAP_IPC_LOCK) != 0)
}

/// Sets RLIMIT_MEMLOCK, and gives up `CAP_IPC_LOCK`.
pub(super) fn limit_locked_memory(bytes: u64) -> Result<i64, Errno> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: one rlimit.
    result(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }.into())?;
    let mut sets = capabilities(None)?;
    for set in &mut sets[0] {
        *set &= !(1 << CAP_IPC_LOCK);
    }
    capabilities(Some(sets))?;
    Ok(0)
}

/// Closes what the program's starter left open, so that the descriptors are the program's own.
pub fn close_inherited() {
    // SAFETY: called before anything of this process holds a descriptor above the standard ones.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// A signal handler that does nothing: the signal's only work is to end a call that waits.
extern "C" fn ignore(_: libc::c_int) {}

impl Machine {
    /// `fork: STEP; STEP`: what the steps answer in a child process.
    pub(super) fn fork(&mut self, line: &str) -> Result<String, String> {
        let steps = line.split_once(": ").ok_or("fork: STEP; STEP")?.1;
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())
            .map_err(|e| e.to_string())?;
        // SAFETY: programs fork only while they have no other thread; the child ends in _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let said: Vec<String> = steps
                .split("; ")
                .map(|step| self.step(step).unwrap_or_else(|why| format!("BAD PROGRAM: {why}")))
                .collect();
            let said = said.join(" / ");
            // SAFETY: the string has the length, and nothing of the parent's runs in the child.
            unsafe {
                libc::write(ends[1], said.as_ptr().cast(), said.len());
                libc::_exit(0);
            }
        }
        // SAFETY: our own descriptor, not used again.
        unsafe { libc::close(ends[1]) };
        let mut said = Vec::new();
        let mut bytes = [0_u8; 4096];
        loop {
            // SAFETY: `bytes` has the length.
            let got = unsafe { libc::read(ends[0], bytes.as_mut_ptr().cast(), bytes.len()) };
            match usize::try_from(got) {
                Ok(0) => break,
                Ok(got) => said.extend_from_slice(&bytes[..got]),
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => break,
            }
        }
        // SAFETY: our own descriptor, not used again; our own child.
        unsafe {
            libc::close(ends[0]);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// `alarm: STEP`, with a signal every 50 ms that does not restart what it interrupts.
    pub(super) fn alarmed(&mut self, line: &str) -> Result<String, String> {
        let step = line.split_once(": ").ok_or("alarm: STEP")?.1;
        let every = |micros| {
            let time = libc::timeval { tv_sec: 0, tv_usec: micros };
            let timer = libc::itimerval { it_interval: time, it_value: time };
            // SAFETY: one itimerval.
            unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
        };
        // SAFETY: zero is a valid sigaction; the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGALRM);
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
        every(50_000);
        let said = self.step(step);
        every(0);
        said
    }

    /// `thread NAME: STEP`.
    pub(super) fn start_thread(&mut self, line: &str) -> Result<String, String> {
        let (head, step) = line.split_once(": ").ok_or("thread NAME: STEP")?;
        let name = head.split_whitespace().nth(1).ok_or("thread NAME: STEP")?;
        let (mut machine, step) = (self.clone(), step.to_owned());
        let thread = std::thread::spawn(move || {
            machine.step(&step).unwrap_or_else(|why| format!("BAD PROGRAM: {why}"))
        });
        self.threads.lock().map_err(|e| e.to_string())?.insert(name.into(), thread);
        Ok("started".into())
    }

    /// `join NAME`: what the thread's step answered.
    pub(super) fn join_thread(&mut self, name: &str) -> Result<String, String> {
        let thread = self.threads.lock().map_err(|e| e.to_string())?.remove(name);
        thread.ok_or("no such thread")?.join().map_err(|_| "the thread panicked".into())
    }
}
