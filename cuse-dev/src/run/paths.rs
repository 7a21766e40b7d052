//! Which of the paths that a program opens are ours.
//!
//! Nearly all opens are somebody else's, so the first look takes the last component only. What may
//! be ours is made absolute and cleaned of `.`, `..` and doubled slashes; symbolic links are not
//! followed. A path that is not ours is opened by the kernel, which reads it again: whoever
//! changes it meanwhile gets what they would have got without us.

use std::path::PathBuf;

/// A path of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ours {
    /// `/dev/iommu`
    Iommu,
    /// `/dev/vfio/vfio`
    VfioContainer,
    /// A descriptor as a file: `/proc/PID/fd/N`, `/dev/fd/N`
    Descriptor(Thread, i32),
    /// `/proc/PID/fail-nth` of the thread
    FailNth(Thread),
    /// `/proc/PID/status` of the thread, in which `VmPin` is ours
    Status(Thread),
    /// `/sys/kernel/debug` or something in it, as the path that is left
    Debugfs(PathBuf),
}

/// Whose file in `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// `/proc/self`: the caller's thread-group leader
    Leader,
    /// `/proc/thread-self`: the caller
    Caller,
    /// The thread of this id
    Id(u32),
}

const DEBUGFS: &[u8] = b"/sys/kernel/debug";

/// Says what `path`, as the caller gave it, is to us. `base` answers the directory that a
/// relative path starts from; it is asked only if that matters.
pub(crate) fn classify(path: &[u8], base: impl FnOnce() -> Option<Vec<u8>>) -> Option<Ours> {
    if !may_be_ours(path) {
        return None;
    }
    let absolute = if path.first() == Some(&b'/') {
        normalise(path)
    } else {
        let mut whole = base()?;
        whole.push(b'/');
        whole.extend_from_slice(path);
        normalise(&whole)
    };
    let parts: Vec<&[u8]> = absolute.iter().map(Vec::as_slice).collect();
    match parts.as_slice() {
        [b"dev", b"iommu"] => Some(Ours::Iommu),
        [b"dev", b"vfio", b"vfio"] => Some(Ours::VfioContainer),
        [b"dev", b"fd", fd] => number(fd).map(|fd| Ours::Descriptor(Thread::Leader, fd)),
        [b"proc", who @ .., b"fd", fd] => {
            thread(who).zip(number(fd)).map(|(who, fd)| Ours::Descriptor(who, fd))
        }
        [b"proc", who @ .., b"fail-nth"] => thread(who).map(Ours::FailNth),
        [b"proc", who @ .., b"status"] => thread(who).map(Ours::Status),
        [b"sys", b"kernel", b"debug", rest @ ..] => {
            let rest: Option<PathBuf> =
                rest.iter().map(|part| std::str::from_utf8(part).ok()).collect();
            rest.map(Ours::Debugfs)
        }
        _ => None,
    }
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn may_be_ours(path: &[u8]) -> bool {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1);
    let start = path[..end].iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let descriptor = || start >= 4 && path[..start].ends_with(b"/fd/");
    path[start..end].first().is_some_and(u8::is_ascii_digit) && descriptor()
        || matches!(&path[start..end], b"iommu" | b"vfio" | b"fail-nth" | b"status" | b"debug")
        || path.windows(DEBUGFS.len()).any(|part| part == DEBUGFS)
}

fn normalise(path: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name.to_vec()),
        }
    }
    parts
}

/// The thread that `who`, the components between `proc` and the file, names.
fn thread(who: &[&[u8]]) -> Option<Thread> {
    match who {
        [b"self"] => Some(Thread::Leader),
        [b"thread-self"] => Some(Thread::Caller),
        [id] | [_, b"task", id] => number(id).map(Thread::Id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_tmp(path: &str) -> Option<Ours> {
        classify(path.as_bytes(), || Some(b"/tmp/x".to_vec()))
    }

    #[test]
    fn our_paths_are_recognised_however_they_are_spelt() {
        for path in ["/dev/iommu", "//dev/./iommu", "/dev/shm/../iommu", "../../dev/iommu"] {
            assert_eq!(from_tmp(path), Some(Ours::Iommu), "{path}");
        }
        assert_eq!(from_tmp("/dev/vfio/vfio"), Some(Ours::VfioContainer));
        assert_eq!(from_tmp("/dev/fd/7"), Some(Ours::Descriptor(Thread::Leader, 7)));
        assert_eq!(from_tmp("/proc/thread-self/fd/7"), Some(Ours::Descriptor(Thread::Caller, 7)));
        assert_eq!(from_tmp("/tmp/fd/7"), None);
        assert_eq!(from_tmp("/proc/self/task/42/fail-nth"), Some(Ours::FailNth(Thread::Id(42))));
        assert_eq!(from_tmp("/proc/thread-self/fail-nth"), Some(Ours::FailNth(Thread::Caller)));
        assert_eq!(from_tmp("/proc/self/fail-nth"), Some(Ours::FailNth(Thread::Leader)));
        assert_eq!(from_tmp("/proc/7/status"), Some(Ours::Status(Thread::Id(7))));
        assert_eq!(from_tmp("/sys/kernel/debug/"), Some(Ours::Debugfs(PathBuf::new())));
        assert_eq!(
            from_tmp("/sys/kernel/debug/failslab/verbose"),
            Some(Ours::Debugfs("failslab/verbose".into()))
        );
    }

    #[test]
    fn other_paths_are_not() {
        for path in [
            "",
            "/",
            "iommu",
            "/dev/iommu/x",
            "/tmp/iommu",
            "/proc/status",
            "/proc/self/net/status",
            "/proc/4294967296/status",
            "/home/status",
            "/x/sys/kernel/debug",
            "/dev/iommu\0",
        ] {
            assert_eq!(from_tmp(path), None, "{path:?}");
        }
    }

    #[test]
    fn the_base_is_asked_only_for_what_may_be_ours() {
        let asked = |path: &[u8]| {
            let mut asked = false;
            classify(path, || {
                asked = true;
                None
            });
            asked
        };
        assert!(asked(b"iommu") && asked(b"./status"));
        assert!(!asked(b"libc.so.6") && !asked(b"/dev/iommu"));
    }
}
