//! Shared memory of a real process: the very pages.

mod puppet;

use std::sync::Arc;

use cuse_dev::caller::Callers;
use cuse_dev::memory::{Host, PfnMode};
use engine::Errno;
use engine::caller::{CallerFile, Process};
use engine::dma::atomic::Width;
use engine::memory::Held;
use puppet::{PAGE, Puppet};

fn callers() -> Callers {
    Callers::new(Host::new(PfnMode::Real).unwrap())
}

#[test]
fn copies_obey_protections() {
    let (callers, puppet) = (callers(), Puppet::new());
    let memory = callers.resolve(puppet.pid).unwrap().memory();
    let at = puppet.anonymous(3);
    puppet.fill(at, PAGE, 5);
    let mut bytes = [0; 16];
    memory.read(at + 100, &mut bytes).unwrap();
    assert_eq!(bytes, [5; 16]);
    memory.write(at + PAGE - 8, &[9; 16]).unwrap();
    assert_eq!(puppet.byte(at + PAGE - 8, 16), Some(9));
    puppet.mprotect(at + PAGE, 1, libc::PROT_READ);
    assert_eq!(memory.write(at + PAGE, &[1]), Err(Errno::EFAULT));
    puppet.munmap(at + 2 * PAGE, 1);
    assert_eq!(memory.read(at + 2 * PAGE - 8, &mut bytes), Err(Errno::EFAULT));
    assert_eq!(memory.read(0, &mut bytes), Err(Errno::EFAULT));
    assert_eq!(memory.read(u64::MAX, &mut bytes), Err(Errno::EFAULT));
    assert_eq!(memory.write(1 << 63, &bytes), Err(Errno::EFAULT));
    memory.read(0, &mut []).unwrap();
}

#[test]
fn shared_anonymous_memory_is_live_both_ways_and_outlives_its_mapping() {
    let (callers, mut puppet) = (callers(), Puppet::new());
    let memory = callers.resolve(puppet.pid).unwrap().memory();
    let at = puppet.shared(8);
    puppet.fill(at, 8 * PAGE, 3);
    let pin = memory.pin(at + PAGE, 4, true).unwrap();
    if pin.held() != Held::Shared {
        eprintln!("SKIPPED: held as {:?}; map_files needs a privilege", pin.held());
        return;
    }
    let mut bytes = vec![0; 4 * PAGE as usize];
    pin.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 3));
    pin.write(PAGE, &[4; 100]).unwrap();
    assert_eq!(puppet.byte(at + 2 * PAGE, 100), Some(4));
    puppet.fill(at + PAGE, 1, 6);
    pin.read(0, &mut bytes[..1]).unwrap();
    assert_eq!(bytes[0], 6);
    let exchange = |offset, old, new| pin.compare_exchange(offset, Width::Eight, old, new);
    let fives = u64::from_ne_bytes([5; 8]);
    let was = exchange(3 * PAGE, 0, 0).unwrap().unwrap();
    assert_eq!(exchange(3 * PAGE, was, fives), Some(Ok(was)));
    assert_eq!(puppet.byte(at + 4 * PAGE, 8), Some(5));
    assert_eq!(exchange(4 * PAGE, 0, 1), None);
    let mut pages = 0;
    pin.frames(0..4, &mut |_, count| pages += count);
    assert_eq!(pages, 4);
    puppet.munmap(at, 8);
    pin.read(PAGE, &mut bytes[..100]).unwrap();
    assert_eq!(bytes[..100], [4; 100]);
    puppet.kill();
    pin.read(PAGE, &mut bytes[..100]).unwrap();
    assert_eq!(bytes[..100], [4; 100]);
    assert_eq!(pin.read(4 * PAGE - 1, &mut [0; 2]), Err(Errno::EFAULT));
}

#[test]
fn pins_need_memory_and_rights() {
    let (callers, puppet) = (callers(), Puppet::new());
    let memory = callers.resolve(puppet.pid).unwrap().memory();
    for at in [puppet.shared(4), puppet.anonymous(4)] {
        puppet.mprotect(at, 1, libc::PROT_READ);
        assert!(memory.pin(at, 4, false).is_ok());
        assert_eq!(memory.pin(at, 4, true).err(), Some(Errno::EFAULT));
        puppet.mprotect(at, 1, libc::PROT_NONE);
        assert_eq!(memory.pin(at, 4, false).err(), Some(Errno::EFAULT));
        puppet.munmap(at + 2 * PAGE, 1);
        assert_eq!(memory.pin(at + PAGE, 2, true).err(), Some(Errno::EFAULT));
        assert!(memory.pin(at + PAGE, 1, true).is_ok());
    }
    assert_eq!(memory.pin(0, 1, false).err(), Some(Errno::EFAULT));
    assert_eq!(memory.pin(!(PAGE - 1), 1, false).err(), Some(Errno::EFAULT));
    assert_eq!(memory.pin(0, u64::MAX, false).err(), Some(Errno::EFAULT));
}

#[test]
fn a_mm_is_told_from_the_next_one_of_the_process() {
    let (callers, puppet) = (callers(), Puppet::new());
    let before = callers.resolve(puppet.pid).unwrap();
    assert_eq!(callers.resolve(puppet.pid).unwrap().memory().id(), before.memory().id());
    assert_eq!(before.pid(), puppet.pid);
    let child = puppet.fork();
    let other = callers.resolve(child.pid).unwrap();
    assert_ne!(other.memory().id(), before.memory().id());
    let at = puppet.anonymous(1);
    puppet.exec(c"/bin/sleep", c"600");
    let after = callers.resolve(puppet.pid).unwrap();
    assert_ne!(after.memory().id(), before.memory().id());
    assert_eq!(before.memory().read(at, &mut [0]), Err(Errno::EFAULT));
    assert_eq!(before.memory().pin(at, 1, false).err(), Some(Errno::EFAULT));
}

#[test]
fn the_dead_are_not_found() {
    let (callers, mut puppet) = (callers(), Puppet::new());
    let process = callers.resolve(puppet.pid).unwrap();
    let uid = process.uid();
    let limit = process.memlock_limit();
    puppet.kill();
    assert!(callers.resolve(puppet.pid).is_err());
    assert_eq!((process.uid(), process.memlock_limit()), (uid, limit));
    assert!(!process.capable(engine::caller::Capability::IpcLock));
    assert_eq!(process.memory().read(0x1000, &mut [0]), Err(Errno::EFAULT));
}

#[test]
fn descriptors_of_the_caller() {
    let (callers, puppet) = (callers(), Puppet::new());
    let process = callers.resolve(puppet.pid).unwrap();
    let memfd = nix::sys::memfd::memfd_create(c"guest-ram", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let memfd = memfd.unwrap();
    nix::unistd::ftruncate(&memfd, 4 * PAGE as i64).unwrap();
    let fd = puppet.adopt(memfd.try_clone().unwrap()) as i32;
    let file = process.descriptor(puppet.pid, fd).unwrap();
    let CallerFile::Backing(file) = process.classify(file).unwrap() else {
        panic!("a memfd has pages");
    };
    assert_eq!(file.describe(), "memfd:guest-ram");
    assert!(file.pinnable() && file.writable());
    assert_eq!(file.size(), 4 * PAGE);
    let pin = file.pin(PAGE, 3, true).unwrap();
    pin.write(0, &[8; 3]).unwrap();
    let mut seen = [0; 3];
    nix::sys::uio::pread(&memfd, &mut seen, PAGE as i64).unwrap();
    assert_eq!(seen, [8; 3]);
    assert_eq!(file.pin(PAGE, 4, true).err(), Some(Errno::EINVAL));
    assert_eq!(process.descriptor(puppet.pid, 9999).err(), Some(Errno::EBADF));
    // The same file by way of a mapping is the same pages.
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let at = puppet.mmap(0, 4 * PAGE, rights, libc::MAP_SHARED, fd);
    let mapped = process.memory().pin(at + PAGE, 1, true).unwrap();
    assert_eq!(mapped.held(), Held::Shared);
    let frames = |pin: &Arc<dyn engine::memory::Pin>| {
        let mut first = 0;
        pin.frames(0..1, &mut |pfn, _| first = pfn);
        first
    };
    assert_eq!(frames(&pin), frames(&mapped));
    mapped.read(0, &mut seen).unwrap();
    assert_eq!(seen, [8; 3]);
    // A pipe has none.
    let (read, _write) = nix::unistd::pipe().unwrap();
    let fd = puppet.adopt(read) as i32;
    let pipe = process.descriptor(puppet.pid, fd).unwrap();
    assert!(matches!(process.classify(pipe).unwrap(), CallerFile::Other));
    // An ordinary file can be mapped, but not pinned, and a read-only one says so.
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    let fd = puppet.adopt(program.into()) as i32;
    let program = process.descriptor(puppet.pid, fd).unwrap();
    let CallerFile::Backing(program) = process.classify(program).unwrap() else {
        panic!("a file");
    };
    assert!(!program.writable());
    if !program.pinnable() {
        assert_eq!(program.pin(0, 1, false).err(), Some(Errno::EINVAL));
    }
}
