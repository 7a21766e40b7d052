//! What a call on a node of `softiommu serve` costs beyond its way there and back.
//!
//! Prints `measure NAME RATIO goal GOAL`: the time of two calls (a pair) over that of two null calls
//! on the node of a minimal server in C ([`null.c`](null.c)), on the same front end. Both have their
//! turns, on the processors that the scheduler gives them, and the median round counts. Most of a
//! null call there is waking a thread on another processor, which softiommu's reader saves.
//!
//! The same with all of it kept to one processor, where nobody is woken elsewhere and what remains is
//! the work for a call; of each the quickest round. There also, for what that ratio can be at least:
//! a server, as small as the null one, which copies the argument of each call from its caller, and
//! every other one back.
//!
//! Then calls a second with several callers on both, and what the daemon does while nobody calls.
//!
//! Needs root, a C compiler, and FUSE; `SERVE_BENCH=cuse` measures CUSE, where the kernel has it.

#[path = "../pairs/mod.rs"]
mod pairs;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioctl_abi::command::iommufd::IOMMU_IOAS_ALLOC;
use ioctl_abi::iommufd::iommu_ioas_alloc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use pairs::{alloc, alloc_pair, call, map_pair, page, time};

const ROUNDS: usize = 40;
const PAIRS: u32 = 200;
const CALLERS: [usize; 4] = [1, 2, 8, 64];
const LOAD: Duration = Duration::from_millis(400);
const IDLE: Duration = Duration::from_secs(2);

/// A server of a node, until it is dropped.
struct Served {
    process: Child,
    node: PathBuf,
}

impl Served {
    fn start(mut command: Command, node: PathBuf) -> Self {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let (out, log) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let (send, serving) = std::sync::mpsc::channel();
        for stream in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(log)] {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if line.contains("serving") {
                        let _ = send.send(());
                    } else {
                        eprintln!("{line}");
                    }
                }
            });
        }
        drop(send);
        serving.recv().expect("the server serves");
        Self { process, node }
    }

    /// The server of `null.c`, as `name`, with more arguments.
    fn null(front: &str, directory: &Path, name: &str, more: &[&str]) -> Self {
        let (program, source) = (directory.join("null"), directory.join("null.c"));
        if !program.exists() {
            std::fs::write(&source, include_str!("null.c")).unwrap();
            let built = Command::new("cc").args(["-O2", "-o"]).args([&program, &source]).status();
            assert!(built.is_ok_and(|status| status.success()), "a C compiler");
        }
        let mut command = Command::new(program);
        let node = if front == "cuse" {
            command.args(["cuse", name]);
            Path::new("/dev").join(name)
        } else {
            let file = directory.join(name);
            File::create(&file).unwrap();
            command.arg("fuse").arg(&file);
            file
        };
        command.args(more);
        Self::start(command, node)
    }

    fn softiommu(front: &str) -> Self {
        let name = "softiommu-bench";
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        command
            .args(["serve", "--foreground", "--front", front, "--name", name])
            .env("RUST_LOG", "info");
        Self::start(command, Path::new("/dev").join(name))
    }

    fn open(&self) -> File {
        // A CUSE device's node appears in its own time.
        let begin = Instant::now();
        loop {
            match File::options().read(true).write(true).open(&self.node) {
                Ok(file) => return file,
                Err(error) => assert!(begin.elapsed() < Duration::from_secs(10), "{error}"),
            }
        }
    }

    /// Keeps all its threads to these processors.
    fn keep_to(&self, processors: &CpuSet) {
        let tasks = format!("/proc/{}/task", self.process.id());
        for task in std::fs::read_dir(tasks).unwrap().flatten() {
            let tid = task.file_name().to_str().and_then(|name| name.parse().ok()).unwrap();
            // A thread may have ended meanwhile.
            let _ = sched_setaffinity(Pid::from_raw(tid), processors);
        }
    }

    /// Clock ticks and voluntary switches of all its threads so far.
    fn spent(&self) -> (u64, u64) {
        let tasks = format!("/proc/{}/task", self.process.id());
        let read = |name: &str| {
            std::fs::read_dir(&tasks)
                .unwrap()
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.path().join(name)).ok())
                .collect::<Vec<_>>()
        };
        let ticks = read("stat").into_iter().map(|stat| {
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        });
        let switches = read("status").join("\n");
        let switches = switches
            .lines()
            .filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .map(|count| count.trim().parse::<u64>().unwrap());
        (ticks.sum(), switches.sum())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.process.wait();
        // The null server does not clean up.
        let _ = nix::mount::umount2(&self.node, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn null_pair(node: &File) {
    for _ in 0..2 {
        assert_eq!(call(node, IOMMU_IOAS_ALLOC, &mut iommu_ioas_alloc::default()), 0);
    }
}

/// Calls a second by so many callers, each with a file of its own.
fn throughput(served: &Served, callers: usize, pair: fn(&File)) -> f64 {
    let (end, pairs) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let node = served.open();
                while !end.load(Ordering::Relaxed) {
                    pair(&node);
                    pairs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(LOAD);
        end.store(true, Ordering::Relaxed);
    });
    2.0 * pairs.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!(
            "usage: [SERVE_BENCH=fuse|cuse] cargo bench -p softiommu --bench serve\n\nTakes seconds; --quick changes nothing."
        );
    }
    let front = std::env::var("SERVE_BENCH").unwrap_or_else(|_| "fuse".into());
    if !nix::unistd::geteuid().is_root() || !Path::new(&format!("/dev/{front}")).exists() {
        println!("SKIPPED: this needs root and /dev/{front}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let null = Served::null(&front, directory.path(), "softiommu-null", &[]);
    let copying = Served::null(&front, directory.path(), "softiommu-copy", &["copy"]);
    let served = Served::softiommu(&front);
    let (null_node, copying_node, node) = (null.open(), copying.open(), served.open());
    let ioas = alloc(&node);
    let mut buffer = vec![1; 8192];
    let page = page(&mut buffer);
    let mut rounds = || {
        let mut rounds: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            let round = [
                time(PAIRS, || null_pair(&null_node)),
                time(PAIRS, || null_pair(&copying_node)),
                time(PAIRS, || alloc_pair(&node)),
                time(PAIRS, || map_pair(&node, ioas, page)),
            ];
            for (all, this) in rounds.iter_mut().zip(round) {
                all.push(this);
            }
        }
        rounds.each_mut().map(|all| {
            all.sort_by(f64::total_cmp);
            (all[0], all[ROUNDS / 2])
        })
    };
    let [(_, null_time), _, (_, alloc_time), (_, map_time)] = rounds();
    println!("front end: {front}; null call: {:.0} ns", null_time / 2.0);
    println!("measure serve_ioas_alloc_destroy {:.2} goal 1.15", alloc_time / null_time);
    println!("measure serve_ioas_map_unmap_4k {:.2} goal 1.5", map_time / null_time);

    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|&number| all.is_set(number).unwrap_or(false)).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    let place = |processors: &CpuSet| {
        sched_setaffinity(this, processors).unwrap();
        [&null, &copying, &served].iter().for_each(|server| server.keep_to(processors));
    };
    place(&one);
    let [(null_time, _), (copying_time, _), (alloc_time, _), (map_time, _)] = rounds();
    place(&all);
    println!(
        "on one processor: null call {:.0} ns; alloc+destroy {:.2}, map+unmap {:.2}, a server that \
         copies arguments {:.2}",
        null_time / 2.0,
        alloc_time / null_time,
        map_time / null_time,
        copying_time / null_time
    );
    for callers in CALLERS {
        let (ours, theirs) =
            (throughput(&served, callers, alloc_pair), throughput(&null, callers, null_pair));
        println!("{callers:3} callers: {ours:8.0} calls/s, null server {theirs:8.0} calls/s");
    }
    // What threads were needed for goes to rest first.
    std::thread::sleep(Duration::from_millis(500));
    let before = served.spent();
    std::thread::sleep(IDLE);
    let after = served.spent();
    println!("measure serve_idle_cpu_ticks {} goal 0", after.0 - before.0);
    println!("measure serve_idle_switches {} goal 0", after.1 - before.1);
    drop((null, copying, served));
}
