//! What a kernel answered, kept in a file: a mark of four letters for each call.
//!
//! The first letter says how the call ended (`.` for 0, `+` for a number, else the errno), the other
//! three are 18 bits of the digest of its reply and of the call itself. That is enough to say which
//! call answered otherwise, and how; what exactly the other bytes were, the kernel can be asked
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::compare::{Known, is_like};
use super::peer::Peer;
use super::reply::Reply;
use super::serve::{Line, Task};
use super::show;
use super::step::{Call, Step};

/// Letters of a mark.
pub const MARK: usize = 4;

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

/// The errnos that have a letter; others are `?`.
const ERRNOS: &[(i32, char)] = &[
    (libc::EPERM, 'P'),
    (libc::ENOENT, 'N'),
    (libc::EIO, 'O'),
    (libc::ENXIO, 'X'),
    (libc::E2BIG, '2'),
    (libc::EBADF, 'D'),
    (libc::ENOMEM, 'M'),
    (libc::EACCES, 'C'),
    (libc::EFAULT, 'F'),
    (libc::EBUSY, 'B'),
    (libc::EEXIST, 'E'),
    (libc::ENODEV, 'V'),
    (libc::EINVAL, 'I'),
    (libc::ENOTTY, 'T'),
    (libc::ENOSPC, 'S'),
    (libc::ESPIPE, 'K'),
    (libc::EMSGSIZE, 'G'),
    (libc::EOPNOTSUPP, 'U'),
    (libc::EOVERFLOW, 'W'),
    (libc::EADDRINUSE, 'A'),
    (libc::ETIMEDOUT, 'L'),
];

/// The mark of a call.
pub fn mark(call: &Call, reply: &Reply) -> String {
    let letter = match reply.result {
        0 => '.',
        1.. => '+',
        errno => {
            let known = ERRNOS.iter().find(|(known, _)| i64::from(*known) == -errno);
            known.map_or('?', |(_, letter)| *letter)
        }
    };
    let digest = super::digest::of(call, reply);
    let mut mark = String::from(letter);
    for part in 0..3 {
        mark.push(char::from(DIGITS[(digest >> (6 * part)) as usize & 63]));
    }
    mark
}

/// What a mark says of a call's end.
fn meaning(mark: &str) -> String {
    match mark.chars().next() {
        Some('.') => "0".to_owned(),
        Some('+') => "positive".to_owned(),
        Some(letter) => match ERRNOS.iter().find(|(_, known)| *known == letter) {
            Some((errno, _)) => show::outcome(-i64::from(*errno)),
            None => "another errno".to_owned(),
        },
        None => "nothing".to_owned(),
    }
}

/// What came of a check.
#[derive(Debug, Default)]
pub struct Checked {
    /// Programs that answered as they are kept, to the end.
    pub alike: u64,
    /// Programs that did so up to a known difference, by its kind.
    pub known: BTreeMap<String, u64>,
    /// What is wrong with each of the others.
    pub wrong: Vec<String>,
}

/// A recorded baseline.
#[derive(Debug)]
pub struct Baseline {
    /// Calls of each program.
    pub calls: u32,
    /// The marks of each seed's program.
    pub programs: BTreeMap<u64, String>,
}

impl Baseline {
    /// Asks `peer` for what the programs of these seeds answer.
    pub fn record(peer: &mut Peer, first: u64, last: u64, calls: u32) -> Result<Self, String> {
        let mut programs = BTreeMap::new();
        for line in peer.done(&Task::Marks { first, last, calls })? {
            match line {
                Line::Marks { marks, .. } if marks.is_empty() => {}
                Line::Marks { seed, marks } => {
                    programs.insert(seed, marks);
                }
                Line::Lost { seed, why } => return Err(format!("the program of {seed:?} {why}")),
                _ => {}
            }
        }
        Ok(Self { calls, programs })
    }

    /// The file's text.
    pub fn to_text(&self, about: &str) -> String {
        let mut text = String::new();
        for line in about.lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "calls {}", self.calls);
        for (seed, marks) in &self.programs {
            let _ = writeln!(text, "{seed} {marks}");
        }
        text
    }

    /// Reads a file's text.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut baseline = Self { calls: 0, programs: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (head, rest) =
                line.split_once(' ').ok_or_else(|| format!("no baseline: {line}"))?;
            let number = |text: &str| text.parse::<u64>().map_err(|_| format!("no number: {text}"));
            if head == "calls" {
                baseline.calls = number(rest)? as u32;
            } else {
                baseline.programs.insert(number(head)?, rest.to_owned());
            }
        }
        Ok(baseline)
    }

    /// Plays the programs on `peer`; says for each that differs where, and how. After a `known`
    /// difference a program is not compared any further.
    pub fn check(&self, peer: &mut Peer, known: &[Known]) -> Result<Checked, String> {
        let (Some((&first, _)), Some((&last, _))) =
            (self.programs.first_key_value(), self.programs.last_key_value())
        else {
            return Err("the baseline is empty".to_owned());
        };
        let calls = self.calls;
        let mut checked = Checked::default();
        let mut left: BTreeSet<u64> = self.programs.keys().copied().collect();
        for line in peer.done(&Task::Marks { first, last, calls })? {
            let (seed, marks) = match line {
                Line::Marks { seed, marks } => (seed, marks),
                Line::Lost { seed, why } => {
                    let seed = seed.unwrap_or(0);
                    left.remove(&seed);
                    checked.wrong.push(format!("seed {seed}: {why}"));
                    continue;
                }
                _ => continue,
            };
            left.remove(&seed);
            match self.programs.get(&seed) {
                Some(kept) if *kept == marks => checked.alike += 1,
                Some(kept) => self.difference(peer, seed, kept, &marks, known, &mut checked)?,
                None => {}
            }
        }
        checked.wrong.extend(left.iter().map(|seed| format!("seed {seed}: was not played")));
        Ok(checked)
    }

    /// Where and how a program differs.
    fn difference(
        &self,
        peer: &mut Peer,
        seed: u64,
        kept: &str,
        marks: &str,
        known: &[Known],
        checked: &mut Checked,
    ) -> Result<(), String> {
        let at = (0..).find(|at| part(kept, *at) != part(marks, *at)).unwrap_or(0);
        let played = peer.done(&Task::Transcript { seed, calls: self.calls })?;
        let played: Vec<(Step, Reply)> = played
            .into_iter()
            .map_while(|line| match line {
                Line::Played { step, reply } => Some((step, reply)),
                _ => None,
            })
            .collect();
        let Some((step, reply)) = played.get(at) else {
            checked.wrong.push(format!("seed {seed}, call {at}: lost when played again"));
            return Ok(());
        };
        let recorded = meaning(part(kept, at));
        let (name, now) = (show::name(&step.call), meaning(part(marks, at)));
        let kind = if recorded == now {
            format!("{name}: {now}, other bytes")
        } else {
            format!("{name}: {recorded} / {now}")
        };
        if known.iter().any(|known| is_like(&kind, &known.signature)) {
            *checked.known.entry(kind).or_default() += 1;
            return Ok(());
        }
        let shown = show::line(&step.call, Some(reply));
        let again = if mark(&step.call, reply) == part(kept, at) {
            "\n    (when played again it answered as it should)"
        } else {
            ""
        };
        checked.wrong.push(format!("seed {seed}, call {at}: {kind}\n    {shown}{again}"));
        Ok(())
    }
}

fn part(marks: &str, at: usize) -> &str {
    marks.get(at * MARK..(at + 1) * MARK).unwrap_or("")
}
