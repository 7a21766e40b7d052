//! The asking side of the control socket.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place;
use super::protocol::{Reply, Request};

/// How long an answer may take: a DMA that waits for its page request takes longest.
const PATIENCE: Duration = Duration::from_secs(90);

/// Which daemon.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Where it listens.
    pub path: Option<PathBuf>,
    /// As which process it was started.
    pub pid: Option<u32>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon runs, as far as this user can see.
    #[error("no softiommu of this user is running (looked in {0}): name its socket with --control")]
    Nobody(PathBuf),
    /// It is not clear which is meant.
    #[error("several run: choose with --pid, of {0}")]
    Several(String),
    /// Nothing listens there.
    #[error("cannot ask {0}: {1}")]
    Socket(PathBuf, std::io::Error),
    /// What it says makes no sense: another version?
    #[error("cannot understand the answer: {0}")]
    Answer(#[from] serde_json::Error),
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

impl Choice {
    /// The socket that is meant.
    fn socket(&self) -> Result<PathBuf, Error> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let directory = place::directory();
        let mut found = place::sockets(&directory);
        if let Some(pid) = self.pid {
            found.retain(|(owner, _)| *owner == pid);
        } else {
            // What a killed daemon left behind is nobody.
            found.retain(|(_, path)| UnixStream::connect(path).is_ok());
        }
        match &found[..] {
            [(_, path)] => Ok(path.clone()),
            [] => Err(Error::Nobody(directory)),
            several => {
                let named = |(pid, _): &(u32, PathBuf)| format!("{pid} ({})", command_line(*pid));
                Err(Error::Several(several.iter().map(named).collect::<Vec<_>>().join(", ")))
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&self, request: &Request) -> Result<Reply, Error> {
        ask(&self.socket()?, request)
    }
}

/// Asks who listens at `path`, and waits for the answer.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, Error> {
    let socket = |error| Error::Socket(path.to_owned(), error);
    let mut stream = UnixStream::connect(path).map_err(socket)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(socket)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // Who may not ask is told so without being heard.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(socket(error)),
        _ => {}
    }
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut answer).map_err(socket)?;
    match serde_json::from_slice(&answer)? {
        Reply::Error(why) => Err(Error::Refused(why)),
        reply => Ok(reply),
    }
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}
