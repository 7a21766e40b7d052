//! What pinning under `softiommu run` costs beyond what holds the pages.
//!
//! `cargo bench -p softiommu --bench pins` maps and unmaps memory of four kinds in an IOAS that a
//! device is attached to, and prints ns a 4K page and `measure NAME RATIO goal GOAL`: our time over
//! the *floor*, which is the least that a process can do to have the kernel hold the same pages:
//!
//! - private memory: registering it with an io_uring, and taking that back;
//! - a file's (memfd, hugetlb): mapping it with all its pages, registering the mapping, and taking
//!   both back. A mapping that is not populated holds nothing, and one that is not registered lets
//!   the kernel move the pages and lets a truncation take them, so that it is no pin. What the
//!   mapping alone costs is printed beside it, as `map_unmap_KIND_to_mmap_alone`.
//!
//! Ours and the floor take turns on the same pages and the same processor (`--free` lets the
//! scheduler choose the processors), each turn gives a ratio, and the median of those is the
//! measure: machines change their speed from one moment to the next, by several times for page
//! faults in a VM, but less from one turn to the next. On two processors that have nothing else to do
//! ours gains by reading frames of one piece while the next is pinned. `--quick` takes 256 MiB of
//! each instead of 1 GiB, of which what a call costs by itself is four times as much; of huge pages
//! there are as many as the machine has free. Names (`anon_4k`, `anon_thp`, `hugetlb`, `memfd`,
//! `memory`, `sparse`) limit what is measured. What a pin costs the daemon in memory, and a sparse file's map in
//! time, are measured against plain numbers.
#![allow(unsafe_code)] // ioctls, and memory of all kinds

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::ptr::null_mut;
use std::time::Instant;

use ioctl_abi::command::iommufd::{
    IOMMU_DESTROY, IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP,
};
use ioctl_abi::iommufd::{iommu_destroy, iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};
use ioctl_abi::selftest::{
    IOMMU_TEST_CMD, IOMMU_TEST_OP_ACCESS_PAGES, IOMMU_TEST_OP_CREATE_ACCESS,
    IOMMU_TEST_OP_MOCK_DOMAIN, MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES, iommu_test_access_pages,
    iommu_test_cmd, iommu_test_create_access,
};

/// Says that this process is the one under `softiommu run`, and which file it is to map.
const INSIDE: &str = "SOFTIOMMU_PINS";
const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
const IOVA: u64 = 1 << 24;
/// The selftest's accesses pin no more at once.
const MOST_AT_ONCE: usize = 16 << 20;
/// Turns of ours and of the floor.
const ROUNDS: usize = 15;

/// Kinds of memory: name and goal.
const PRIVATE: [(&str, f64); 2] = [("anon_4k", 1.2), ("anon_thp", 1.5)];
const SHARED: [(&str, f64); 2] = [("hugetlb", 1.5), ("memfd", 1.5)];

fn main() {
    if std::env::args().any(|a| a == "--help") {
        return println!(
            "usage: cargo bench -p softiommu --bench pins [-- --quick] [--free] [KIND...]\n\n\
            1 GiB, or with --quick 256 MiB, of anon_4k, anon_thp, hugetlb and memfd; memory and \
            sparse. All on one processor, unless --free."
        );
    }
    if let Ok(what) = std::env::var(INSIDE) {
        return inside(&what);
    }
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    if !has("--free") {
        one_processor();
    }
    outside(if has("--quick") { 256 << 20 } else { 1 << 30 });
}

/// From now on this process, and all that it starts, runs on the processor that it is on.
fn one_processor() {
    let mut set = nix::sched::CpuSet::new();
    // SAFETY: asks only.
    let cpu = unsafe { libc::sched_getcpu() };
    let bound = set
        .set(usize::try_from(cpu).unwrap_or(0))
        .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = bound {
        println!("not bound to a processor: {error}");
    }
}

/// Runs the other half of each measure under `softiommu run`, and prints them.
fn outside(bytes: usize) {
    for (kind, goal) in PRIVATE.into_iter().filter(|(kind, _)| wanted(kind)) {
        let mut half = Half::start(&format!("{kind} {bytes}"));
        let turns: Vec<_> = (0..ROUNDS).map(|_| (half.number(), half.number())).collect();
        show(kind, bytes, &turns, goal);
    }
    for (kind, goal) in SHARED.into_iter().filter(|(kind, _)| wanted(kind)) {
        let Some((file, bytes)) = file(kind, bytes) else {
            println!("{kind}: SKIPPED: the machine has no such pages free");
            continue;
        };
        let ring = io_uring::IoUring::new(2).expect("an io_uring");
        let mut half = Half::start(&format!("{kind} {bytes} {}", file.as_raw_fd()));
        let (mut turns, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let ours = half.number();
            let floor = time(|| {
                let at = map_file(&file, bytes, libc::MAP_POPULATE);
                register(&ring, at, bytes);
                unmap(at, bytes);
            });
            turns.push((ours, floor));
            let mapping = time(|| unmap(map_file(&file, bytes, libc::MAP_POPULATE), bytes));
            alone.push(ours / mapping);
        }
        show(kind, bytes, &turns, goal);
        println!("measure map_unmap_{kind}_to_mmap_alone {:.2} no goal", median(alone));
    }
    if wanted("memory") {
        let mut half = Half::start("memory");
        println!("measure pin_bytes_per_lone_page {:.2} goal 16", half.number());
        println!("measure pin_bytes_per_page_of_a_run {:.2} goal 1", half.number());
    }
    if wanted("sparse") {
        let mut half = Half::start("sparse");
        println!("measure map_sparse_1tib_seconds {:.3} goal 1", half.number() / 1e9);
    }
}

/// Whether `kind` is to be measured: all are, or those that are named.
fn wanted(kind: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|name| name == kind)
}

/// Shows what turns of ours and of the floor came to.
fn show(kind: &str, bytes: usize, turns: &[(f64, f64)], goal: f64) {
    let per_page = |times: Vec<f64>| median(times) / (bytes / PAGE) as f64;
    println!(
        "{kind}: {} MiB, {:.1} ns a page to map and unmap, floor {:.1}",
        bytes >> 20,
        per_page(turns.iter().map(|turn| turn.0).collect()),
        per_page(turns.iter().map(|turn| turn.1).collect())
    );
    let ratio = median(turns.iter().map(|(ours, floor)| ours / floor).collect());
    println!("measure map_unmap_{kind} {ratio:.2} goal {goal}");
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The process under `softiommu run`, which measures one thing for each line that it is sent.
struct Half {
    process: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Half {
    fn start(what: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softiommu"));
        command.args(["run", "--"]).arg(std::env::current_exe().expect("a program has a path"));
        command.env(INSIDE, what).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("softiommu is built");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { ask: process.stdin.take(), answers, process }
    }

    /// The next number that it measures.
    fn number(&mut self) -> f64 {
        writeln!(self.ask.as_ref().expect("a pipe")).expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("text");
        line.trim().parse().expect("a number")
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // Then it ends.
        self.ask = None;
        assert!(self.process.wait().expect("a child").success(), "a measure failed");
    }
}

/// Waits until a number is asked for. False when no more will be.
fn asked() -> bool {
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("text") != 0
}

/// Answers with a number when it is asked for.
fn answer(number: f64) {
    if asked() {
        println!("{number}");
    }
}

fn inside(what: &str) {
    let number = |word: &str| word.parse::<usize>().expect("a number");
    let words: Vec<&str> = what.split(' ').collect();
    match words[..] {
        ["anon_4k", bytes] => private(number(bytes), libc::MADV_NOHUGEPAGE),
        ["anon_thp", bytes] => private(number(bytes), libc::MADV_HUGEPAGE),
        ["memory"] => memory(64 << 20),
        ["sparse"] => sparse(),
        [_, bytes, fd] => {
            let bytes = number(bytes);
            // SAFETY: it was inherited for this.
            let file = unsafe { OwnedFd::from_raw_fd(number(fd) as i32) };
            let at = map_file(&file, bytes, libc::MAP_POPULATE);
            let iommu = Iommu::new();
            iommu.attach();
            // The first pin makes what later ones use.
            iommu.pair(at as u64, bytes);
            while asked() {
                println!("{}", time(|| iommu.pair(at as u64, bytes)));
            }
        }
        _ => unreachable!("{what}"),
    }
}

/// In turn the time to map and unmap, and that of the bare registration.
fn private(bytes: usize, advice: i32) {
    let at = anonymous(bytes, advice);
    touch(at, bytes);
    let iommu = Iommu::new();
    iommu.attach();
    // The first pin makes what later ones use.
    iommu.pair(at as u64, HUGE);
    let ring = io_uring::IoUring::new(2).expect("an io_uring");
    register(&ring, at, bytes);
    while asked() {
        println!("{}", time(|| iommu.pair(at as u64, bytes)));
        answer(time(|| register(&ring, at, bytes)));
    }
}

/// Registers the memory, and takes the registration back.
fn register(ring: &io_uring::IoUring, at: *mut u8, bytes: usize) {
    let buffer = libc::iovec { iov_base: at.cast(), iov_len: bytes };
    // SAFETY: the memory stays mapped, and is unregistered before anything else.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.expect("registered");
    ring.submitter().unregister_buffers().expect("unregistered");
}

/// Bytes of the daemon for each pinned page: of pages whose frames do not follow each other, and of
/// those in huge pages.
fn memory(bytes: usize) {
    let (one, other) =
        (anonymous(bytes, libc::MADV_NOHUGEPAGE), anonymous(bytes, libc::MADV_NOHUGEPAGE));
    for page in (0..bytes).step_by(PAGE) {
        // Frames come one after the other; the two take turns.
        touch(one.wrapping_add(page), PAGE);
        touch(other.wrapping_add(page), PAGE);
    }
    let huge = anonymous(bytes, libc::MADV_HUGEPAGE);
    touch(huge, bytes);
    let iommu = Iommu::new();
    let access = iommu.access();
    // The first pins make what later ones use, and what is free afterwards.
    let pieces = [
        (other, bytes),
        (one, bytes),
        (huge, bytes / 2),
        (huge.wrapping_add(bytes / 2), bytes / 2),
    ];
    for (index, (at, bytes)) in (0_u64..).zip(pieces) {
        let iova = IOVA + (index << 30);
        iommu.map(at as u64, bytes, iova);
        let before = daemon_bytes();
        iommu.pin(access, at as u64, bytes, iova);
        if index % 2 == 1 {
            answer((daemon_bytes() - before).max(0.0) / (bytes / PAGE) as f64);
        }
    }
}

/// The time to map a file of 1 TiB without pages.
fn sparse() {
    // SAFETY: plain system calls.
    let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"sparse".as_ptr(), 0)) };
    nix::unistd::ftruncate(&file, 1 << 40).expect("a sparse file");
    let at = map_file(&file, 1 << 40, libc::MAP_NORESERVE);
    let iommu = Iommu::new();
    let access = iommu.access();
    answer(time(|| iommu.map(at as u64, 1 << 40, IOVA)));
    // A page of it is there when somebody asks.
    touch(at.wrapping_add(1 << 39), 1);
    iommu.pin(access, at as u64 + (1 << 39), PAGE, IOVA + (1 << 39));
}

/// Private bytes of the daemon, which is this process's parent.
fn daemon_bytes() -> f64 {
    let parent = std::os::unix::process::parent_id();
    let status = std::fs::read_to_string(format!("/proc/{parent}/status")).expect("a parent");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}

/// An iommufd with an IOAS.
struct Iommu {
    file: File,
    ioas: u32,
}

impl Iommu {
    fn new() -> Self {
        let file = File::options().read(true).write(true).open("/dev/iommu").expect("an iommufd");
        let mut alloc = iommu_ioas_alloc { size: size::<iommu_ioas_alloc>(), ..Default::default() };
        call(&file, IOMMU_IOAS_ALLOC, &mut alloc);
        Self { file, ioas: alloc.out_ioas_id }
    }

    fn test(&self, op: u32, id: u32, body: impl FnOnce(&mut iommu_test_cmd)) -> iommu_test_cmd {
        let size = size::<iommu_test_cmd>();
        let mut command = iommu_test_cmd { size, op, id, ..Default::default() };
        body(&mut command);
        call(&self.file, IOMMU_TEST_CMD, &mut command);
        command
    }

    /// Attaches a device.
    fn attach(&self) {
        self.test(IOMMU_TEST_OP_MOCK_DOMAIN, self.ioas, |_| {});
    }

    fn access(&self) -> u32 {
        let flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
        let body = iommu_test_create_access { flags, ..Default::default() };
        let command =
            self.test(IOMMU_TEST_OP_CREATE_ACCESS, self.ioas, |command| command.set_body(&body));
        command.body::<iommu_test_create_access>().out_access_fd
    }

    /// Pins through an access, as much at once as one may.
    fn pin(&self, access: u32, uptr: u64, bytes: usize, iova: u64) {
        for at in (0..bytes).step_by(MOST_AT_ONCE) {
            let (iova, uptr) = (iova + at as u64, uptr + at as u64);
            let length = MOST_AT_ONCE.min(bytes - at) as u64;
            let body = iommu_test_access_pages { iova, length, uptr, ..Default::default() };
            self.test(IOMMU_TEST_OP_ACCESS_PAGES, access, |command| command.set_body(&body));
        }
    }

    fn map(&self, user_va: u64, bytes: usize, iova: u64) {
        let (size, length) = (size::<iommu_ioas_map>(), bytes as u64);
        let (flags, ioas_id) = (7, self.ioas);
        let mut map =
            iommu_ioas_map { size, flags, ioas_id, user_va, length, iova, ..Default::default() };
        call(&self.file, IOMMU_IOAS_MAP, &mut map);
    }

    fn pair(&self, user_va: u64, bytes: usize) {
        self.map(user_va, bytes, IOVA);
        let (size, length) = (size::<iommu_ioas_unmap>(), bytes as u64);
        let mut unmap = iommu_ioas_unmap { size, ioas_id: self.ioas, iova: IOVA, length };
        call(&self.file, IOMMU_IOAS_UNMAP, &mut unmap);
    }
}

impl Drop for Iommu {
    fn drop(&mut self) {
        let mut destroy = iommu_destroy { size: size::<iommu_destroy>(), id: self.ioas };
        let pointer = std::ptr::from_mut(&mut destroy);
        // SAFETY: the command's own struct. A device may still be attached: `EBUSY`.
        unsafe { libc::ioctl(self.file.as_raw_fd(), IOMMU_DESTROY.into(), pointer) };
    }
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn call<T>(iommu: &File, command: u32, argument: &mut T) {
    let pointer = std::ptr::from_mut(argument);
    // SAFETY: each command is called with its own struct.
    let result = unsafe { libc::ioctl(iommu.as_raw_fd(), command.into(), pointer) };
    assert_eq!(result, 0, "{command:#x}: {}", io::Error::last_os_error());
}

/// Nanoseconds that `what` takes.
fn time(what: impl FnOnce()) -> f64 {
    let began = Instant::now();
    what();
    began.elapsed().as_nanos() as f64
}

/// A file with pages, and its bytes: as many as asked for, or as there are free.
fn file(kind: &str, bytes: usize) -> Option<(OwnedFd, usize)> {
    let huge = kind == "hugetlb";
    let flags = if huge { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: plain system call.
    let fd = unsafe { libc::memfd_create(c"pins".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just made.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let free = if huge { free_huge_pages()? * HUGE } else { bytes };
    let bytes = bytes.min(free / 2 / HUGE * HUGE * 2);
    if bytes == 0 || nix::unistd::ftruncate(&file, bytes as i64).is_err() {
        return None;
    }
    if huge {
        let reserved =
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64);
        reserved.ok()?;
    }
    let at = map_file(&file, bytes, libc::MAP_POPULATE);
    touch(at, bytes);
    unmap(at, bytes);
    Some((file, bytes))
}

fn free_huge_pages() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"))?;
    line.trim().parse().ok()
}

fn map_file(file: &OwnedFd, bytes: usize, flags: i32) -> *mut u8 {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(null_mut(), bytes, rights, libc::MAP_SHARED | flags, file.as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    at.cast()
}

fn unmap(at: *mut u8, bytes: usize) {
    // SAFETY: nobody uses the mapping any more.
    assert_eq!(unsafe { libc::munmap(at.cast(), bytes) }, 0);
}

/// Private memory without pages, on a huge page's bound.
fn anonymous(bytes: usize, advice: i32) -> *mut u8 {
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null_mut(), bytes + HUGE, rights, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let at = at.cast::<u8>();
    let at = at.wrapping_add(at.align_offset(HUGE));
    // SAFETY: advice on the mapping just made.
    unsafe { libc::madvise(at.cast(), bytes, advice) };
    at
}

fn touch(at: *mut u8, bytes: usize) {
    for page in (0..bytes).step_by(PAGE) {
        // SAFETY: in a mapping of this process.
        unsafe { at.wrapping_add(page).write_volatile(1) };
    }
}
