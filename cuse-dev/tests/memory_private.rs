//! Private memory of a real process: kernel pins, which keep the page whatever becomes of its
//! address. Each test is one row of what `pin_user_pages(FOLL_LONGTERM)` promises.

mod puppet;

use std::sync::Arc;

use cuse_dev::caller::Callers;
use cuse_dev::memory::{Host, PfnMode};
use engine::Errno;
use engine::memory::{AddressSpace, Held, Pin};
use puppet::{PAGE, Puppet};

struct Bench {
    callers: Callers,
    puppet: Puppet,
    memory: Arc<dyn AddressSpace>,
}

/// A puppet and its memory; `None` (loudly) where the kernel has no io_uring for us.
fn bench() -> Option<Bench> {
    if !puppet::io_uring() {
        eprintln!("SKIPPED: no io_uring here");
        return None;
    }
    let callers = Callers::new(Host::new(PfnMode::Real).unwrap());
    let puppet = Puppet::new();
    let memory = puppet::memory(&callers, &puppet);
    Some(Bench { callers, puppet, memory })
}

fn byte(pin: &Arc<dyn Pin>, offset: u64, length: usize) -> Option<u8> {
    let mut bytes = vec![0; length];
    pin.read(offset, &mut bytes).unwrap();
    bytes.iter().all(|&byte| byte == bytes[0]).then(|| bytes[0])
}

fn pinned(bench: &Bench, at: u64, pages: u64) -> Arc<dyn Pin> {
    let pin = bench.memory.pin(at, pages, true).unwrap();
    assert_eq!(pin.held(), Held::Pinned);
    assert_eq!(pin.pages(), pages);
    pin
}

fn frames(pin: &Arc<dyn Pin>) -> Vec<u64> {
    let mut all = Vec::new();
    pin.frames(0..pin.pages(), &mut |pfn, count| all.extend(pfn..pfn + count));
    all
}

/// The rights of the mapping that begins at `at`.
fn rights(puppet: &Puppet, at: u64) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", puppet.pid)).unwrap();
    let line = maps.lines().find(|line| line.starts_with(&format!("{at:x}-"))).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn live_both_ways_and_past_the_end_of_a_piece() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(300);
    puppet.fill(at, 300 * PAGE, 1);
    let pin = pinned(&bench, at, 300);
    assert_eq!(byte(&pin, 0, 300 * PAGE as usize), Some(1));
    puppet.fill(at + 5 * PAGE + 100, 5000, 2);
    assert_eq!(byte(&pin, 5 * PAGE + 100, 5000), Some(2));
    pin.write(7 * PAGE - 10, &[3; 20]).unwrap();
    assert_eq!(puppet.byte(at + 7 * PAGE - 10, 20), Some(3));
    pin.write(0, &vec![4; 300 * PAGE as usize]).unwrap();
    assert_eq!(puppet.byte(at, 300 * PAGE), Some(4));
    assert_eq!(pin.read(300 * PAGE - 1, &mut [0; 2]), Err(Errno::EFAULT));
    assert_eq!(frames(&pin).len(), 300);
}

#[test]
fn pages_survive_munmap_and_what_is_mapped_over_them() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(4);
    puppet.fill(at, 4 * PAGE, 1);
    let pin = pinned(&bench, at, 4);
    puppet.munmap(at, 2);
    assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(1));
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    puppet.mmap(at, 4 * PAGE, rights, flags, -1);
    puppet.fill(at, 4 * PAGE, 2);
    assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(1));
    pin.write(0, &[5; 64]).unwrap();
    assert_eq!(puppet.byte(at, 4 * PAGE), Some(2));
    assert_eq!(byte(&pin, 0, 64), Some(5));
    // A new pin of the same addresses holds the new pages, in other frames.
    let new = pinned(&bench, at, 4);
    assert_eq!(byte(&new, 0, 4 * PAGE as usize), Some(2));
    let old = frames(&pin);
    assert!(frames(&new).iter().all(|frame| !old.contains(frame)));
}

#[test]
fn pages_follow_mremap_and_not_the_address() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(2);
    let to = puppet.anonymous(2);
    puppet.fill(at, 2 * PAGE, 1);
    let pin = pinned(&bench, at, 2);
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let moved = puppet.call(libc::SYS_mremap, [at, 2 * PAGE, 2 * PAGE, flags, to, 0]);
    assert_eq!(moved as u64, to);
    puppet.fill(to, 2 * PAGE, 7);
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(7));
    pin.write(PAGE, &[8; 16]).unwrap();
    assert_eq!(puppet.byte(to + PAGE, 16), Some(8));
}

#[test]
fn pages_survive_madvise() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let advices = [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_PAGEOUT, libc::MADV_COLD];
    for advice in advices {
        let at = puppet.anonymous(4);
        puppet.fill(at, 4 * PAGE, 6);
        let pin = pinned(&bench, at, 4);
        assert_eq!(puppet.madvise(at, 4, advice), 0, "advice {advice}");
        assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(6), "advice {advice}");
        if advice == libc::MADV_DONTNEED {
            assert_eq!(puppet.byte(at, 4 * PAGE), Some(0));
            puppet.fill(at, 4 * PAGE, 9);
            assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(6));
        }
    }
}

#[test]
fn pages_stay_the_parents_over_fork() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(2);
    puppet.fill(at, 2 * PAGE, 1);
    let pin = pinned(&bench, at, 2);
    let child = puppet.fork();
    child.fill(at, PAGE, 2);
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(1));
    puppet.fill(at, 2 * PAGE, 3);
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(3));
    pin.write(PAGE, &[4; 8]).unwrap();
    assert_eq!(puppet.byte(at + PAGE, 8), Some(4));
    assert_eq!(child.byte(at + PAGE, 8), Some(1));
    // The child's memory is another mm's, and can be pinned, too.
    let memory = puppet::memory(&bench.callers, &child);
    assert_ne!(memory.id(), bench.memory.id());
    let own = memory.pin(at, 2, true).unwrap();
    assert_eq!(own.held(), Held::Pinned);
    child.fill(at, 2 * PAGE, 5);
    assert_eq!(byte(&own, 0, 2 * PAGE as usize), Some(5));
    assert_eq!(byte(&pin, 0, 8), Some(3));
}

#[test]
fn mprotect_takes_nothing_from_a_pin() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(2);
    puppet.fill(at, 2 * PAGE, 1);
    let pin = pinned(&bench, at, 2);
    puppet.mprotect(at, 2, libc::PROT_NONE);
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(1));
    pin.write(0, &[2; 8]).unwrap();
    puppet.mprotect(at, 2, libc::PROT_READ);
    assert_eq!(puppet.byte(at, 8), Some(2));
    assert_eq!(bench.memory.pin(at, 2, true).err(), Some(Errno::EFAULT));
}

#[test]
fn a_pin_for_writing_breaks_copy_on_write_first() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(4);
    // Never touched: the zero page, until it is pinned.
    let pin = pinned(&bench, at, 4);
    puppet.fill(at, 4 * PAGE, 9);
    assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(9));
    // Shared with a child: the parent gets its own page when it is pinned.
    let at = puppet.anonymous(1);
    puppet.fill(at, PAGE, 1);
    let child = puppet.fork();
    let pin = pinned(&bench, at, 1);
    child.fill(at, PAGE, 2);
    assert_eq!(byte(&pin, 0, PAGE as usize), Some(1));
    puppet.fill(at, PAGE, 3);
    assert_eq!(byte(&pin, 0, PAGE as usize), Some(3));
}

#[test]
fn a_hole_is_a_fault_and_leaves_no_pin() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(8);
    puppet.fill(at, 8 * PAGE, 1);
    puppet.munmap(at + 5 * PAGE, 1);
    for _ in 0..50 {
        assert_eq!(bench.memory.pin(at, 8, true).err(), Some(Errno::EFAULT));
    }
    puppet.mprotect(at + 3 * PAGE, 1, libc::PROT_READ);
    assert_eq!(bench.memory.pin(at, 5, true).err(), Some(Errno::EFAULT));
    pinned(&bench, at, 3);
}

#[test]
fn read_only_private_memory_is_pinned_and_stays_read_only() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(2);
    puppet.fill(at, 2 * PAGE, 1);
    puppet.mprotect(at, 2, libc::PROT_READ);
    let pin = bench.memory.pin(at, 2, false).unwrap();
    assert_eq!(pin.held(), Held::Pinned);
    assert_eq!(rights(puppet, at), "r--p");
    assert_eq!(bench.memory.pin(at, 2, true).err(), Some(Errno::EFAULT));
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(1));
    assert_eq!(pin.write(0, &[1]), Err(Errno::EFAULT));
    let before = frames(&pin);
    puppet.munmap(at, 2);
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(1));
    assert_eq!(frames(&pin), before);
}

#[test]
fn read_only_memory_of_who_may_run_is_a_window_that_says_so() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(2);
    puppet.fill(at, 2 * PAGE, 1);
    puppet.mprotect(at, 2, libc::PROT_READ | libc::PROT_EXEC);
    let pin = bench.memory.pin(at, 2, false).unwrap();
    assert_eq!((pin.held(), &rights(puppet, at)[..]), (Held::Pinned, "r-xp"));
    // Another one's call is answered from now on.
    let other = Puppet::new();
    let _memory = puppet::memory(&bench.callers, &other);
    let pin = bench.memory.pin(at, 2, false).unwrap();
    assert!(matches!(pin.held(), Held::Window(why) if why.contains("other threads")));
    assert_eq!(rights(puppet, at), "r-xp");
    assert_eq!(byte(&pin, 0, 2 * PAGE as usize), Some(1));
    puppet.munmap(at, 2);
    assert_eq!(pin.read(0, &mut [0]), Err(Errno::EFAULT));
}

#[test]
fn parts_are_released_one_by_one() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let at = puppet.anonymous(8);
    puppet.fill(at, 8 * PAGE, 1);
    let pin = pinned(&bench, at, 8);
    pin.release(0..3);
    pin.release(5..8);
    assert_eq!(byte(&pin, 3 * PAGE, 2 * PAGE as usize), Some(1));
    pin.release(3..5);
    assert_eq!(pin.read(3 * PAGE, &mut [0]), Err(Errno::EFAULT));
}

#[test]
fn large_pins_have_many_pieces() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    let pages = (300 << 20) / PAGE;
    let at = puppet.anonymous(pages);
    puppet.madvise(at, pages, libc::MADV_HUGEPAGE);
    let pin = pinned(&bench, at, pages);
    puppet.fill(at + (128 << 20) - 100, 200, 7);
    assert_eq!(byte(&pin, (128 << 20) - 100, 200), Some(7));
    pin.write((256 << 20) - 8, &[8; 16]).unwrap();
    assert_eq!(puppet.byte(at + (256 << 20) - 8, 16), Some(8));
    assert_eq!(frames(&pin).len() as u64, pages);
    puppet.munmap(at, pages);
    assert_eq!(byte(&pin, (128 << 20) - 100, 200), Some(7));
}

#[test]
fn pages_survive_exit_kill_and_exec() {
    for end in ["exit", "kill", "exec"] {
        let Some(mut bench) = bench() else { return };
        let at = bench.puppet.anonymous(4);
        bench.puppet.fill(at, 4 * PAGE, 1);
        let pin = pinned(&bench, at, 4);
        match end {
            "exit" => bench.puppet.exit(),
            "kill" => bench.puppet.kill(),
            _ => bench.puppet.exec(c"/bin/sleep", c"600"),
        }
        assert_eq!(byte(&pin, 0, 4 * PAGE as usize), Some(1), "{end}");
        pin.write(0, &[2; 4]).unwrap();
        assert_eq!(byte(&pin, 0, 4), Some(2), "{end}");
        if end == "exec" {
            let after = bench.callers.resolve(bench.puppet.pid).unwrap().memory();
            assert_ne!(after.id(), bench.memory.id());
        }
        assert_eq!(bench.memory.read(at, &mut [0]), Err(Errno::EFAULT), "{end}");
        assert!(bench.memory.pin(at, 1, true).is_err(), "{end}");
        assert_eq!(byte(&pin, 0, 4), Some(2), "{end}");
    }
}

#[test]
fn the_caller_does_not_notice() {
    let Some(bench) = bench() else { return };
    let puppet = &bench.puppet;
    // It has no child, its descriptors are as they were, and one thread.
    let options = (libc::WNOHANG | libc::__WALL) as u64;
    let child = puppet.call(libc::SYS_wait4, [u64::MAX, 0, options, 0, 0, 0]);
    assert_eq!(child, -i64::from(libc::ECHILD));
    let fds = std::fs::read_dir(format!("/proc/{}/fd", puppet.pid)).unwrap().flatten();
    let names: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("io_uring")), "{names:?}");
    let threads = std::fs::read_dir(format!("/proc/{}/task", puppet.pid)).unwrap().count();
    assert_eq!(threads, 1);
    let status = std::fs::read_to_string(format!("/proc/{}/status", puppet.pid)).unwrap();
    assert!(status.contains("TracerPid:\t0\n"));
}
