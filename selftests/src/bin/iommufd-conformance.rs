//! Compares what two iommufds answer to random programs. See `softiommu_selftests::conformance`.

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use softiommu_selftests::conformance::baseline::Baseline;
use softiommu_selftests::conformance::compare::{Known, Plan, Sides};
use softiommu_selftests::conformance::drop_capability;
use softiommu_selftests::conformance::machine::Device;
use softiommu_selftests::conformance::peer::Peer;
use softiommu_selftests::conformance::serve::{Line, Task, serve};
use softiommu_selftests::conformance::show;

/// Compares what two iommufds answer to random programs.
///
/// A SIDE is NAME=COMMAND (a shell's command that runs this program's `serve`) or NAME=unix:PATH (a
/// socket behind which `serve --on` runs, such as a virtual machine's port).
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays programs for another side, which asks over standard input or a port.
    Serve {
        /// The device.
        #[arg(long, default_value = "/dev/iommu")]
        node: String,
        /// Capabilities, by number, that programs shall not have: those that the other side lacks.
        #[arg(long)]
        drop: Vec<u8>,
        /// Programs get no huge pages: for another side whose kernel has none.
        #[arg(long)]
        no_huge_pages: bool,
        /// A port to be asked on, instead of standard input.
        #[arg(long)]
        on: Option<PathBuf>,
    },
    /// Plays the same programs on two sides, and shows each kind of difference in its shortest form.
    Compare {
        /// What is right.
        left: String,
        /// What is compared to it.
        right: String,
        #[command(flatten)]
        seeds: Seeds,
        /// Stops after so many minutes.
        #[arg(long)]
        minutes: Option<f64>,
        /// A file of differences that are known: `KIND | REASON`, with `*` for any text.
        #[arg(long)]
        known: Option<PathBuf>,
        /// Stops after so many kinds of unexplained differences.
        #[arg(long, default_value_t = 20)]
        most: usize,
        /// Where to write which outcomes each call had on both sides.
        #[arg(long)]
        coverage: Option<PathBuf>,
        /// A directory for what was answered to programs that differ once, and not again.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Shows the program of a seed and what a side answers.
    Show {
        /// The side.
        side: String,
        /// The seed.
        seed: u64,
        /// Calls of the program.
        #[arg(long, default_value_t = 150)]
        calls: u32,
    },
    /// Plays programs that call on several threads at once, and checks how they end.
    Threads {
        /// The side.
        side: String,
        #[command(flatten)]
        seeds: Seeds,
        /// Stops after so many minutes.
        #[arg(long)]
        minutes: Option<f64>,
        /// Also destroys mock devices while PASIDs of theirs are attached, which leaves objects behind
        /// in Linux 7.3.
        #[arg(long)]
        attached_pasids: bool,
        /// A directory for the calls of programs with a bad end, a file each.
        #[arg(long)]
        calls_of_bad: Option<PathBuf>,
    },
    /// Ends what serves a side.
    Quit {
        /// The side.
        side: String,
    },
    /// Writes what a side answers as a baseline.
    Record {
        /// The side.
        side: String,
        #[command(flatten)]
        seeds: Seeds,
        /// A line that says what was recorded.
        #[arg(long, default_value = "")]
        about: String,
        /// The file.
        file: PathBuf,
    },
    /// Compares what a side answers to a baseline.
    Check {
        /// The side.
        side: String,
        /// The file.
        file: PathBuf,
        /// A file of differences that are known, as for `compare`.
        #[arg(long)]
        known: Option<PathBuf>,
        /// The first seed of the file to check.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// The last one.
        #[arg(long, default_value_t = u64::MAX)]
        last: u64,
    },
}

/// Programs on threads in one task: what is wrong with them is said after each.
const THREADS_AT_ONCE: usize = 64;

#[derive(Args)]
struct Seeds {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many programs.
    #[arg(long, default_value_t = 1000)]
    programs: u64,
    /// Calls of each program.
    #[arg(long, default_value_t = 150)]
    calls: u32,
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("iommufd-conformance: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool, String> {
    match command {
        Command::Serve { node, drop, no_huge_pages, on } => {
            for capability in drop {
                drop_capability(capability).map_err(|errno| errno.to_string())?;
            }
            let node = CString::new(node).map_err(|error| error.to_string())?;
            let node: &'static CStr = Box::leak(node.into_boxed_c_str());
            let device = Device { node, huge_pages: !no_huge_pages };
            match on {
                None => serve(device, &mut std::io::stdin().lock(), &mut std::io::stdout(), false)?,
                Some(path) => {
                    let port = OpenOptions::new().read(true).write(true).open(&path);
                    let port = port.map_err(|error| format!("{}: {error}", path.display()))?;
                    let mut out = port.try_clone().map_err(|error| error.to_string())?;
                    serve(device, &mut BufReader::new(port), &mut out, true)?;
                }
            }
            Ok(true)
        }
        Command::Compare { left, right, seeds, minutes, known, most, coverage, keep } => {
            let mut sides = Sides { left: Peer::open(&left)?, right: Peer::open(&right)? };
            let plan = Plan {
                first: seeds.seed,
                programs: seeds.programs,
                time: minutes.map(|minutes| Duration::from_secs_f64(60.0 * minutes)),
                calls: seeds.calls,
                known: known.map_or(Ok(Vec::new()), read_known)?,
                most,
                keep,
            };
            let mut tell = |text: &str| {
                println!("{text}");
                let _ = std::io::stdout().flush();
            };
            let report = sides.compare(&plan, &mut tell)?;
            println!(
                "{} programs of {} calls, seeds from {}",
                report.programs, plan.calls, plan.first
            );
            for (kind, programs) in &report.explained {
                println!("known, {programs} programs: {kind}");
            }
            let (programs, calls) = report.cut_short;
            if programs > 0 {
                println!(
                    "{programs} programs ended at a known difference, {calls} calls before their end"
                );
            }
            for (kind, programs) in &report.unexplained {
                println!("UNEXPLAINED, {programs} programs: {kind}");
            }
            if !report.unstable.is_empty() {
                println!("not the same twice: seeds {:?}", report.unstable);
            }
            if let Some(path) = coverage {
                let table = report.coverage.0.table(&report.coverage.1);
                std::fs::write(&path, table).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            Ok(report.unexplained.is_empty())
        }
        Command::Show { side, seed, calls } => {
            for line in Peer::open(&side)?.done(&Task::Transcript { seed, calls })? {
                match line {
                    Line::Played { step, reply } => {
                        println!("{:>3} {}", step.number, show::line(&step.call, Some(&reply)));
                    }
                    other => println!("{other:?}"),
                }
            }
            Ok(true)
        }
        Command::Threads { side, seeds, minutes, attached_pasids, calls_of_bad } => {
            on_threads(&side, &seeds, minutes, attached_pasids, calls_of_bad.as_deref())
        }
        Command::Quit { side } => Peer::open(&side)?.done(&Task::Quit).map(|_| true),
        Command::Record { side, seeds, about, file } => {
            let last = seeds.seed + seeds.programs - 1;
            let mut peer = Peer::open(&side)?;
            let baseline = Baseline::record(&mut peer, seeds.seed, last, seeds.calls)?;
            let text = baseline.to_text(&about);
            std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(true)
        }
        Command::Check { side, file, known, first, last } => {
            let known = known.map_or(Ok(Vec::new()), read_known)?;
            let text = std::fs::read_to_string(&file);
            let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
            let mut baseline = Baseline::from_text(&text)?;
            baseline.programs.retain(|seed, _| (first..=last).contains(seed));
            let checked = baseline.check(&mut Peer::open(&side)?, &known)?;
            for line in &checked.wrong {
                println!("{line}");
            }
            for (kind, programs) in &checked.known {
                println!("known, {programs} programs up to there: {kind}");
            }
            let (alike, wrong) = (checked.alike, checked.wrong.len());
            println!("{alike} programs as recorded, {wrong} not");
            Ok(wrong == 0)
        }
    }
}

/// Plays programs on threads; whether all came to a good end.
fn on_threads(
    side: &str,
    seeds: &Seeds,
    minutes: Option<f64>,
    attached_pasids: bool,
    calls_of_bad: Option<&Path>,
) -> Result<bool, String> {
    let (begin, limit) = (Instant::now(), minutes.map(|m| Duration::from_secs_f64(m * 60.)));
    let (mut programs, mut bad) = (0, 0);
    let mut peer = Peer::open(side)?;
    let end = seeds.seed + seeds.programs;
    for first in (seeds.seed..end).step_by(THREADS_AT_ONCE) {
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            break;
        }
        let last = (first + THREADS_AT_ONCE as u64).min(end) - 1;
        let task = Task::Threads { first, last, calls: seeds.calls, attached_pasids };
        for line in peer.done(&task)? {
            programs += 1;
            match line {
                Line::Threads { wrong: None, .. } => {}
                Line::Threads { seed, wrong: Some(wrong), played } => {
                    bad += 1;
                    println!("seed {seed}: {wrong}");
                    if let Some(dir) = calls_of_bad {
                        let path = dir.join(seed.to_string());
                        let text = show::on_threads(&played);
                        std::fs::write(&path, text)
                            .map_err(|error| format!("{}: {error}", path.display()))?;
                    }
                }
                Line::Lost { seed, why } => {
                    bad += 1;
                    println!("seed {}: {why}", seed.unwrap_or(0));
                }
                _ => programs -= 1,
            }
        }
    }
    println!("{programs} programs on threads, {bad} bad ends");
    Ok(bad == 0)
}

fn read_known(path: PathBuf) -> Result<Vec<Known>, String> {
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (signature, why) = line.split_once(" | ").ok_or(format!("no reason: {line}"))?;
            Ok(Known { signature: signature.trim().into(), why: why.trim().into() })
        })
        .collect()
}
