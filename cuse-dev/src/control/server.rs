//! The daemon's side of the control socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::dma::atomic::{AtomicOp, Width};
use engine::dma::{self, Port, Reason, Recovery};
use engine::inspect::Scope;
use engine::{Context, Engine, Errno};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

use super::protocol::{
    Access, AtomicKind, Device, Dma, Fault, LONGEST_LINE, MOST_BYTES, Reply, Request, Show,
};
use super::warnings::Warnings;

/// Most questions that are answered at once; others wait.
const MOST_PEERS: usize = 16;

/// How long a peer may take to ask, and to take its answer.
const PEER_PATIENCE: Duration = Duration::from_secs(10);

/// Most milliseconds that a DMA waits for the answer to its page request.
const LONGEST_WAIT: u64 = 60_000;

/// A control socket. Its path goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    /// The process that made it; one that was forked off it takes nothing away.
    process: u32,
}

/// What questions are about.
pub struct Subject {
    /// The contexts.
    pub engine: Arc<Engine>,
    /// What was warned of.
    pub warnings: Warnings,
    /// The process that was started as `softiommu`.
    pub pid: u32,
    /// The program that is served.
    pub program: String,
    /// Since when.
    pub since: Instant,
}

impl Server {
    /// Listens at `path`, where no other daemon may listen (`EADDRINUSE`). A socket that a dead one
    /// left there is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let refused = UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if !refused {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        let server = Self { path: path.to_owned(), listener, process: std::process::id() };
        // Who connects before this is asked for credentials, too.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(server)
    }

    /// Answers, on threads of its own, until the process ends.
    pub fn start(&self, subject: Subject) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let subject = Arc::new(subject);
        spawn("control", move || {
            let peers = Arc::new(AtomicUsize::new(0));
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        while peers.load(Ordering::Acquire) >= MOST_PEERS {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        let (subject, here) = (subject.clone(), Peer::new(&peers));
                        let answered = spawn("control-peer", move || {
                            let _here = here;
                            if let Err(error) = subject.serve(&stream) {
                                tracing::debug!(%error, "a peer of the control socket");
                            }
                        });
                        if let Err(error) = answered {
                            tracing::warn!(%error, "cannot answer at the control socket");
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the control socket");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// One peer that is being answered.
struct Peer(Arc<AtomicUsize>);

impl Peer {
    fn new(peers: &Arc<AtomicUsize>) -> Self {
        peers.fetch_add(1, Ordering::AcqRel);
        Self(peers.clone())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(body).map(drop)
}

impl Subject {
    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PEER_PATIENCE))?;
        stream.set_write_timeout(Some(PEER_PATIENCE))?;
        let peer = Uid::from_raw(getsockopt(stream, PeerCredentials)?.uid());
        let reply = if peer.is_root() || peer == Uid::effective() {
            let mut line = Vec::new();
            BufReader::new(stream.take(LONGEST_LINE)).read_until(b'\n', &mut line)?;
            match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request).unwrap_or_else(Reply::Error),
                Err(error) => Reply::Error(format!("not understood: {error}")),
            }
        } else {
            Reply::Error(format!(
                "user {peer} may not ask: the daemon is user {}'s",
                Uid::effective()
            ))
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        let mut stream = stream;
        stream.write_all(&text)
    }

    /// Answers `request`, or says why not.
    pub fn answer(&self, request: Request) -> Result<Reply, String> {
        match request {
            Request::Show { areas, from } => {
                let (warnings, warnings_lost) = self.warnings.all();
                Ok(Reply::Show(Box::new(Show {
                    pid: self.pid,
                    program: self.program.clone(),
                    age: self.since.elapsed().as_secs_f64(),
                    engine: self.engine.report(Scope { areas, from }),
                    warnings,
                    warnings_lost,
                })))
            }
            Request::Walk { device, iova } => {
                let context = self.context_of(&device)?;
                let walked = context.walk(device.device, device.pasid, iova);
                walked.map(Reply::Walk).map_err(|errno| refused(&device, errno))
            }
            Request::Pfn { pfn, bytes } => Ok(Reply::Frames(self.engine.find_frame(pfn, bytes))),
            Request::Dma { device, iova, access, wait } => {
                let context = self.context_of(&device)?;
                let port = context.device_port(device.device, device.pasid);
                let port = port.map_err(|errno| refused(&device, errno))?;
                transfer(&port, iova, &access, wait).map(Reply::Dma)
            }
        }
    }

    /// The context that `device` is in.
    fn context_of(&self, device: &Device) -> Result<Arc<Context>, String> {
        let mut contexts = self.engine.contexts();
        if let Some(id) = device.context {
            contexts.retain(|context| context.id().0 == id);
            return contexts.pop().ok_or_else(|| format!("there is no context {id}"));
        }
        contexts.retain(|context| context.has_device(device.device));
        match &contexts[..] {
            [context] => Ok(context.clone()),
            [] => Err(format!("there is no device {}", device.device)),
            several => {
                let ids: Vec<_> = several.iter().map(|c| c.id().0.to_string()).collect();
                let (id, ids) = (device.device, ids.join(", "));
                Err(format!("contexts {ids} each have a device {id}: say which"))
            }
        }
    }
}

fn refused(device: &Device, errno: Errno) -> String {
    let Device { device: id, pasid, .. } = device;
    match errno {
        Errno::ENOENT => format!("there is no device {id}"),
        Errno::EINVAL => format!("device {id} cannot have PASID {pasid}"),
        Errno::EBUSY => "a command of the program runs, and does not end".into(),
        Errno::EOPNOTSUPP => format!("device {id} has no DMA to simulate"),
        other => format!("device {id}: {other}"),
    }
}

fn transfer(port: &Arc<Port>, iova: u64, access: &Access, wait: u64) -> Result<Dma, String> {
    let length = match access {
        Access::Read { length } => *length,
        Access::Write { bytes } => bytes.len() as u64,
        Access::Atomic { .. } => 0,
    };
    if length > MOST_BYTES {
        return Err(format!("{length} bytes are more than {MOST_BYTES}"));
    }
    let until = Instant::now() + Duration::from_millis(wait.min(LONGEST_WAIT));
    loop {
        let mut bytes = Vec::new();
        let Err(fault) = once(port, iova, access, &mut bytes)? else {
            return Ok(Dma { bytes, fault: None });
        };
        if let Recovery::Requested(group) = fault.recovery {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() && port.wait_response(group, left) == Some(true) {
                continue;
            }
        }
        return Ok(Dma { bytes: Vec::new(), fault: Some(words(&fault)) });
    }
}

/// One try.
fn once(
    port: &Arc<Port>,
    iova: u64,
    access: &Access,
    bytes: &mut Vec<u8>,
) -> Result<Result<(), dma::Fault>, String> {
    Ok(match access {
        Access::Read { length } => {
            bytes.resize(*length as usize, 0);
            port.read(iova, bytes)
        }
        Access::Write { bytes } => port.write(iova, bytes),
        Access::Atomic { width, op, operand, expected } => {
            let width = match width {
                4 => Width::Four,
                8 => Width::Eight,
                other => return Err(format!("an atomic has 4 or 8 bytes, not {other}")),
            };
            let op = match op {
                AtomicKind::FetchAdd => AtomicOp::FetchAdd(*operand),
                AtomicKind::Swap => AtomicOp::Swap(*operand),
                AtomicKind::CompareSwap => AtomicOp::CompareSwap(*expected, *operand),
            };
            port.atomic(iova, width, op).map(|before| {
                bytes.extend(&before.to_le_bytes()[..width.bytes() as usize]);
            })
        }
    })
}

fn words(fault: &dma::Fault) -> Fault {
    use dma::fault::Stage;
    let stage = |stage| match stage {
        Stage::First => "first stage",
        Stage::Second => "second stage",
    };
    let reason = match fault.reason {
        Reason::Blocked => "nothing is attached: the IOMMU blocks the device".into(),
        Reason::OutOfRange => "outside of what the table can map".into(),
        Reason::NotPresent(which) => format!("not mapped ({})", stage(which)),
        Reason::Permission(which) => format!("no permission ({})", stage(which)),
        Reason::Misaligned => "an atomic must be aligned to its size".into(),
        Reason::NoMemory => "the IOPTE's frame is not pinned memory of the IOAS".into(),
        Reason::Memory(errno) => format!("the memory itself fails: {errno}"),
    };
    let requested = match fault.recovery {
        Recovery::Requested(group) => Some(group),
        Recovery::Unrecoverable => None,
    };
    Fault { iova: fault.iova, write: fault.write, reason, requested }
}
