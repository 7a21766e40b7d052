//! The side that plays: takes tasks, a line of JSON each, and answers in lines of JSON.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::coverage::Coverage;
use super::machine::Device;
use super::reply::Reply;
use super::step::Step;
use super::worker::{self, End, Keeper};

/// What to play.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// The programs of these seeds; a digest of each is enough.
    Digests {
        /// The first seed.
        first: u64,
        /// The last one.
        last: u64,
        /// Calls of a program.
        calls: u32,
    },
    /// What one of the last [`Task::Digests`] was answered then, in full.
    Kept {
        /// Its seed.
        seed: u64,
    },
    /// The same as digests, with a mark for each call, as a baseline keeps them.
    Marks {
        /// The first seed.
        first: u64,
        /// The last one.
        last: u64,
        /// Calls of a program.
        calls: u32,
    },
    /// The program of a seed, in full.
    Transcript {
        /// The seed.
        seed: u64,
        /// Calls of the program.
        calls: u32,
    },
    /// A program.
    Program(Vec<Step>),
    /// Programs of these seeds on several threads.
    Threads {
        /// The first seed.
        first: u64,
        /// The last one.
        last: u64,
        /// Calls of each thread.
        calls: u32,
        /// Whether mock devices are destroyed while PASIDs of theirs are attached, which Linux 7.3
        /// does not get over.
        attached_pasids: bool,
    },
    /// What a file says, for ports that take short lines only.
    File(PathBuf),
    /// None more.
    Quit,
}

/// A line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// A program's digest.
    Digest {
        /// Its seed.
        seed: u64,
        /// The digest.
        digest: u64,
    },
    /// A program's marks.
    Marks {
        /// Its seed.
        seed: u64,
        /// [`super::baseline::MARK`] letters for each call; none for a program that a baseline
        /// leaves out ([`super::rules::leans_on_others`]).
        marks: String,
    },
    /// A call and its reply.
    Played {
        /// The call.
        step: Step,
        /// The reply.
        reply: Reply,
    },
    /// What the programs reached.
    Coverage(Coverage),
    /// How a program of threads ended.
    Threads {
        /// Its seed.
        seed: u64,
        /// What is wrong with its end, if anything.
        wrong: Option<String>,
        /// Then also its calls, in the order in which they began.
        played: Vec<(Step, Reply)>,
    },
    /// A program that did not come to its end.
    Lost {
        /// Its seed, where there is one.
        seed: Option<u64>,
        /// Why.
        why: String,
    },
    /// The task could not be done.
    Failed(String),
    /// The last line.
    End,
}

/// Answers tasks until one says quit. With `patient`, an end of input is waited out: a virtual
/// machine's port reads as ended while nobody is connected.
pub fn serve(
    device: Device,
    tasks: &mut dyn BufRead,
    out: &mut dyn Write,
    patient: bool,
) -> Result<(), String> {
    let mut keeper = None;
    loop {
        let mut text = String::new();
        let got = tasks.read_line(&mut text).map_err(|error| error.to_string())?;
        if got == 0 && patient {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        if got == 0 {
            return Ok(());
        }
        let task: Task = match serde_json::from_str(&text) {
            Ok(task) => task,
            Err(error) => {
                say(out, &Line::Failed(format!("no task: {error}")))?;
                continue;
            }
        };
        let task = match task {
            Task::File(path) => match read(&path) {
                Ok(task) => task,
                Err(why) => {
                    say(out, &Line::Failed(why))?;
                    continue;
                }
            },
            task => task,
        };
        if matches!(task, Task::Quit) {
            return say(out, &Line::End);
        }
        match task {
            Task::Kept { seed } => tell_kept(&mut keeper, seed, out)?,
            task => answer(device, task, &mut keeper, out)?,
        }
        say(out, &Line::End)?;
    }
}

fn read(path: &Path) -> Result<Task, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| told(&error))?;
    serde_json::from_str(&text).map_err(|error| told(&error))
}

fn say(out: &mut dyn Write, line: &Line) -> Result<(), String> {
    let mut text = serde_json::to_string(line).map_err(|error| error.to_string())?;
    text.push('\n');
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| error.to_string())
}

/// Tells what a program was answered, if that is kept.
fn tell_kept(keeper: &mut Option<Keeper>, seed: u64, out: &mut dyn Write) -> Result<(), String> {
    let told = match keeper {
        Some(keeper) => keeper.tell(seed, &mut |line| say(out, &line))?,
        None => false,
    };
    let lost = Line::Lost { seed: Some(seed), why: "not kept".to_owned() };
    if told { Ok(()) } else { say(out, &lost) }
}

/// Does a task; where a worker is lost with a program, the programs after it get another worker.
/// Digests' last worker becomes the `keeper`.
fn answer(
    device: Device,
    mut task: Task,
    keeper: &mut Option<Keeper>,
    out: &mut dyn Write,
) -> Result<(), String> {
    if matches!(task, Task::Digests { .. }) {
        *keeper = None;
    }
    loop {
        let mut reached = None;
        let end = worker::run(device, &task, &mut |line| {
            if let Line::Digest { seed, .. }
            | Line::Marks { seed, .. }
            | Line::Threads { seed, .. } = &line
            {
                reached = Some(*seed);
            }
            say(out, &line)
        })?;
        let why = match end {
            End::Done(None) => return Ok(()),
            End::Done(kept) => {
                *keeper = kept;
                return Ok(());
            }
            End::Crashed(why) => format!("crashed: {why}"),
            End::Hung => "hung".to_owned(),
        };
        let (Task::Digests { first, last, .. }
        | Task::Marks { first, last, .. }
        | Task::Threads { first, last, .. }) = &mut task
        else {
            return say(out, &Line::Lost { seed: None, why });
        };
        let lost = reached.map_or(*first, |seed| seed + 1);
        say(out, &Line::Lost { seed: Some(lost), why })?;
        if lost >= *last {
            return Ok(());
        }
        *first = lost + 1;
    }
}
