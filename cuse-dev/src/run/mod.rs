//! `softiommu run`: a program whose `/dev/iommu` is softiommu.
//!
//! It needs no device node, no module and, as far as the kernel allows, no root. The program is
//! started under a seccomp filter ([`filter`]) that reports its opens, its ioctls of type `;` and
//! its mmaps of files to a supervisor ([`supervisor`]), which answers the ones that are ours and
//! lets the rest through. Forks, threads and what they exec are under the same filter.
//!
//! | what the program does | what happens |
//! |---|---|
//! | opens a path of ours ([`paths`]) | gets a memfd that stands for a context ([`open_files`]) |
//! | calls an ioctl on it | the engine answers, with the thread as its caller ([`caller`]) |
//! | gets a descriptor from an ioctl | it is put into its table ([`notify`]) |
//! | maps it | the engine says what may be mapped; the kernel maps the memfd's pages |
//! | closes it for the last time | [`open_files`] notices, and the context is released |
//! | reads or writes nothing (0 bytes) of it | FUSE would not hear of it, so we answer |
//! | reads `/proc/PID/status` | [`status`] shows what the engine pinned |
//! | asks for faults | [`fail_nth`] and [`debugfs`] stand for the kernel's files |
//!
//! With the node of a daemon in place of an engine, less is to be done: [`via`].
//! [`trace`](crate::trace) shows each ioctl to who asks for it.
//! [`control`] answers who asks from outside. [`front`] tells which processes there are, and why.

mod arch;
mod caller;
mod context;
mod debugfs;
mod descriptors;
pub(crate) mod fail_nth;
pub(crate) mod filter;
mod front;
mod launch;
pub(crate) mod memfd;
pub(crate) mod notify;
mod open_files;
mod paths;
mod process;
mod status;
mod supervisor;
mod turns;
mod via;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use engine::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};

use crate::caller::sys;
use crate::control::{self, Warnings};
use crate::memory::{Host, PfnMode};
use front::{News, ToFront};
use launch::Inherited;
use supervisor::Supervisor;

/// How to run a program.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program and its arguments; not empty.
    pub command: Vec<OsString>,
    /// Exit with 1 when the program succeeded and left an object, a pin or a descriptor behind.
    pub strict: bool,
    /// Do as Linux does where it is at fault.
    pub quirks: bool,
    /// The node of a `softiommu serve` that answers in place of an engine of our own.
    pub via: Option<PathBuf>,
    /// Where page frame numbers come from.
    pub pfn: PfnMode,
    /// Where the control socket is; nothing for where `softiommu show` looks by itself.
    pub control: Option<PathBuf>,
    /// What was warned of, for who asks at the control socket.
    pub warnings: Warnings,
    /// Whether `SIGPIPE` was ignored when this process started (Rust's runtime changes it).
    pub ignores_pipe: bool,
}

/// Runs the program, and ends this process as the program ended. `prepare` is run in the process
/// that answers calls, before it has other threads: for what logs and reports need.
///
/// To be called while this process has one thread.
pub fn run(options: Options, prepare: impl FnOnce() -> io::Result<()>) -> ! {
    match start(options, prepare) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("softiommu: cannot start: {error}");
            std::process::exit(125)
        }
    }
}

fn start(
    options: Options,
    prepare: impl FnOnce() -> io::Result<()>,
) -> io::Result<std::convert::Infallible> {
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let inherited = Inherited { mask, ignores_pipe: options.ignores_pipe };
    let (front, supervisor) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    #[allow(unsafe_code)] // fork, while there is one thread
    // SAFETY: this process has one thread, so no lock is held that the child could wait for.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(supervisor);
            descriptors::keep_only(&[front.as_fd()])?;
            front::stand_for_program(&front, child, options.strict)
        }
        ForkResult::Child => {
            drop(front);
            let to_front = ToFront(supervisor);
            let status = match supervise(&options, inherited, &to_front, prepare) {
                Ok(()) => 0,
                Err(Failure::Launch(error)) => {
                    eprintln!("softiommu: {error}");
                    to_front.tell(News::Failed(error.exit_status().into()));
                    1
                }
                Err(Failure::Io(error)) => {
                    eprintln!("softiommu: cannot supervise: {error}");
                    to_front.tell(News::Failed(125));
                    1
                }
            };
            std::process::exit(status)
        }
    }
}

enum Failure {
    Launch(launch::LaunchError),
    Io(io::Error),
}

impl<E: Into<io::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// The supervisor's life.
fn supervise(
    options: &Options,
    inherited: Inherited,
    front: &ToFront,
    prepare: impl FnOnce() -> io::Result<()>,
) -> Result<(), Failure> {
    // Those who outlive their parents become our children: we may look at their memory only
    // while they are our descendants, where Yama says so.
    nix::sys::prctl::set_child_subreaper(true)?;
    let (name, started) = (&options.command[0], nix::unistd::getppid().as_raw() as u32);
    let front_process = sys::pidfd_open(started)?;
    let launched = launch::launch(&options.command, inherited).map_err(Failure::Launch)?;
    let pid = launched.pid;
    let program = KillOnDrop(pid);
    setsid()?;
    ignore_signals()?;
    let kept = [
        front.0.as_fd(),
        front_process.as_fd(),
        launched.listener.as_fd(),
        launched.status.as_fd(),
    ];
    descriptors::keep_only(&kept)?;
    raise_descriptor_limit();
    prepare()?;
    let host = Host::new(options.pfn)?;
    if options.quirks {
        host.want_exact_rights();
    }
    let via = options.via.as_deref().map(via::Node::open).transpose().map_err(io::Error::other)?;
    let supervisor = Supervisor::new(launched.listener, host, options.quirks, via)?;
    supervisor.start()?;
    let control = listen(options, started, &supervisor)?;
    if let Err(error) = launch::started(&launched.status, name) {
        let _ = waitpid(pid, None);
        return Err(Failure::Launch(error));
    }
    front.tell(News::Started(pid.as_raw()));
    warn_if_hidden(pid, name);
    die_with_front(front, pid)?;
    std::mem::forget(program);
    wait_for_tree(pid, front, front_process.as_fd());
    // Whoever waits for the front finds no socket of an ended daemon.
    drop(control);
    front.tell(News::Left(supervisor.left_behind()));
    Ok(())
}

/// Says so when the program's memory and descriptors are not for us to see: its calls cannot be
/// answered then, and the kernel answers them.
fn warn_if_hidden(pid: Pid, name: &OsStr) {
    let pidfd = sys::pidfd_open(pid.as_raw() as u32);
    let looked = pidfd.and_then(|pidfd| sys::pidfd_getfd(pidfd.as_fd(), 0));
    if matches!(looked, Err(Errno::EPERM | Errno::EACCES)) {
        let message = format!(
            "may not look into {name:?}, so its /dev/iommu is the kernel's (is it \
             set-user-id, or unreadable, or is sysctl kernel.yama.ptrace_scope above 1?)"
        );
        tell(&message);
    }
}

/// Says something to the user, and into the log.
fn tell(message: &str) {
    eprintln!("softiommu: {message}");
    // Standard error, where it is the log, has it already, unless somebody wants to know all.
    tracing::info!("{message}");
}

/// Opens the control socket of the daemon that was started as process `pid`. One that nobody asked
/// for is no reason to fail.
fn listen(
    options: &Options,
    pid: u32,
    supervisor: &Supervisor,
) -> io::Result<Option<control::Server>> {
    let path = match &options.control {
        Some(path) => Ok(path.clone()),
        None => control::place::socket_of(pid),
    };
    let server = match path.and_then(|path| control::Server::bind(&path)) {
        Ok(server) => server,
        Err(error) if options.control.is_none() => {
            tracing::debug!(%error, "no control socket");
            return Ok(None);
        }
        Err(error) => {
            return Err(io::Error::new(error.kind(), format!("control socket: {error}")));
        }
    };
    let words: Vec<_> = options.command.iter().map(|word| word.to_string_lossy()).collect();
    server.start(control::server::Subject {
        engine: supervisor.engine().clone(),
        warnings: options.warnings.clone(),
        pid,
        program: words.join(" "),
        since: Instant::now(),
    })?;
    tracing::debug!(path = %server.path().display(), "control socket");
    Ok(Some(server))
}

/// A program that could not be supervised must not wait for its supervisor.
struct KillOnDrop(Pid);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGKILL);
    }
}

/// The terminal's signals and polite requests are the program's business; this process ends when
/// the last of the tree is gone.
fn ignore_signals() -> io::Result<()> {
    use Signal::{SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
    use Signal::{SIGUSR1, SIGUSR2};
    for ignored in [
        SIGALRM, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
        SIGUSR2,
    ] {
        #[allow(unsafe_code)] // signal dispositions are process-wide
        // SAFETY: no handler of ours is installed.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    #[allow(unsafe_code)] // see above
    // SAFETY: no handler of ours is installed. An ignored SIGCHLD would reap the program unseen.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// A context costs one descriptor here.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Kills the program when its front is killed: who kills the process that they started means the
/// program.
fn die_with_front(front: &ToFront, pid: Pid) -> io::Result<()> {
    let front = front.0.try_clone()?;
    let program = sys::pidfd_open(pid.as_raw() as u32)?;
    std::thread::Builder::new().name("front".into()).spawn(move || {
        let mut fds = [PollFd::new(front.as_fd(), PollFlags::empty())];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let nothing = std::ptr::null::<libc::siginfo_t>();
        let program = program.as_raw_fd();
        #[allow(unsafe_code)] // no safe wrapper
        // SAFETY: the pointer may be null.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, program, libc::SIGKILL, nothing, 0)
        };
    })?;
    Ok(())
}

/// Waits until the program and all that it started are gone, as `strace -f` does. A front that
/// stopped as the program did goes on as it does, whoever it was that continued or killed it.
fn wait_for_tree(program: Pid, front: &ToFront, front_process: BorrowedFd<'_>) {
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED | WaitPidFlag::__WALL;
    let mut stopped = false;
    loop {
        let (pid, news) = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, News::Exited(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, News::Killed(signal as i32)),
            Ok(WaitStatus::Stopped(pid, signal)) => (pid, News::Stopped(signal as i32)),
            Ok(WaitStatus::Continued(pid)) => (pid, News::Continued),
            // A real-time signal has no name in `nix`, and its status was lost with it.
            Err(Errno::EINVAL) | Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if pid == program {
            front.tell(news);
            let stops = matches!(news, News::Stopped(_));
            if std::mem::replace(&mut stopped, stops) && !stops {
                let _ = sys::signal(front_process, libc::SIGCONT);
            }
        }
    }
}
