//! `softiommu serve`: a `/dev/iommu` for the whole machine.
//!
//! | what happens | where |
//! |---|---|
//! | the node appears: a CUSE device, or a FUSE file | [`front`] |
//! | what the daemon need not do any more is taken from it | [`confine`] |
//! | an open becomes a context, an ioctl goes to the engine | [`daemon`], [`opens`] |
//! | the caller's memory, files and descriptors | [`caller`], [`identify`] |
//! | `softiommu run --via` is helped with what FUSE and CUSE lack | [`assist`] |
//! | a descriptor is put into the caller's table | [`deliver`], [`stopped`] |
//! | the daemon ends, and the node with it | [`janitor`] |
//!
//! `docs/threat-model.md` says who is trusted with what.

mod assist;
mod caller;
mod confine;
mod control;
mod daemon;
mod deliver;
mod front;
pub(crate) mod identify;
mod janitor;
mod opens;
mod ready;
mod stopped;
mod task;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{Engine, Errno, Node};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use crate::caller::Callers;
use crate::control::Warnings;
use crate::event_files::EventFiles;
use crate::memory::{Host, PfnMode};
use crate::wire;
use daemon::{Daemon, NodeHandler};
pub use front::{Front, Taken};
pub use opens::Limits;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node: `/dev/NAME`.
    pub name: String,
    /// VFIO's container beside it, `/dev/vfio/vfio`, if it is wanted.
    pub container: bool,
    /// By what the node is brought up.
    pub front: Front,
    /// The node's permission bits.
    pub mode: u32,
    /// The node's group.
    pub group: u32,
    /// Stay in the foreground. Else the call returns to the shell once the node is there.
    pub foreground: bool,
    /// Do as Linux does where it is at fault.
    pub quirks: bool,
    /// What each user may have.
    pub limits: Limits,
    /// Where page frame numbers come from. Real ones need CAP_SYS_ADMIN for good.
    pub pfn: PfnMode,
    /// Where the control socket is; nothing for where `softiommu show` looks by itself.
    pub control: Option<PathBuf>,
    /// What was warned of, for who asks at the control socket.
    pub warnings: Warnings,
}

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node cannot be brought up.
    #[error(transparent)]
    Front(#[from] front::FrontError),
    /// The daemon cannot be set up.
    #[error("cannot {0}: {1}")]
    Setup(&'static str, #[source] io::Error),
}

/// Serves until SIGTERM or SIGINT, or until the node is taken away. `prepare` is run in the
/// process that serves, before it has other threads: for logging.
///
/// To be called while this process has one thread.
pub fn serve(options: &Options, prepare: impl FnOnce() -> io::Result<()>) -> Result<(), Error> {
    let setup = |what| move |error: Errno| Error::Setup(what, error.into());
    let ready = ready::Ready::new(options.foreground).map_err(setup("go to the background"))?;
    prepare().map_err(|error| Error::Setup("set up logging", error))?;
    let signals = wait_for_signals().map_err(setup("wait for signals"))?;
    raise_descriptor_limit();
    let mut fronts = front::bring_up(options)?;
    let mut control = control::listen(options.control.as_deref())?;
    let janitor = janitor::start(&mut fronts, &mut control).map_err(setup("start the janitor"))?;
    let events = EventFiles::mount().map_err(setup("mount the event files"))?;
    let host = Host::new(options.pfn).map_err(|error| Error::Setup("look at memory", error))?;
    if options.quirks {
        host.want_exact_rights();
    }
    confine::confine(options.pfn).map_err(setup("give up privileges"))?;
    // Threads from here on: they have what is left to this one.
    let files = EventFiles::over(events).map_err(setup("serve the event files"))?;
    let engine = Engine::with_quirks(options.quirks);
    host.warn_of_changes(&engine).map_err(|error| Error::Setup("start threads", error))?;
    if let Some(control) = &control {
        control::start(control, &engine, options)?;
    }
    let callers = Callers::new(host);
    callers.expect_deaths().map_err(setup("wait for the death of callers"))?;
    let daemon = Daemon::new(engine, callers, files, options.limits);
    let buried = daemon.clone();
    let bury = move || while buried.callers.bury().is_ok() {};
    spawn("deaths", bury).map_err(|error| Error::Setup("start threads", error))?;
    let (ended, end) = crossbeam_channel::unbounded();
    let mut servers = Vec::new();
    for front in &fronts {
        front.announce(&daemon).map_err(setup("look at the node"))?;
        let handler = Arc::new(NodeHandler {
            daemon: daemon.clone(),
            node: front.node,
            mode: options.mode,
            group: options.group,
        });
        let wire_options = wire::Options {
            name: "node",
            threads: opens::THREADS,
            spare: SPARE,
            ..wire::Options::default()
        };
        let server = wire::Server::start(front.channel(), handler, wire_options);
        let server = Arc::new(server.map_err(setup("start threads"))?);
        let (waited, ended) = (server.clone(), ended.clone());
        let watch = move || {
            waited.wait();
            let _ = ended.send(End::Session);
        };
        spawn("node-end", watch).map_err(|error| Error::Setup("start threads", error))?;
        servers.push(server);
    }
    let signalled = move || {
        let _ = signals.wait();
        let _ = ended.send(End::Signal);
    };
    spawn("signals", signalled).map_err(|error| Error::Setup("start threads", error))?;
    tracing::info!(nodes = ?fronts.iter().map(front::Up::path).collect::<Vec<_>>(), "serving");
    ready.tell();
    let why = end.recv();
    ready::stopping();
    tracing::info!(?why, "ending");
    // Each one, whatever the one before answered.
    let held = servers.iter().filter(|server| !server.stop()).count();
    if held == 0 {
        daemon.close_all();
    } else {
        // What a stuck request has locked cannot be closed; the end of this process ends it.
        tracing::warn!("callers hold requests up; ending all the same");
    }
    // The last channels go, so that the kernel answers whoever still calls.
    drop((servers, fronts));
    janitor.finish();
    Ok(())
}

/// Idle threads of a node that stay: a busy machine delays requests, and each takes another.
const SPARE: usize = 8;

/// Why the daemon ends.
#[derive(Debug)]
enum End {
    /// It was told to.
    Signal,
    /// The node was taken away.
    Session,
}

/// Blocks the signals that end the daemon in this thread, and so in all that it starts.
fn wait_for_signals() -> Result<SigSet, Errno> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ends.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ends), None)?;
    Ok(ends)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(body).map(drop)
}

/// Contexts, mms and event files each take descriptors.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Front {
    /// The node that VFIO's users open.
    const CONTAINER: &'static str = "vfio/vfio";

    fn nodes(options: &Options) -> Vec<(Node, String)> {
        let mut nodes = vec![(Node::Iommu, options.name.clone())];
        if options.container {
            nodes.push((Node::VfioContainer, Self::CONTAINER.into()));
        }
        nodes
    }
}
