//! Plays programs in a process of their own, so that a program's end is not the server's.
#![allow(unsafe_code)] // fork, and descriptors that are moved by number.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::coverage::Coverage;
use super::digest::Digest;
use super::generator::Generator;
use super::machine::{Device, Machine, OWN_DESCRIPTORS};
use super::reply::Reply;
use super::serve::{Line, Task};
use super::step::Step;
use super::threads;

/// How long a worker may say nothing. A program takes milliseconds, on a busy machine seconds.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a worker ended.
pub(super) enum End {
    /// It did all, and keeps what programs of digests were answered.
    Done(Option<Keeper>),
    /// It stopped before its end, after that many lines.
    Crashed(String),
    /// It said nothing for too long.
    Hung,
}

/// The calls of a program, and what each was answered.
type Played = Vec<(Step, Reply)>;

/// A worker that has done its task and waits to be asked what its programs were answered, until drop.
pub(super) struct Keeper {
    from: File,
    to: File,
    _process: Process,
}

/// A child of this process, until drop.
struct Process(libc::pid_t);

impl Keeper {
    /// Hands on the lines of the program of `seed`. False if it has not played that, or is gone.
    pub(super) fn tell(
        &mut self,
        seed: u64,
        line: &mut dyn FnMut(Line) -> Result<(), String>,
    ) -> Result<bool, String> {
        let mut told = false;
        if self.to.write_all(&seed.to_le_bytes()).is_err() {
            return Ok(false);
        }
        listen(&self.from, &mut |said| {
            told = true;
            line(said)
        })?;
        Ok(told)
    }
}

impl Process {
    /// Ends it, if it has not ended: its status.
    fn end(&mut self) -> i32 {
        let mut status = 0;
        let child = std::mem::replace(&mut self.0, 0);
        if child != 0 {
            // SAFETY: our own child, which is not needed any more, and not waited for elsewhere.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &mut status, 0);
            }
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Plays each step that `next` makes, and tells it and its reply to `told`.
fn play(
    device: Device,
    mut next: impl FnMut(Option<&Reply>) -> Option<Step>,
    mut told: impl FnMut(&Step, &Reply),
) -> Result<(), Errno> {
    let mut machine = Machine::new(device)?;
    let mut last = None;
    while let Some(step) = next(last.as_ref()) {
        let reply = machine.play(&step);
        told(&step, &reply);
        last = Some(reply);
    }
    Ok(())
}

/// Plays the program of a seed.
fn play_seed(
    device: Device,
    seed: u64,
    calls: u32,
    told: impl FnMut(&Step, &Reply),
) -> Result<(), Errno> {
    let mut generator = Generator::new(seed, calls);
    play(
        device,
        |reply| {
            if let Some(reply) = reply {
                generator.learn(reply);
            }
            generator.step()
        },
        told,
    )
}

/// Writes a line.
fn write(out: &mut impl std::io::Write, line: &Line) -> Result<(), String> {
    serde_json::to_writer(&mut *out, line).map_err(|error| error.to_string())?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(|error| error.to_string())
}

/// Does a task. What programs of digests were answered goes to `kept`.
fn work(
    device: Device,
    task: &Task,
    kept: &mut Vec<(u64, Played)>,
    out: &mut impl std::io::Write,
) -> Result<(), String> {
    let mut say = |line: &Line| write(out, line);
    let failed = |errno: Errno| format!("the program's memory: {errno}");
    match task {
        Task::Digests { first, last, calls } => {
            let mut coverage = Coverage::default();
            for seed in *first..=*last {
                let (mut digest, mut played) = (Digest::default(), Vec::new());
                play_seed(device, seed, *calls, |step, reply| {
                    played.push((step.clone(), reply.clone()));
                    digest.number(super::digest::of(&step.call, reply));
                    coverage.count(&step.call, reply);
                })
                .map_err(failed)?;
                kept.push((seed, played));
                say(&Line::Digest { seed, digest: digest.0 })?;
            }
            say(&Line::Coverage(coverage))?;
        }
        Task::Marks { first, last, calls } => {
            for seed in *first..=*last {
                let (mut marks, mut leans) = (String::new(), false);
                play_seed(device, seed, *calls, |step, reply| {
                    leans |= super::rules::leans_on_others(&step.call);
                    marks.push_str(&super::baseline::mark(&step.call, reply));
                })
                .map_err(failed)?;
                if leans {
                    marks.clear();
                }
                say(&Line::Marks { seed, marks })?;
            }
        }
        Task::Transcript { seed, calls } => {
            let mut played = Vec::new();
            play_seed(device, *seed, *calls, |step, reply| {
                played.push((step.clone(), reply.clone()));
            })
            .map_err(failed)?;
            for (step, reply) in played {
                say(&Line::Played { step, reply })?;
            }
        }
        Task::Program(steps) => {
            let mut steps = steps.iter().cloned();
            let mut played = Vec::new();
            play(
                device,
                |_| steps.next(),
                |step, reply| played.push((step.clone(), reply.clone())),
            )
            .map_err(failed)?;
            for (step, reply) in played {
                say(&Line::Played { step, reply })?;
            }
        }
        Task::Threads { first, last, calls, attached_pasids } => {
            let plan = threads::Plan { calls: *calls, attached_pasids: *attached_pasids };
            for seed in *first..=*last {
                say(&threads::play(device, seed, plan)?)?;
            }
        }
        Task::Kept { .. } | Task::File(_) | Task::Quit => {}
    }
    Ok(())
}

/// Answers for `kept` programs, whose seeds come through `asked`, until that ends.
fn keep(kept: &[(u64, Played)], mut asked: File, out: &mut impl std::io::Write) {
    super::machine::close_all();
    let mut seed = [0; 8];
    while asked.read_exact(&mut seed).is_ok() {
        let seed = u64::from_le_bytes(seed);
        let played = kept.iter().filter(|(of, _)| *of == seed).flat_map(|(_, played)| played);
        for (step, reply) in played {
            let _ = write(out, &Line::Played { step: step.clone(), reply: reply.clone() });
        }
        let _ = write(out, &Line::End);
    }
}

/// Two ends of a pipe.
fn pipe() -> Result<[i32; 2], String> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    Errno::result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })
        .map_err(|errno| format!("pipe: {errno}"))?;
    Ok(ends)
}

/// Runs a task in a child process; each of its lines goes to `line`.
pub(super) fn run(
    device: Device,
    task: &Task,
    line: &mut dyn FnMut(Line) -> Result<(), String>,
) -> Result<End, String> {
    let (ends, asking) = (pipe()?, pipe()?);
    // SAFETY: the server has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child's own descriptors, by number; below OWN_DESCRIPTORS a program finds the
        // same in every worker: /dev/null as its standard ones.
        let (out, asked) = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let out = libc::fcntl(ends[1], libc::F_DUPFD_CLOEXEC, OWN_DESCRIPTORS as i32);
            let asked = libc::fcntl(asking[0], libc::F_DUPFD_CLOEXEC, OWN_DESCRIPTORS as i32);
            let errors = libc::fcntl(2, libc::F_DUPFD_CLOEXEC, OWN_DESCRIPTORS as i32);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            for fd in 0..3 {
                libc::dup2(null, fd);
            }
            libc::syscall(libc::SYS_close_range, 3, OWN_DESCRIPTORS - 1, 0_u32);
            std::panic::set_hook(Box::new(move |info| {
                let said = format!("a worker: {info}\n");
                libc::write(errors, said.as_ptr().cast(), said.len());
            }));
            (File::from_raw_fd(out), File::from_raw_fd(asked))
        };
        let (mut out, mut kept) = (BufWriter::new(out), Vec::new());
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            match work(device, task, &mut kept, &mut out) {
                Ok(()) => Line::End,
                Err(why) => Line::Failed(why),
            }
        }))
        .unwrap_or_else(|_| Line::Failed("a panic".to_owned()));
        let _ = write(&mut out, &done);
        if !kept.is_empty() {
            keep(&kept, asked, &mut out);
        }
        // SAFETY: nothing of the server's runs here.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: our own descriptors, each used once.
    let (from, to) = unsafe {
        libc::close(ends[1]);
        libc::close(asking[0]);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(asking[1]))
    };
    let mut process = Process(child);
    let end = match listen(&from, line)? {
        Some(End::Done(_)) if matches!(task, Task::Digests { .. }) => {
            return Ok(End::Done(Some(Keeper { from, to, _process: process })));
        }
        end => end,
    };
    let status = process.end();
    Ok(match end {
        Some(end) => end,
        None if libc::WIFSIGNALED(status) => {
            End::Crashed(format!("signal {}", libc::WTERMSIG(status)))
        }
        None => End::Crashed(format!("status {status:#x}")),
    })
}

/// Hands on a worker's lines, up to its last one.
fn listen(
    mut from: &File,
    line: &mut dyn FnMut(Line) -> Result<(), String>,
) -> Result<Option<End>, String> {
    use std::os::fd::AsRawFd as _;
    let (mut buffer, mut bytes) = (Vec::new(), [0; 1 << 16]);
    loop {
        let begin = Instant::now();
        let mut poll = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        let ready = unsafe { libc::poll(&mut poll, 1, PATIENCE.as_millis() as i32) };
        if ready == 0 && begin.elapsed() >= PATIENCE {
            return Ok(Some(End::Hung));
        }
        if ready <= 0 {
            continue;
        }
        let got = from.read(&mut bytes).map_err(|error| error.to_string())?;
        if got == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&bytes[..got]);
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let said: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&said).map_err(|error| error.to_string())? {
                Line::End => return Ok(Some(End::Done(None))),
                Line::Failed(why) => return Ok(Some(End::Crashed(why))),
                other => line(other)?,
            }
        }
    }
}
