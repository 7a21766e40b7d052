//! A side that plays, from the side that compares: a command that is started, or a socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::serve::{Line, Task};

/// How long a socket may take to be there: a virtual machine boots first.
const PATIENCE: Duration = Duration::from_secs(300);

/// The longest line that every port takes: a terminal's.
const SHORT: usize = 1024;

/// One side.
pub struct Peer {
    /// What it is called in reports.
    pub name: String,
    from: Box<dyn BufRead>,
    to: Box<dyn Write>,
    child: Option<Child>,
    /// Where long tasks are put for it to read.
    files: Option<PathBuf>,
}

impl Peer {
    /// `NAME=unix:PATH` or `NAME=COMMAND`, which a shell runs; `NAME=files:DIR:COMMAND` if it takes
    /// short lines only and sees the files of DIR.
    pub fn open(spec: &str) -> Result<Self, String> {
        let (name, how) = spec.split_once('=').ok_or("a side is NAME=unix:PATH or NAME=COMMAND")?;
        let name = name.to_owned();
        if let Some(path) = how.strip_prefix("unix:") {
            let begin = Instant::now();
            let socket = loop {
                match UnixStream::connect(path) {
                    Ok(socket) => break socket,
                    Err(error) if begin.elapsed() > PATIENCE => {
                        return Err(format!("{path}: {error}"));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            };
            let from = socket.try_clone().map_err(|error| error.to_string())?;
            let from = Box::new(BufReader::new(from));
            return Ok(Self { name, from, to: Box::new(socket), child: None, files: None });
        }
        let (files, how) = match how.strip_prefix("files:").and_then(|how| how.split_once(':')) {
            Some((files, how)) => (Some(PathBuf::from(files)), how),
            None => (None, how),
        };
        let mut child = Command::new("sh")
            .args(["-c", how])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{how}: {error}"))?;
        let from = child.stdout.take().ok_or("no output")?;
        let to = child.stdin.take().ok_or("no input")?;
        let from = Box::new(BufReader::new(from));
        Ok(Self { name, from, to: Box::new(to), child: Some(child), files })
    }

    /// Gives it a task.
    pub fn ask(&mut self, task: &Task) -> Result<(), String> {
        let mut text = serde_json::to_string(task).map_err(|error| error.to_string())?;
        if let Some(files) = self.files.as_ref().filter(|_| text.len() > SHORT) {
            // The answer to the task before was read to its end, so that the file is free.
            let path = files.join(format!("{}.task", self.name));
            std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
            let file = Task::File(path);
            text = serde_json::to_string(&file).map_err(|error| error.to_string())?;
        }
        text.push('\n');
        let sent = self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush());
        sent.map_err(|error| format!("{}: {error}", self.name))
    }

    /// The lines of the answer to the task that was given first.
    pub fn answer(&mut self) -> Result<Vec<Line>, String> {
        let mut lines = Vec::new();
        loop {
            let mut text = String::new();
            let got = self.from.read_line(&mut text).map_err(|e| format!("{}: {e}", self.name))?;
            if got == 0 {
                return Err(format!("{} ended", self.name));
            }
            match serde_json::from_str(&text).map_err(|e| format!("{}: {e}: {text}", self.name))? {
                Line::End => return Ok(lines),
                Line::Failed(why) => return Err(format!("{}: {why}", self.name)),
                line => lines.push(line),
            }
        }
    }

    /// The answer to a task.
    pub fn done(&mut self, task: &Task) -> Result<Vec<Line>, String> {
        self.ask(task)?;
        self.answer()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What listens behind a socket may be asked again by others.
        if let Some(mut child) = self.child.take() {
            let _ = self.ask(&Task::Quit);
            // What only hands tasks on ends with its input.
            self.to = Box::new(std::io::sink());
            let _ = child.wait();
        }
    }
}
