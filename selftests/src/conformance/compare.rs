//! Plays the same programs on two sides and says where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::coverage::Coverage;
use super::peer::Peer;
use super::reply::Reply;
use super::serve::{Line, Task};
use super::step::{Call, Step};
use super::{once, reproducer, rules, show, shrink};

/// Programs in one task.
const BATCH: u64 = 64;

/// Two sides.
pub struct Sides {
    /// What is right.
    pub left: Peer,
    /// What is compared to it.
    pub right: Peer,
}

/// A difference that is known, and why it is.
#[derive(Clone, Debug)]
pub struct Known {
    /// A pattern of [`Sides::signature`], with `*` for any text.
    pub signature: String,
    /// The reason.
    pub why: String,
}

/// What to play.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// So many programs at most.
    pub programs: u64,
    /// So long at most.
    pub time: Option<Duration>,
    /// Calls of each program.
    pub calls: u32,
    /// Differences that are known.
    pub known: Vec<Known>,
    /// After so many kinds of unexplained differences it ends.
    pub most: usize,
    /// Where transcripts of programs that differ once only are put.
    pub keep: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Programs that were played on both sides.
    pub programs: u64,
    /// Kinds of differences that nothing explains, and how many programs show each.
    pub unexplained: BTreeMap<String, u64>,
    /// The same for those that are known.
    pub explained: BTreeMap<String, u64>,
    /// Programs that were compared up to a known difference only, and how many calls of them were not.
    pub cut_short: (u64, u64),
    /// Programs whose difference was gone when they were played again.
    pub unstable: Vec<u64>,
    /// What was reached on both sides.
    pub coverage: (Coverage, Coverage),
}

pub(super) type Played = Vec<(Step, Reply)>;

fn played(lines: Vec<Line>) -> Result<Played, String> {
    lines
        .into_iter()
        .map(|line| match line {
            Line::Played { step, reply } => Ok((step, reply)),
            Line::Lost { why, .. } => Err(why),
            other => Err(format!("an unexpected line: {other:?}")),
        })
        .collect()
}

/// The first call from `from` on that differs.
pub(super) fn next_difference(left: &Played, right: &Played, from: usize) -> Option<usize> {
    let at = left.iter().zip(right).skip(from).position(|(left, right)| left != right);
    at.map(|at| from + at)
        .or_else(|| (left.len() != right.len()).then_some(left.len().min(right.len())))
}

/// The kind of a difference: the call, and how each side's reply differs.
fn kind(call: &Call, left: &Reply, right: &Reply) -> String {
    if let Call::Child(calls) = call
        && let Some((call, (left, right))) = calls
            .iter()
            .zip(left.child.iter().zip(&right.child))
            .find(|(_, (left, right))| left != right)
    {
        return format!("fork, {}", kind(call, left, right));
    }
    let name = show::name(call);
    if left.result != right.result {
        let shown = |reply: &Reply| match reply.errno() {
            Some(errno) => format!("{errno:?}"),
            None if reply.result > 0 => "positive".to_owned(),
            None => "0".to_owned(),
        };
        return format!("{name}: {} / {}", shown(left), shown(right));
    }
    let mut parts = Vec::new();
    if left.after != right.after {
        let at = left.after.iter().zip(&right.after).position(|(left, right)| left != right);
        parts.push(format!("struct from byte {}", at.unwrap_or(0)));
    }
    if left.seen != right.seen {
        parts.push("memory".to_owned());
    }
    if left.descriptor != right.descriptor {
        parts.push("descriptor".to_owned());
    }
    format!("{name}: {}, other {}", show::outcome(left.result), parts.join(" and "))
}

impl Report {
    fn explain(&mut self, kinds: BTreeSet<String>) {
        for kind in kinds {
            *self.explained.entry(kind).or_default() += 1;
        }
    }
}

impl Sides {
    fn both(&mut self, task: &Task) -> Result<(Vec<Line>, Vec<Line>), String> {
        self.left.ask(task)?;
        self.right.ask(task)?;
        Ok((self.left.answer()?, self.right.answer()?))
    }

    /// The kind of the difference that a program's last call shows, if only that one differs.
    pub fn signature(&mut self, steps: &[Step]) -> Result<Option<String>, String> {
        let (left, right) = self.both(&Task::Program(steps.to_vec()))?;
        let (Ok(left), Ok(right)) = (played(left), played(right)) else { return Ok(None) };
        let Some(at) = next_difference(&left, &right, 0) else { return Ok(None) };
        if at + 1 != steps.len() || left.len() != right.len() {
            return Ok(None);
        }
        Ok(Some(kind(&steps[at].call, &left[at].1, &right[at].1)))
    }

    /// Plays a plan; what is worth telling at once goes to `tell`.
    pub fn compare(&mut self, plan: &Plan, tell: &mut dyn FnMut(&str)) -> Result<Report, String> {
        let mut report = Report::default();
        let begin = Instant::now();
        let mut first = plan.first;
        let end = plan.first + plan.programs;
        let mut said = Instant::now();
        while first < end
            && plan.time.is_none_or(|time| begin.elapsed() < time)
            && report.unexplained.len() < plan.most
        {
            let last = (first + BATCH).min(end) - 1;
            let (left, right) = self.both(&Task::Digests { first, last, calls: plan.calls })?;
            let (left, lost_left) = digests(left, &mut report.coverage.0);
            let (right, lost_right) = digests(right, &mut report.coverage.1);
            for seed in first..=last {
                let lost = (lost_left.get(&seed), lost_right.get(&seed));
                if lost != (None, None) {
                    let kind = format!("program {} / {}", lost_word(lost.0), lost_word(lost.1));
                    tell(&format!("seed {seed}: {kind}"));
                    *report.unexplained.entry(kind).or_default() += 1;
                } else if left.get(&seed) != right.get(&seed) {
                    self.examine(seed, plan, &mut report, tell)?;
                }
            }
            report.programs += last - first + 1;
            first = last + 1;
            if said.elapsed() > Duration::from_secs(20) {
                said = Instant::now();
                tell(&format!(
                    "{} programs, {:.0} a second, {} kinds of differences, {} known",
                    report.programs,
                    report.programs as f64 / begin.elapsed().as_secs_f64(),
                    report.unexplained.len(),
                    report.explained.len()
                ));
            }
        }
        Ok(report)
    }

    /// Finds out how the sides differ in the program of a seed.
    fn examine(
        &mut self,
        seed: u64,
        plan: &Plan,
        report: &mut Report,
        tell: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        let (once, and_once) = self.both(&Task::Kept { seed })?;
        let (left, right) = self.both(&Task::Transcript { seed, calls: plan.calls })?;
        let (left, right) = match (played(left), played(right)) {
            (Ok(left), Ok(right)) => (left, right),
            (left, right) => {
                tell(&format!(
                    "seed {seed}: lost when played again: {:?} {:?}",
                    left.err(),
                    right.err()
                ));
                *report.unexplained.entry("lost when played again".to_owned()).or_default() += 1;
                return Ok(());
            }
        };
        // Calls whose replies differ as is known, and that left both sides as they were.
        let mut passed: Vec<usize> = Vec::new();
        let mut kinds: BTreeSet<String> = BTreeSet::new();
        let (at, found) = loop {
            let from = passed.last().map_or(0, |at| at + 1);
            let Some(at) = next_difference(&left, &right, from) else {
                if passed.is_empty() {
                    report.unstable.push(seed);
                    tell(&format!("seed {seed}: differed once, and not again"));
                    match (played(once), played(and_once)) {
                        (Ok(on_left), Ok(on_right)) => {
                            let played = [&on_left, &on_right, &left, &right];
                            tell(&once::first(&self.names(), played));
                            if let Some(directory) = &plan.keep {
                                let path = directory.join(format!("once-{seed}.txt"));
                                std::fs::write(&path, once::all(&self.names(), played))
                                    .map_err(|error| format!("{}: {error}", path.display()))?;
                                tell(&format!("  in full: {}", path.display()));
                            }
                        }
                        (left, right) => tell(&format!("  {:?} {:?}", left.err(), right.err())),
                    }
                }
                report.explain(kinds);
                return Ok(());
            };
            let (Some((step, on_left)), Some((other, on_right))) = (left.get(at), right.get(at))
            else {
                return Err(format!("seed {seed}: programs of different lengths"));
            };
            let found = kind(&step.call, on_left, on_right);
            let known = plan.known.iter().any(|known| is_like(&found, &known.signature));
            // What a program does next may hang on what it was answered.
            let apart = step != other;
            if known && !apart && rules::leaves_alike(&step.call, on_left, on_right) {
                passed.push(at);
                kinds.insert(found);
            } else if known || apart && !passed.is_empty() {
                kinds.extend(known.then_some(found));
                report.cut_short.0 += 1;
                report.cut_short.1 += (left.len() - at - 1) as u64;
                report.explain(kinds);
                return Ok(());
            } else {
                report.explain(kinds);
                break (at, found);
            }
        };
        let (step, on_left, on_right) = (&left[at].0, &left[at].1, &right[at].1);
        let times = report.unexplained.entry(found.clone()).or_default();
        *times += 1;
        if *times > 1 {
            return Ok(());
        }
        tell(&format!("seed {seed}, call {at}: {found}"));
        let steps: Vec<Step> = left[..=at]
            .iter()
            .enumerate()
            .filter(|(at, _)| !passed.contains(at))
            .map(|(_, (step, _))| step.clone())
            .collect();
        // A difference that needs what a program without a generator does not do would be strange,
        // but shall not be lost.
        if self.signature(&steps)?.as_deref() != Some(&found) {
            tell(&format!("  it takes the whole program of seed {seed}"));
            tell(&format!("  {}: {}", self.left.name, show::line(&step.call, Some(on_left))));
            tell(&format!("  {}: {}", self.right.name, show::line(&step.call, Some(on_right))));
            return Ok(());
        }
        let steps = shrink::shrink(self, steps, &found)?;
        tell(&self.side_by_side(&steps)?);
        tell(&reproducer::c(&steps));
        Ok(())
    }

    fn names(&self) -> [&str; 2] {
        [&self.left.name, &self.right.name]
    }

    /// A program with both sides' replies.
    pub fn side_by_side(&mut self, steps: &[Step]) -> Result<String, String> {
        let (left, right) = self.both(&Task::Program(steps.to_vec()))?;
        let (left, right) = (played(left)?, played(right)?);
        let mut text = String::new();
        for ((step, on_left), (_, on_right)) in left.iter().zip(&right) {
            let shown = show::line(&step.call, Some(on_left));
            if on_left == on_right {
                text.push_str(&format!("  {:>3} {shown}\n", step.number));
            } else {
                let other = show::line(&step.call, Some(on_right));
                text.push_str(&format!("  {:>3} {}: {shown}\n", step.number, self.left.name));
                text.push_str(&format!("  {:>3} {}: {other}\n", step.number, self.right.name));
            }
        }
        Ok(text)
    }
}

fn lost_word(lost: Option<&String>) -> &str {
    lost.map_or("ended", String::as_str)
}

fn digests(
    lines: Vec<Line>,
    coverage: &mut Coverage,
) -> (BTreeMap<u64, u64>, BTreeMap<u64, String>) {
    let (mut digests, mut lost) = (BTreeMap::new(), BTreeMap::new());
    for line in lines {
        match line {
            Line::Digest { seed, digest } => {
                digests.insert(seed, digest);
            }
            Line::Coverage(more) => coverage.add(&more),
            Line::Lost { seed, why } => {
                lost.insert(seed.unwrap_or(0), why);
            }
            _ => {}
        }
    }
    (digests, lost)
}

/// Whether `text` is `pattern`, in which each `*` stands for any text.
pub fn is_like(text: &str, pattern: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return text == pattern };
    text.strip_prefix(head).is_some_and(|text| {
        (0..=text.len()).any(|at| text.is_char_boundary(at) && is_like(&text[at..], rest))
    })
}
