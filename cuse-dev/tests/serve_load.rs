//! `softiommu serve` under load: processes with contexts, maps and event files that are killed at
//! random. No caller hangs, the daemon answers all along, and afterwards it has what it had
//! before. Then the daemon itself is killed, and nobody waits for it.
//!
//! As a test it is short; `ci/load` runs it at length, by these variables: `LOAD_PROCESSES`,
//! `LOAD_CONTEXTS` (of each process), `LOAD_SECONDS`, `LOAD_SEED`, `SOFTIOMMU_TEST_FRONT` (`fuse`
//! or `cuse`), `SERVE_TEST_PROGRAM` (the softiommu to run).
#![allow(unsafe_code)] // The callers are forks that make raw system calls.

mod common;

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::serve::{
    DESTROY, Daemon, FAULT_QUEUE_ALLOC, IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, PATIENCE,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// The callers' users: these, and root.
const USERS: u32 = 50;
const FIRST_USER: u32 = 61_000;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Small, fast, and the same each time.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The daemon's node, for system calls.
fn path(daemon: &Daemon) -> CString {
    CString::new(daemon.node.to_str().unwrap()).unwrap()
}

fn start(name: &str) -> Option<Daemon> {
    Daemon::start_named(name, &["--max-contexts", "100000"])
}

/// What the daemon has.
#[derive(Clone, Copy, Debug)]
struct Have {
    descriptors: u64,
    threads: u64,
    resident_kib: u64,
}

impl Have {
    fn of(daemon: &Daemon) -> Self {
        let number = |field| {
            let text = daemon.status(field);
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            descriptors: daemon.descriptors() as u64,
            threads: number("Threads:"),
            resident_kib: number("VmRSS:"),
        }
    }
}

/// How a caller ended by itself; else it was killed.
mod status {
    /// The daemon is gone, and a call said so.
    pub(super) const DISCONNECTED: i32 = 0;
    /// The first of the errnos that no call should have given.
    pub(super) const UNEXPECTED: i32 = 1;
}

/// A caller's life: contexts, objects, maps and event files without end. Makes system calls only.
fn live(path: &CString, contexts: usize, uid: u32, mut random: Random) -> i32 {
    let ioctl = |fd: i32, command: u32, argument: *mut u32| {
        // SAFETY: each argument is as long as its first word says.
        if unsafe { libc::ioctl(fd, command as _, argument) } < 0 { Errno::last_raw() } else { 0 }
    };
    // SAFETY: system calls on this process itself; the mapping is new.
    let memory = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if uid != 0 && (libc::setgid(uid) != 0 || libc::setuid(uid) != 0) {
            return status::UNEXPECTED + Errno::last_raw();
        }
        let kind = if random.below(2) == 0 { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), 1 << 16, rights, kind | libc::MAP_ANONYMOUS, -1, 0) as u64
    };
    let mut files = [-1; 64];
    let mut queues = [-1; 4];
    loop {
        let slot = random.below(contexts as u64) as usize;
        let mut error = 0;
        if files[slot] < 0 {
            // SAFETY: the path ends with a zero.
            files[slot] = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
            if files[slot] < 0 {
                error = Errno::last_raw();
            }
        } else if random.below(16) == 0 {
            // SAFETY: the descriptor is this process's own.
            unsafe { libc::close(files[slot]) };
            files[slot] = -1;
        }
        if files[slot] >= 0 && error == 0 {
            let fd = files[slot];
            let mut alloc = [12_u32, 0, 0];
            error = ioctl(fd, IOAS_ALLOC, alloc.as_mut_ptr());
            let ioas = alloc[2];
            if error == 0 {
                // size, flags, ioas_id, 0, user_va, length, iova
                let mut map = [40, 6, ioas, 0, memory as u32, (memory >> 32) as u32, 4096, 0, 0, 0];
                error = ioctl(fd, IOAS_MAP, map.as_mut_ptr());
                if error == 0 && random.below(2) == 0 {
                    let mut unmap = [24, ioas, map[8], map[9], 4096, 0];
                    error = ioctl(fd, IOAS_UNMAP, unmap.as_mut_ptr());
                }
            }
            if error == 0 && random.below(8) == 0 {
                let mut queue = [16, 0, 0, u32::MAX];
                error = ioctl(fd, FAULT_QUEUE_ALLOC, queue.as_mut_ptr());
                if error == 0 {
                    let place = &mut queues[random.below(4) as usize];
                    if *place >= 0 {
                        // SAFETY: the descriptor is this process's own.
                        unsafe { libc::close(*place) };
                    }
                    *place = queue[3] as i32;
                }
            }
            if error == 0 && ioas != 0 && random.below(4) != 0 {
                error = ioctl(fd, DESTROY, [8, ioas].as_mut_ptr());
            }
        }
        match error {
            // Limits that this load may meet, as with the kernel's.
            0 | libc::EAGAIN | libc::ENOMEM => {}
            // What a dead FUSE or CUSE daemon answers; its node may be gone already.
            libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ENOENT | libc::ENXIO => {
                return status::DISCONNECTED;
            }
            other => return status::UNEXPECTED + other,
        }
    }
}

/// All callers that live.
struct Callers {
    node: CString,
    contexts: usize,
    random: Random,
    alive: Vec<Pid>,
    /// Those that were killed, and when.
    killed: HashMap<Pid, Instant>,
    slowest: Duration,
    deaths: u64,
}

impl Callers {
    fn new(node: CString, contexts: usize, random: Random) -> Self {
        let (alive, killed, slowest, deaths) = Default::default();
        Self { node, contexts, random, alive, killed, slowest, deaths }
    }

    fn start(&mut self) {
        let seed = self.random.below(u64::MAX) | 1;
        let uid = match self.random.below(u64::from(USERS) + 4) as u32 {
            user if user < USERS => FIRST_USER + user,
            _ => 0,
        };
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let ended = live(&self.node, self.contexts, uid, Random(seed));
                // SAFETY: nothing of the parent's may run.
                unsafe { libc::_exit(ended) }
            }
            ForkResult::Parent { child } => self.alive.push(child),
        }
    }

    fn kill_one(&mut self) {
        let victim = self.random.below(self.alive.len() as u64) as usize;
        let pid = self.alive.swap_remove(victim);
        kill(pid, Signal::SIGKILL).unwrap();
        self.killed.insert(pid, Instant::now());
    }

    /// Takes note of the dead. A caller that ended by itself tells of an error.
    fn reap(&mut self) {
        let ours = [self.alive.clone(), self.killed.keys().copied().collect()].concat();
        for pid in ours {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => {
                    let since = self.killed.get(&pid).map_or(Duration::ZERO, Instant::elapsed);
                    assert!(since < PATIENCE, "{pid} was killed {since:?} ago and is still there");
                }
                WaitStatus::Exited(_, code) => {
                    let error = Errno::from_raw(code - status::UNEXPECTED);
                    panic!("a caller ended with {code}, which means {error}");
                }
                _ => {
                    self.deaths += 1;
                    if let Some(since) = self.killed.remove(&pid) {
                        self.slowest = self.slowest.max(since.elapsed());
                    }
                    self.alive.retain(|&alive| alive != pid);
                }
            }
        }
    }

    /// Kills and starts for `time`, with `processes` at any moment.
    fn churn(&mut self, processes: usize, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            while self.alive.len() < processes {
                self.start();
            }
            for _ in 0..=self.random.below(1 + processes as u64 / 50) {
                self.kill_one();
            }
            std::thread::sleep(Duration::from_millis(self.random.below(20)));
            self.reap();
        }
    }

    fn kill_all(&mut self) {
        while !self.alive.is_empty() {
            self.kill_one();
        }
        while !self.killed.is_empty() {
            self.reap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for &pid in self.alive.iter().chain(self.killed.keys()) {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// One call that a caller who is alone would make at once. Answers how long it took.
fn probe(path: &CString) -> Duration {
    let begin = Instant::now();
    // SAFETY: system calls with arguments that live as long.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        assert!(fd >= 0, "{}", Errno::last());
        let mut alloc = [12_u32, 0, 0];
        assert_eq!(libc::ioctl(fd, IOAS_ALLOC as _, alloc.as_mut_ptr()), 0, "{}", Errno::last());
        libc::close(fd);
    }
    begin.elapsed()
}

/// Waits until the daemon has no more than `before`, give or take.
fn wait_for_baseline(daemon: &Daemon, before: Have) -> Have {
    let begin = Instant::now();
    loop {
        // What is known of a dead process is dropped when another calls.
        probe(&path(daemon));
        let now = Have::of(daemon);
        let memory = before.resident_kib + before.resident_kib / 4 + 8192;
        // Idle workers of each node and user may stay, each with what it reads by.
        let workers = now.threads.saturating_sub(before.threads);
        let small = workers <= 16 && now.descriptors <= before.descriptors + 8 + workers;
        if small && now.resident_kib <= memory {
            return now;
        }
        assert!(begin.elapsed() < PATIENCE, "{now:?} after {before:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn zombies_of(parent: u32) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        if rest.starts_with(&format!("Z {parent} ")) {
            found.push(stat);
        }
    }
    found
}

#[test]
fn callers_that_are_killed_at_random_leave_nothing_behind() {
    let processes = variable("LOAD_PROCESSES", 24) as usize;
    let contexts = variable("LOAD_CONTEXTS", 10) as usize;
    let time = Duration::from_secs(variable("LOAD_SECONDS", 3));
    let random = Random(variable("LOAD_SEED", 0x5eed) | 1);
    let name = format!("softiommu-load-{}", std::process::id());
    let Some(mut daemon) = start(&name) else { return };
    let node = path(&daemon);
    let (done, slowest, probes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let took = probe(&node);
                assert!(took < PATIENCE, "the daemon took {took:?}");
                slowest.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
                probes.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // Ends the thread above where this one fails.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&done);
        let mut callers = Callers::new(node.clone(), contexts, random);
        let idle = Have::of(&daemon);
        // A first wave, after which the allocator has the memory that it keeps.
        callers.churn(processes, time / 3);
        callers.kill_all();
        let before = wait_for_baseline(&daemon, Have { resident_kib: u64::MAX / 2, ..idle });
        eprintln!("idle {idle:?}\nafter the first wave {before:?}");
        // Twice, so that who reads this sees whether what is kept still grows.
        for _ in 0..2 {
            callers.churn(processes, time / 2);
            let busy = Have::of(&daemon);
            callers.kill_all();
            let after = wait_for_baseline(&daemon, before);
            eprintln!("busy {busy:?}\nafter {after:?}");
        }
        eprintln!(
            "{} callers of {processes} at a time died, the slowest in {:?}",
            callers.deaths, callers.slowest
        );
        assert_eq!(zombies_of(daemon.pid()), Vec::<String>::new());
    });
    let (probes, slowest) = (probes.into_inner(), Duration::from_micros(slowest.into_inner()));
    eprintln!("{probes} probes were answered all along, the slowest in {slowest:?}");
    killed_daemon(&mut daemon, &name, processes, contexts, random);
}

/// The daemon is killed in the middle of it: every caller is told, and the next daemon starts.
fn killed_daemon(
    daemon: &mut Daemon,
    name: &str,
    processes: usize,
    contexts: usize,
    random: Random,
) {
    let pid = Pid::from_raw(daemon.process.id() as i32);
    let mut callers = Callers::new(path(daemon), contexts, random);
    callers.churn(processes, Duration::from_millis(500));
    let begin = Instant::now();
    kill(pid, Signal::SIGKILL).unwrap();
    let mut told = 0;
    for pid in callers.alive.drain(..) {
        loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => {
                    assert!(begin.elapsed() < PATIENCE, "{pid} waits for a dead daemon");
                    std::thread::sleep(Duration::from_millis(1));
                }
                WaitStatus::Exited(_, status::DISCONNECTED) => break told += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    let took = begin.elapsed();
    callers.kill_all();
    drop(callers);
    eprintln!("{told} callers were told of the daemon's death, the last after {took:?}");
    daemon.process.wait().unwrap();
    let again = start(name).unwrap();
    probe(&path(&again));
}
