//! System calls run in a thread of another process, by ptrace.
//!
//! Some things only the caller itself can do: have a child that shares its memory, or receive a
//! descriptor without a seccomp listener. A [`Tracee`] is a thread stopped for that. It runs
//! calls through a `syscall` instruction of its own code, with all signals blocked, and goes on
//! as if nothing had happened: its registers and signal mask are put back, and an interrupted
//! call of its own is restarted by the kernel under the kernel's rules.
//!
//! The kernel ties a tracee to the *thread* that traces it, so all of this runs on threads made for
//! it: [`Tracer`]. Stops are found by asking the tracee's state rather than by
//! `waitpid` alone, because a `waitpid` anywhere else in this process may take the report.
#![allow(unsafe_code)] // ptrace

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
pub(crate) mod arch;
mod ends;
mod tracer;
mod waiting;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use engine::Errno;
pub use tracer::Tracer;
pub use waiting::CALL_AGAIN;

/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a call may take that was begun in a stopped thread.
const CALL_PATIENCE: Duration = Duration::from_secs(120);
/// How often an injected call is made again that a stop of its process interrupted.
const MOST_AGAIN: u32 = 100;
/// Between two looks at a thread whose call takes long.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// How long a stop is awaited before the first sleep. A thread that yields on a busy machine is not
/// back before others have used up their turns; one that sleeps is, as soon as it wakes.
const SPIN: Duration = Duration::from_micros(4);
/// The first sleep.
const FIRST_PAUSE: Duration = Duration::from_micros(10);

/// A stack pointer, of who has no stack: never mapped.
const NOWHERE: u64 = 8;

/// Ends the tracee when this process ends.
pub const EXIT_KILL: u64 = libc::PTRACE_O_EXITKILL as u64;
/// Traces what the tracee clones or forks, from its first instruction.
pub const TRACE_CHILDREN: u64 =
    (libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK) as u64;
const SYSTEM_CALLS: u64 = libc::PTRACE_O_TRACESYSGOOD as u64;
/// `PTRACE_O_SUSPEND_SECCOMP`: the tracee's filters rest. Needs CAP_SYS_ADMIN.
const SUSPEND_SECCOMP: u64 = 1 << 21;
/// `PTRACE_SETSIGMASK`.
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;

fn ptrace(request: libc::c_uint, tid: u32, address: usize, data: usize) -> Result<i64, Errno> {
    // SAFETY: callers give addresses that the request may read or write.
    let result = unsafe { libc::ptrace(request as _, tid as libc::pid_t, address, data) };
    if result == -1 { Err(Errno::last()) } else { Ok(result) }
}

/// Why a thread is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// On entry to a system call.
    Entry,
    /// On return from a system call.
    Exit,
    /// Anything else: an interrupt, a new child, a signal.
    Other,
}

/// A thread traced by this one. One that is dropped is let go as soon as it stops, or ended if it
/// was cloned here ([`ends`]).
#[derive(Debug)]
pub struct Tracee {
    tid: u32,
    options: u64,
    begun: Option<Begun>,
    /// Cloned here, so that nobody else wants it.
    cloned: bool,
    /// Still traced.
    attached: bool,
    /// Whose thread traces it.
    tracer: Tracer,
}

/// What the tracee was doing before calls were run in it.
#[derive(Debug)]
struct Begun {
    registers: arch::Registers,
    mask: u64,
    /// Address of a `syscall` instruction in the tracee.
    at: u64,
}

impl Tracee {
    /// Begins to trace the running thread `tid`. `EPERM` when it may not be or is traced already.
    pub fn seize(tid: u32, options: u64) -> Result<Self, Errno> {
        let options = options | SYSTEM_CALLS;
        let with = |options: u64| ptrace(libc::PTRACE_SEIZE, tid, 0, options as usize);
        // Filters of the caller's own might kill it for a call that it did not make.
        match with(options | SUSPEND_SECCOMP) {
            Ok(_) => Ok(Self::attached(tid, options | SUSPEND_SECCOMP, false)),
            Err(_) => with(options).map(|_| Self::attached(tid, options, false)),
        }
    }

    fn attached(tid: u32, options: u64, cloned: bool) -> Self {
        ends::traced(tid);
        let (begun, tracer) = (None, Tracer::current());
        Self { tid, options, begun, cloned, attached: true, tracer }
    }

    /// A child that a tracee with [`TRACE_CHILDREN`] made. It is traced already, and stops before
    /// its first instruction.
    fn child(tid: u32, options: u64) -> Result<Self, Errno> {
        let mut child = Self::attached(tid, options, true);
        child.wait(PATIENCE)?;
        child.set_options(options | SYSTEM_CALLS)?;
        Ok(child)
    }

    /// Its thread id.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    fn set_options(&mut self, options: u64) -> Result<(), Errno> {
        ptrace(libc::PTRACE_SETOPTIONS, self.tid, 0, options as usize)?;
        self.options = options;
        Ok(())
    }

    /// Asks the thread to stop: at once in user code or an interruptible call, else on its way
    /// out of the kernel.
    pub fn interrupt(&self) -> Result<(), Errno> {
        ptrace(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map(drop)
    }

    /// The stop that the thread is in; `None` while it runs.
    fn stopped(&self) -> Option<Stop> {
        /// `PTRACE_GET_SYSCALL_INFO`.
        const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
        let mut info = [0_u64; 16];
        let room = size_of_val(&info);
        ptrace(GET_SYSCALL_INFO, self.tid, room, info.as_mut_ptr() as usize).ok()?;
        Some(match info[0] as u8 {
            1 => Stop::Entry,
            2 => Stop::Exit,
            _ => Stop::Other,
        })
    }

    /// Waits until the thread stops. `ETIMEDOUT` when it does not, `ESRCH` when it died.
    pub fn wait(&self, patience: Duration) -> Result<Stop, Errno> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(stop) = self.stopped() {
                return Ok(stop);
            }
            let waited = start.elapsed();
            if waited < SPIN {
                std::hint::spin_loop();
                continue;
            }
            if self.dead() {
                return Err(Errno::ESRCH);
            }
            if waited > patience {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::sleep(pause);
            // Long calls are nearly always large pins.
            let most = (waited / 16).max(Duration::from_micros(250));
            pause = (pause * 2).min(most).min(LONGEST_PAUSE);
        }
    }

    fn registers(&self) -> Result<arch::Registers, Errno> {
        // SAFETY: all of the structure's fields are integers.
        let mut registers: arch::Registers = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETREGS, self.tid, 0, &raw mut registers as usize)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &arch::Registers) -> Result<(), Errno> {
        ptrace(libc::PTRACE_SETREGS, self.tid, 0, &raw const *registers as usize).map(drop)
    }

    /// Prepares the stopped thread for [`Tracee::call`]. `ENOEXEC` when it is no 64-bit code or
    /// has no `syscall` instruction.
    pub fn begin(&mut self) -> Result<(), Errno> {
        let registers = self.registers()?;
        if !arch::native(&registers) {
            return Err(Errno::ENOEXEC);
        }
        let at = self.instruction(&registers).ok_or(Errno::ENOEXEC)?;
        let mut mask = 0_u64;
        ptrace(PTRACE_GETSIGMASK, self.tid, 8, &raw mut mask as usize)?;
        let all = u64::MAX;
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, &raw const all as usize)?;
        self.begun = Some(Begun { registers, mask, at });
        Ok(())
    }

    /// A `syscall` instruction: the one that the thread just used, or one of the vDSO.
    fn instruction(&self, registers: &arch::Registers) -> Option<u64> {
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.tid)).ok()?;
        let last = arch::last_instruction(registers);
        let mut bytes = arch::SYSCALL;
        if memory.read_exact_at(&mut bytes, last).is_ok() && bytes == arch::SYSCALL {
            return Some(last);
        }
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.tid)).ok()?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let mut code = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
        memory.read_exact_at(&mut code, start).ok()?;
        let index = code.windows(arch::SYSCALL.len()).position(|two| two == arch::SYSCALL)?;
        Some(start + index as u64)
    }

    /// `bytes` of the thread's stack that it does not use, between [`Tracee::begin`] and
    /// [`Tracee::end`].
    pub fn scratch(&self, bytes: u64) -> Option<u64> {
        self.begun.as_ref().map(|begun| arch::scratch(&begun.registers, bytes))
    }

    /// Runs a system call in the thread: its result or errno. `ESRCH` also when the thread died.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Errno> {
        self.call_watched(number, arguments, &mut |_| {})
    }

    /// Like [`Tracee::call`]; `each` sees each stop that is no call's.
    fn call_watched(
        &mut self,
        number: i64,
        arguments: [u64; 6],
        each: &mut dyn FnMut(&Self),
    ) -> Result<u64, Errno> {
        let begun = self.begun.as_ref().ok_or(Errno::EINVAL)?;
        let ready = arch::call(&begun.registers, begun.at, number, arguments);
        self.set_registers(&ready)?;
        let (mut entered, mut again) = (false, 0);
        let mut signal = 0;
        loop {
            let deliver = std::mem::take(&mut signal);
            ptrace(libc::PTRACE_SYSCALL, self.tid, 0, deliver as usize)?;
            match self.wait(CALL_PATIENCE)? {
                Stop::Entry => entered = true,
                Stop::Exit if entered => {
                    let registers = self.registers()?;
                    // A stop of the process interrupted it. The kernel would make it again on a way
                    // out that an injected call does not take.
                    if !arch::asks_again(&registers) || again == MOST_AGAIN {
                        return arch::result(&registers);
                    }
                    (entered, again) = (false, again + 1);
                    self.set_registers(&ready)?;
                }
                Stop::Exit => {}
                Stop::Other => {
                    // The kernel stops the process then, all but this thread as long as we resume
                    // it, and knows by itself whether SIGCONT came before it is let go.
                    if self.stopped_by_signal() {
                        signal = libc::SIGSTOP;
                    }
                    each(self);
                }
            }
        }
    }

    /// Whether the stop is the delivery of `SIGSTOP`, which cannot be blocked.
    fn stopped_by_signal(&self) -> bool {
        // SAFETY: an all-zero siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let asked = ptrace(libc::PTRACE_GETSIGINFO, self.tid, 0, &raw mut info as usize);
        // Stops of ptrace's own carry an event in the code, or have no siginfo.
        asked.is_ok() && info.si_signo == libc::SIGSTOP && info.si_code >> 8 <= 0
    }

    /// Clones a child that shares the thread's memory and descriptors and sends no signal when it
    /// ends. It is traced, has `options`, and runs no instruction of its own: should this process
    /// be killed before it has them, it dies where it would use the thread's stack. Answers also
    /// the number by which the thread knows it.
    pub fn clone_child(&mut self, options: u64) -> Result<(Tracee, u64), Errno> {
        let before = self.options;
        self.set_options(before | TRACE_CHILDREN)?;
        let mut child = None;
        let flags = (libc::CLONE_VM | libc::CLONE_FILES) as u64;
        let arguments = [flags, NOWHERE, 0, 0, 0, 0];
        let number = self.call_watched(libc::SYS_clone, arguments, &mut |tracee| {
            let mut message: libc::c_ulong = 0;
            let at = &raw mut message as usize;
            if ptrace(libc::PTRACE_GETEVENTMSG, tracee.tid, 0, at).is_ok() && message != 0 {
                child = u32::try_from(message).ok();
            }
        });
        let made = child.map(|tid| Self::child(tid, options | (before & SUSPEND_SECCOMP)));
        if number == Err(Errno::ESRCH) && made.is_none() {
            // Killed between making the child and telling about it.
            ends::end_strays();
        }
        self.set_options(before)?;
        let number = number?;
        Ok((made.ok_or(Errno::ECHILD)??, number))
    }

    /// From now on the call that the thread was stopped in has this result, and is not made again:
    /// between [`Tracee::begin`] and [`Tracee::end`].
    pub fn set_result(&mut self, result: i64) -> Result<(), Errno> {
        let begun = self.begun.as_mut().ok_or(Errno::EINVAL)?;
        begun.registers = arch::returning(&begun.registers, result);
        Ok(())
    }

    /// Puts the thread's registers and signal mask back: an interrupted call is restarted. The
    /// thread stays stopped.
    pub fn end(&mut self) -> Result<(), Errno> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        let registers = arch::restarted(&begun.registers);
        self.set_registers(registers.as_ref().unwrap_or(&begun.registers))?;
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, &raw const begun.mask as usize)?;
        if registers.is_some() {
            return Ok(());
        }
        // From the way out of an injected call the kernel would not restart the thread's own. A
        // stop where signals are handled is where it does.
        self.interrupt()?;
        ptrace(libc::PTRACE_CONT, self.tid, 0, 0)?;
        self.wait(PATIENCE).map(drop)
    }

    /// Lets the thread run on. A thread that does not stop for it within the patience is let go
    /// when it does.
    pub fn detach(mut self) -> Result<(), Errno> {
        if self.stopped().is_none() {
            self.interrupt()?;
            self.wait(PATIENCE)?;
        }
        let ended = self.end();
        ptrace(libc::PTRACE_DETACH, self.tid, 0, 0)?;
        self.forget();
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A child that is gone when its test is, however that ends.
    struct Cat(Child);

    impl Drop for Cat {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl std::ops::Deref for Cat {
        type Target = Child;
        fn deref(&self) -> &Child {
            &self.0
        }
    }

    impl std::ops::DerefMut for Cat {
        fn deref_mut(&mut self) -> &mut Child {
            &mut self.0
        }
    }

    /// A process that blocks until its input closes.
    fn cat() -> Cat {
        Cat(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn seized(child: &Child) -> Option<(u32, bool)> {
        let tid = child.id();
        // Where another tracer or a policy forbids it there is nothing to test.
        Tracer::new()
            .unwrap()
            .run(move || Tracee::seize(tid, 0).map(|tracee| (tid, tracee.detach().is_ok())))
            .unwrap()
            .inspect_err(|error| eprintln!("SKIPPED: ptrace: {error}"))
            .ok()
    }

    #[test]
    fn a_call_in_a_blocked_process_is_not_noticed() {
        let child = cat();
        let pid = child.id();
        if seized(&child).is_none() {
            return;
        }
        for _ in 0..20 {
            let called = Tracer::new().unwrap().run(move || {
                let mut tracee = Tracee::seize(pid, 0)?;
                tracee.interrupt()?;
                tracee.wait(PATIENCE)?;
                tracee.begin()?;
                let called = tracee.call(libc::SYS_getpid, [0; 6]);
                let failed = tracee.call(libc::SYS_close, [9999, 0, 0, 0, 0, 0]);
                tracee.detach()?;
                Ok::<_, Errno>((called, failed))
            });
            assert_eq!(called.unwrap(), Ok((Ok(pid.into()), Err(Errno::EBADF))));
        }
        // Its interrupted read was restarted.
        goes_on_and_ends(child);
    }

    /// It copies what it reads, as before, and ends with its input.
    fn goes_on_and_ends(mut child: Cat) {
        use std::io::{Read, Write};
        child.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
        let mut seen = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_cloned_child_runs_calls_and_leaves_nothing() {
        let mut child = cat();
        let pid = child.id();
        if seized(&child).is_none() {
            return;
        }
        let made = Tracer::new().unwrap().run(move || {
            let mut tracee = Tracee::seize(pid, 0)?;
            tracee.interrupt()?;
            tracee.wait(PATIENCE)?;
            tracee.begin()?;
            let (mut clone, number) = tracee.clone_child(EXIT_KILL)?;
            clone.begin()?;
            let own = clone.call(libc::SYS_getpid, [0; 6])?;
            let tid = clone.tid();
            let same = crate::caller::sys::same_memory(pid, tid);
            clone.kill();
            let reaped = tracee.call(libc::SYS_wait4, [number, 0, libc::__WALL as u64, 0, 0, 0])?;
            tracee.detach()?;
            Ok::<_, Errno>((own == number, reaped == number, same, tid))
        });
        let (own, reaped, same, tid) = made.unwrap().unwrap();
        assert!(own && reaped);
        assert_eq!(same, Ok(true));
        assert!(!std::path::Path::new(&format!("/proc/{tid}")).exists());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_child_that_is_let_go_does_not_run_on_the_callers_stack() {
        let child = cat();
        let pid = child.id();
        if seized(&child).is_none() {
            return;
        }
        let ended = Tracer::new().unwrap().run(move || {
            let mut tracee = Tracee::seize(pid, 0)?;
            tracee.interrupt()?;
            tracee.wait(PATIENCE)?;
            tracee.begin()?;
            let (mut clone, number) = tracee.clone_child(0)?;
            // As the kernel does with the tracees of who is killed.
            ptrace(libc::PTRACE_DETACH, clone.tid, 0, 0)?;
            clone.forget();
            let at = tracee.scratch(8).unwrap();
            let reaped =
                tracee.call(libc::SYS_wait4, [number, at, libc::__WALL as u64, 0, 0, 0])?;
            let mut status = [0; 4];
            let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
            memory.read_exact_at(&mut status, at).unwrap();
            tracee.detach()?;
            Ok::<_, Errno>((reaped == number, i32::from_ne_bytes(status)))
        });
        let (reaped, status) = ended.unwrap().unwrap();
        assert!(reaped && libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
        goes_on_and_ends(child);
    }

    #[test]
    fn a_dead_process_is_reported_and_its_status_kept() {
        let mut child = cat();
        let pid = child.id();
        if seized(&child).is_none() {
            return;
        }
        let result = Tracer::new().unwrap().run(move || {
            let tracee = Tracee::seize(pid, 0)?;
            // SAFETY: a child that this test made and did not reap.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            tracee.wait(Duration::from_secs(60))
        });
        assert_eq!(result, Some(Err(Errno::ESRCH)));
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
