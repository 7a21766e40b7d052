//! Letting tracees go, or ending them, whatever happened to them or to us.
//!
//! A thread that is stopped and forgotten stays stopped for ever, and so does a child that nobody
//! knows of because its parent was killed while cloning it.
#![allow(unsafe_code)] // waitid

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{PATIENCE, Tracee, ptrace};

/// Between two looks at a thread that is to be let go.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

thread_local! {
    /// The threads that this one knows to trace.
    static TRACED: RefCell<HashSet<u32>> = RefCell::default();
}

/// `tid` is traced from now on, and somebody knows it.
pub(super) fn traced(tid: u32) {
    TRACED.with_borrow_mut(|traced| traced.insert(tid));
}

/// Ends what this thread traces without knowing. Reads all of `/proc`: for the rare case.
pub(super) fn end_strays() {
    // SAFETY: no arguments.
    let own = unsafe { libc::gettid() } as u32;
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let known = TRACED.with_borrow(|traced| traced.contains(&tid));
        if !known && status(tid, "TracerPid:") == Some(own) {
            Tracee::attached(tid, 0, true).kill();
        }
    }
}

/// A number of `/proc/TID/status`.
fn status(tid: u32, name: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

impl Tracee {
    /// It is not traced any more.
    pub(super) fn forget(&mut self) {
        self.attached = false;
        TRACED.with_borrow_mut(|traced| traced.remove(&self.tid));
    }

    /// Whether the thread has died. Reaps it unless it is a child of this process, whose exit
    /// status belongs to somebody else.
    pub(super) fn dead(&self) -> bool {
        const DEATH: i32 = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        // SAFETY: an all-zero siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` takes the answer.
        let asked = unsafe { libc::waitid(libc::P_PID, self.tid, &raw mut info, DEATH) };
        // A tracer is told of stops whether it asks for them or not.
        let died = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
        if asked == 0 && !died {
            return false;
        }
        if asked == 0 && !self.is_our_child() {
            // SAFETY: a dead tracee of this thread; nobody wants its status. SIGCHLD was for us.
            unsafe { libc::waitpid(self.tid as i32, std::ptr::null_mut(), libc::__WALL) };
        }
        true
    }

    /// Whether it is a process (rather than a thread) that this process forked.
    fn is_our_child(&self) -> bool {
        status(self.tid, "PPid:") == Some(std::process::id())
            && status(self.tid, "Tgid:") == Some(self.tid)
    }

    /// Ends the process and waits for it. Only for processes that were cloned here.
    pub fn kill(mut self) {
        // Not kill(), which asks whether we may signal its user. The kernel knows it as ours.
        let _ = ptrace(libc::PTRACE_KILL, self.tid, 0, 0);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.dead() {
                self.forget();
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Lets it go, or ends it, now or after `pause`, and again until that is done. Runs on the
    /// tracer.
    fn finish(mut self, pause: Duration) {
        if self.dead() {
            self.forget();
        } else if self.cloned {
            self.kill();
        } else if self.stopped().is_some() {
            let _ = self.detach();
        } else {
            let later = move || {
                std::thread::sleep(pause);
                let next = (pause * 2).min(LONGEST_PAUSE);
                let tracer = self.tracer.clone();
                tracer.send(move || self.finish(next));
            };
            if std::thread::Builder::new().spawn(later).is_err() {
                tracing::error!("cannot start a thread to let a caller go");
            }
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !std::mem::take(&mut self.attached) {
            return;
        }
        let tracer = self.tracer.clone();
        let begun = self.begun.take();
        let tracee = Self { begun, attached: true, tracer: tracer.clone(), ..*self };
        tracer.send(move || tracee.finish(FIRST_PAUSE));
    }
}
