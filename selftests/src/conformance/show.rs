//! Calls and replies as text: what `strace` would show, decoded by the ABI's own tables.

use std::fmt::Write as _;

use ioctl_abi::Command;
use ioctl_abi::print::{IoctlName, print_call};

use super::reply::Reply;
use super::step::{Argument, Call, Place, Step};

/// A call's name alone, for reports: of a selftest's command its operation.
pub fn name(call: &Call) -> String {
    match super::rules::command(call) {
        Some((_, Some(op))) => match ioctl_abi::selftest::TestOp::find(op) {
            Some(op) => op.name.to_owned(),
            None => "IOMMU_TEST_OP_unknown".to_owned(),
        },
        Some((command, None)) => command.name().to_owned(),
        None => match call {
            Call::Ioctl { .. } => "ioctl, unknown".to_owned(),
            Call::Open { .. } => "open".to_owned(),
            Call::Close { .. } => "close".to_owned(),
            Call::Dup { .. } => "dup".to_owned(),
            Call::Read { .. } => "read".to_owned(),
            Call::Write { .. } => "write".to_owned(),
            Call::Poll { .. } => "poll".to_owned(),
            Call::Mmap { .. } => "mmap".to_owned(),
            Call::Munmap(_) => "munmap".to_owned(),
            Call::Protect { .. } => "mprotect".to_owned(),
            Call::Memfd { .. } => "memfd_create".to_owned(),
            Call::Truncate { .. } => "ftruncate".to_owned(),
            Call::LimitLockedMemory { .. } => "setrlimit".to_owned(),
            Call::Capability { .. } => "capset".to_owned(),
            Call::Look(_) => "look".to_owned(),
            Call::Child(_) => "fork".to_owned(),
        },
    }
}

/// A result: a number or an errno's name.
pub fn outcome(result: i64) -> String {
    match Reply::of(result).errno() {
        Some(errno) => format!("{errno:?}"),
        None => result.to_string(),
    }
}

/// Bytes in hex, with runs of equal ones counted.
fn bytes(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take_while(|&&byte| byte == first).count();
        let _ = match run {
            1..=3 => write!(text, "{}", format!("{first:02x}").repeat(run)),
            _ => write!(text, "[{first:02x}*{run}]"),
        };
        rest = &rest[run..];
    }
    text
}

/// A call and, where it was played, its reply.
pub fn line(call: &Call, reply: Option<&Reply>) -> String {
    let mut text = match call {
        Call::Ioctl { fd, request, argument, pokes, .. } => {
            let shown = match argument {
                Argument::Value(value) => format!("{}, {value:#x}", IoctlName(*request)),
                Argument::Struct { bytes: before, place, .. } => {
                    let after = reply.map_or(&before[..], |reply| &reply.after[..]);
                    let mut shown = match Command::from_ioctl(*request) {
                        Some(command) => print_call(command, before, after).to_string(),
                        None => format!("{} {}", IoctlName(*request), bytes(before)),
                    };
                    if *place != Place::Guarded {
                        let _ = write!(shown, " in {place:?} memory");
                    }
                    shown
                }
            };
            let mut text = format!("ioctl({}, {shown})", fd.literal as i32);
            for poke in pokes {
                let _ = write!(text, " with {:#x}: {}", poke.at, bytes(&poke.bytes));
            }
            text
        }
        Call::Child(calls) => {
            let mut text = "fork".to_owned();
            for (at, call) in calls.iter().enumerate() {
                let reply = reply.and_then(|reply| reply.child.get(at));
                let _ = write!(text, "\n        {}", line(call, reply));
            }
            text
        }
        Call::Open { flags } => format!("open({flags:#o})"),
        Call::Close { fd } => format!("close({})", fd.literal as i32),
        Call::Dup { fd } => format!("dup({})", fd.literal as i32),
        Call::Read { fd, at, len } => format!("read({}, {at:#x}, {len})", fd.literal as i32),
        Call::Write { fd, poke, len } => {
            format!("write({}, {:#x}: {}, {len})", fd.literal as i32, poke.at, bytes(&poke.bytes))
        }
        Call::Poll { fd, events } => format!("poll({}, {events:#x})", fd.literal as i32),
        Call::Mmap { fd, at, len, prot, flags, offset } => format!(
            "mmap({at:#x}, {len:#x}, {prot}, {flags:#x}, {}, {:#x})",
            fd.literal as i32, offset.literal
        ),
        Call::Munmap(range) => format!("munmap({:#x}, {:#x})", range.at, range.len),
        Call::Protect { range, prot } => {
            format!("mprotect({:#x}, {:#x}, {prot})", range.at, range.len)
        }
        Call::Memfd { len, flags } => format!("memfd_create({flags:#x}) of {len:#x}"),
        Call::Truncate { fd, len } => format!("ftruncate({}, {len:#x})", fd.literal as i32),
        Call::LimitLockedMemory { bytes } => format!("setrlimit(RLIMIT_MEMLOCK, {bytes:#x})"),
        Call::Capability { number, raised } => {
            format!("capability {number} {}", if *raised { "raised" } else { "lowered" })
        }
        Call::Look(range) => format!("look at {:#x}, {:#x}", range.at, range.len),
    };
    if let Some(reply) = reply {
        let _ = write!(text, " = {}", outcome(reply.result));
        if let Some(fd) = reply.descriptor {
            let _ = write!(text, " and descriptor {fd}");
        }
        for seen in &reply.seen {
            let _ = write!(text, " {{{}}}", bytes(seen));
        }
    }
    text
}

/// The calls of a program on threads, a line each, in the order in which they began: the call's number,
/// which of a thread begins with the thread's, and what [`line()`] shows.
pub fn on_threads(played: &[(Step, Reply)]) -> String {
    played.iter().fold(String::new(), |mut text, (step, reply)| {
        let _ = writeln!(text, "{:>6} {}", step.number, line(&step.call, Some(reply)));
        text
    })
}
