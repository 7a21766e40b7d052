//! How callers reach softiommu: seccomp's user notification, CUSE, FUSE, and whose the nodes are.
#![allow(unsafe_code)] // One ioctl, and the system call that a test thread makes.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use engine::Errno;

use super::{Check, child, failed, setting};
use crate::event_files::{EventFiles, NoMount};
use crate::run::{filter, notify};
use crate::wire::mount::{self, Root};

pub(super) fn checks() -> Vec<Check> {
    vec![
        seccomp(),
        sync_wake_up(),
        user_namespaces(),
        event_files(),
        cuse(),
        fuse(),
        node("iommu-node", "/dev/iommu", "/dev/iommu"),
        node("vfio-node", "/dev/vfio/vfio", "/dev/vfio/vfio (VFIO's container)"),
    ]
}

/// A filter that hands one harmless system call over: `getpgid`.
fn tiny_filter() -> [libc::sock_filter; 4] {
    let op = |code: u32, k, jf| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_getpgid as u32, 1),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0),
        op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ]
}

/// Runs `with` on the listener of a thread that is about to call `getpgid`. Answers what the
/// thread's call returned. The filter goes with the thread.
fn with_listener<T: Send>(
    with: impl FnOnce(std::os::fd::OwnedFd) -> T,
) -> std::io::Result<(T, i32)> {
    std::thread::scope(|scope| {
        let (give, take) = std::sync::mpsc::channel();
        let thread = scope.spawn(move || {
            let installed = filter::install(&tiny_filter());
            let worked = installed.is_ok();
            let _ = give.send(installed);
            // SAFETY: takes a number. Without a filter it is not made.
            if worked { unsafe { libc::getpgid(0) } } else { -1 }
        });
        let listener = take.recv().unwrap_or(Err(std::io::ErrorKind::BrokenPipe.into()))?;
        // The listener is closed by then, which lets the thread go in any case.
        let result = with(listener);
        Ok((result, thread.join().unwrap_or(-1)))
    })
}

/// Receives one call and answers it with a new descriptor.
fn answer_one(listener: std::os::fd::OwnedFd) -> Result<i32, Errno> {
    let listener = notify::Listener::new(listener);
    let call = listener.receive()?;
    let null = std::fs::File::open("/dev/null").map_err(|error| crate::memory::errno(&error))?;
    let added = listener.add(&call, null.as_fd(), true);
    listener.answer(&call, added.map(i64::from));
    added
}

fn seccomp() -> Check {
    let name = "seccomp-notify";
    let title = "seccomp user notification";
    let cost = "`softiommu run` does not work; `softiommu serve` does without";
    match with_listener(answer_one) {
        Ok((Ok(given), returned)) if given == returned => {
            let _ = nix::unistd::close(given);
            Check::ok(name, title, "a thread's call was received, and answered with a descriptor")
        }
        Ok((Ok(given), returned)) => {
            let _ = nix::unistd::close(given);
            let found = format!("a call was answered with {given} and returned {returned}");
            Check::ok(name, title, found).missing(cost, "report this as a bug")
        }
        Ok((Err(error), _)) => Check::ok(name, title, failed("answer a call", error))
            .missing(cost, "a kernel that lets a supervisor add descriptors (Linux 5.9 and later)"),
        Err(error) => {
            let found = format!("cannot install a filter with a listener: {error}");
            let remedy = match error.raw_os_error() {
                Some(libc::EBUSY) => {
                    "this process is under another supervisor (`softiommu run`, or a container \
                     runtime's): start it outside of that"
                }
                Some(libc::EINVAL) => {
                    "a kernel with SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19 and later, \
                     CONFIG_SECCOMP_FILTER)"
                }
                Some(libc::EPERM) => {
                    "the container's own filter forbids seccomp(2): allow it there (docker: \
                     --security-opt seccomp=unconfined)"
                }
                _ => "a kernel with CONFIG_SECCOMP_FILTER",
            };
            Check::ok(name, title, found).missing(cost, remedy)
        }
    }
}

fn sync_wake_up() -> Check {
    /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`.
    const SYNC_WAKE_UP: u64 = 1;
    let (name, title) = ("seccomp-sync", "seccomp's synchronous wake-up");
    let tried = with_listener(|listener| {
        // SAFETY: the argument of this ioctl is a number.
        let set = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP)
        };
        Errno::result(set).map(drop)
    });
    let found = match tried {
        Ok((Ok(()), _)) => return Check::ok(name, title, "the listener takes the flag"),
        Ok((Err(error), _)) => failed("set the flag", error),
        Err(error) => format!("no listener to set it on: {error}"),
    };
    Check::ok(name, title, found)
        .degraded("each call under `run` takes tens of microseconds more", "Linux 6.6 or later")
}

/// What takes a process with one thread, and changes it for good.
fn enter_user_namespace() -> Result<(), Errno> {
    use nix::sched::{CloneFlags, unshare};
    let uid = nix::unistd::getuid();
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
        .map_err(|error| crate::memory::errno(&error))
}

fn user_namespaces() -> Check {
    let (name, title) = ("user-namespace", "user namespaces");
    match child::in_child(enter_user_namespace) {
        Ok(()) => Check::ok(name, title, "a child made one and mapped itself into it"),
        Err(error) => {
            let mut remedy = String::from("allow them: ");
            let sysctl = [
                (
                    "/proc/sys/kernel/unprivileged_userns_clone",
                    "0",
                    "kernel.unprivileged_userns_clone=1",
                ),
                (
                    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                    "1",
                    "kernel.apparmor_restrict_unprivileged_userns=0",
                ),
                ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
            ];
            let found: Vec<_> = sysctl
                .iter()
                .filter(|(path, bad, _)| setting(path).as_deref() == Some(*bad))
                .map(|(.., set)| format!("sysctl {set}"))
                .collect();
            if found.is_empty() {
                remedy += "the container's runtime forbids unshare(CLONE_NEWUSER)";
            } else {
                remedy += &found.join(", ");
            }
            let check = Check::ok(name, title, failed("make one", error));
            if nix::unistd::geteuid().is_root() {
                check.degraded("nothing for root; other users' `run` has no event files", remedy)
            } else {
                check.degraded("`run` as this user has no event files (see there)", remedy)
            }
        }
    }
}

/// What fault queues, event queues, accesses and dma-bufs are made of.
fn event_files() -> Check {
    let (name, title) = ("event-files", "a private FUSE mount (event files)");
    match EventFiles::mount_somehow() {
        Ok(_mount) => Check::ok(name, title, "mounted, attached nowhere, and gone again"),
        Err(error) => {
            let (NoMount::Fuse(errno) | NoMount::Namespace(errno)) = error;
            let found = format!("cannot mount one: {error}");
            Check::ok(name, title, found).degraded(
                "fault queues, event queues, accesses and dma-bufs are refused (their ioctls fail)",
                fuse_remedy(errno),
            )
        }
    }
}

/// How to come by FUSE, after what it said.
fn fuse_remedy(error: Errno) -> String {
    let node = "/dev/fuse";
    match error {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            format!("{}; in a container, pass {node} in (docker: --device {node})", module("fuse"))
        }
        Errno::EACCES => {
            let mode = nix::sys::stat::stat(node).map_or(0, |stat| stat.st_mode & 0o7777);
            format!(
                "{node} has mode {mode:03o}: let this user open it (chmod 666 {node}, or a udev rule)"
            )
        }
        Errno::EPERM => {
            "as root with CAP_SYS_ADMIN, or where user namespaces are allowed; in a container the \
             device cgroup may forbid /dev/fuse (docker: --device /dev/fuse)"
                .into()
        }
        _ => "run as root".into(),
    }
}

/// How to get the module `name`, by what this machine has of it.
fn module(name: &str) -> String {
    let release = nix::sys::utsname::uname()
        .map(|system| system.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let directory = format!("/lib/modules/{release}");
    let listed = |list: &str| {
        std::fs::read_to_string(format!("{directory}/{list}"))
            .is_ok_and(|text| text.contains(&format!("/{name}.ko")))
    };
    if listed("modules.dep") {
        format!("modprobe {name}; for each boot: echo {name} >/etc/modules-load.d/{name}.conf")
    } else if Path::new(&directory).exists() {
        let option = name.to_uppercase();
        format!("this kernel ({release}) comes without it: one with CONFIG_{option}=m or y")
    } else {
        let option = name.to_uppercase();
        format!(
            "a kernel with CONFIG_{option} (nothing of {release}'s modules is here; in a \
             container, load it on the host: modprobe {name})"
        )
    }
}

fn cuse() -> Check {
    let (name, title) = ("cuse", "CUSE (a character device in userspace)");
    match mount::cuse(&format!("softiommu-doctor-{}", std::process::id())) {
        // The device goes with the channel.
        Ok(_channel) => Check::ok(name, title, "a device was registered and is gone again"),
        Err(error) => {
            let remedy = match error {
                Errno::EACCES | Errno::EPERM => "as root".to_owned(),
                _ => module("cuse"),
            };
            Check::ok(name, title, failed("register a device through /dev/cuse", error)).degraded(
                "`serve` makes its node by FUSE: a regular file, not a character device, \
                 that a chroot or container needs bind-mounted",
                remedy,
            )
        }
    }
}

fn fuse() -> Check {
    let (name, title) = ("fuse", "FUSE (a device-like file)");
    match mount::fuse(&Root::File { mode: 0o600 }, "softiommu-doctor") {
        Ok(_mount) => Check::ok(name, title, "a file was mounted nowhere and is gone again"),
        Err(error) => {
            let check = Check::ok(name, title, failed("mount a file", error));
            check.degraded("`serve` has CUSE alone; see also event files", fuse_remedy(error))
        }
    }
}

/// Whose a node is.
fn node(name: &'static str, path: &str, title: &'static str) -> Check {
    use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
    let without = "`softiommu serve` cannot have this name; `softiommu run` is not affected";
    match nix::sys::stat::stat(path) {
        Err(Errno::ENOENT) => Check::ok(name, title, "not there: free for `softiommu serve`"),
        Err(Errno::ENOTCONN) => Check::ok(
            name,
            title,
            "the mount of a daemon that died, which the next `softiommu serve` takes away",
        ),
        Err(error) => Check::ok(name, title, failed("look at it", error))
            .degraded(without, format!("look at {path} by hand")),
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFCHR => {
            let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
            let cuse = std::fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"))
                .is_ok_and(|class| class.ends_with("cuse"));
            if cuse {
                return Check::ok(name, title, "served by a CUSE daemon");
            }
            Check::ok(name, title, format!("a device of the kernel ({major}:{minor})")).degraded(
                without,
                "`softiommu serve --name softiommu`, or unload the kernel's module \
                 (modprobe -r iommufd)",
            )
        }
        Ok(_) if statfs(path).is_ok_and(|found| found.filesystem_type() == FUSE_SUPER_MAGIC) => {
            Check::ok(name, title, "served by a FUSE daemon")
        }
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size == 0 => {
            Check::ok(name, title, "an empty file: free for `softiommu serve`")
        }
        Ok(_) => Check::ok(name, title, "a file with contents, or no file")
            .degraded(without, format!("move {path} away")),
    }
}
