//! How `softiommu run` ends: as the program does, with nothing left behind.

mod common;

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use common::{Place, can_run, finish, softiommu_run, text};

fn shell(script: &str) -> Command {
    let mut command = softiommu_run(&["--strict"]);
    command.args(["sh", "-c", script]);
    command
}

#[test]
fn the_exit_status_is_the_programs() {
    if !can_run() {
        return;
    }
    for status in [0, 1, 42, 127, 255] {
        let output = finish(shell(&format!("exit {status}")));
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    }
}

#[test]
fn a_deadly_signal_is_passed_on() {
    if !can_run() {
        return;
    }
    for (name, signal) in [("TERM", 15), ("KILL", 9), ("SEGV", 11), ("USR1", 10)] {
        let output = finish(shell(&format!("ulimit -c 0; kill -{name} $$")));
        assert_eq!(output.status.signal(), Some(signal), "{}", text(&output));
    }
}

#[test]
fn what_cannot_be_run_is_told_as_by_a_shell() {
    if !can_run() {
        return;
    }
    for (program, status) in [("/nonexistent", 127), ("/", 126)] {
        let mut command = softiommu_run(&[]);
        command.arg(program);
        let output = finish(command);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    }
}

#[test]
fn nothing_is_left_in_the_temporary_directory() {
    if !can_run() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut command = shell("echo 1 >/sys/kernel/debug/failslab/times");
    command.env("TMPDIR", place.path());
    let output = finish(command);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn inherited_dispositions_reach_the_program() {
    if !can_run() {
        return;
    }
    // Ignored signals are bits of SigIgn: SIGHUP, SIGPIPE, SIGUSR2.
    const IGNORED: [i32; 3] = [1, 13, 12];
    for ignored in [true, false] {
        let mut command = softiommu_run(&[]);
        command.args(["grep", "SigIgn", "/proc/self/status"]);
        let set = move || {
            for signal in IGNORED {
                let disposition = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
                #[allow(unsafe_code)] // a disposition of the child
                // SAFETY: neither disposition is a function.
                unsafe {
                    libc::signal(signal, disposition);
                }
            }
            Ok(())
        };
        #[allow(unsafe_code)] // see above
        // SAFETY: `signal` may be called between fork and exec.
        unsafe {
            command.pre_exec(set);
        }
        let output = finish(command);
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let set = line.split_whitespace().nth(1).and_then(|s| u64::from_str_radix(s, 16).ok());
        let set = set.unwrap_or_else(|| panic!("{}", text(&output)));
        for signal in IGNORED {
            assert_eq!(set & (1 << (signal - 1)) != 0, ignored, "signal {signal}: {line}");
        }
    }
}

#[test]
fn signals_for_the_front_reach_the_program() {
    if !can_run() {
        return;
    }
    let mut command = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn programs_killed_at_any_moment_leave_nothing() {
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() {
        return;
    }
    // One supervisor, many victims: it says at its end if it has anything left.
    let client = place.client();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            \"$0\" busy >/dev/null & victim=$!
            \"$0\" busy >/dev/null & other=$!
            sleep 0.0$i
            kill -9 $victim; sleep 0.00$i; kill -9 $other
            wait $victim 2>/dev/null; [ $? = 137 ] || exit 3
            wait $other 2>/dev/null; [ $? = 137 ] || exit 4
        done; exit 0";
    let log = place.directory.path().join("log");
    let mut command = softiommu_run(&["--strict", "--log", log.to_str().unwrap()]);
    command.env("RUST_LOG", "debug").args(["sh", "-c", script]).arg(client);
    let output = finish(command);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(own_descriptors(&log) / 64, 0, "the supervisor keeps what it has of the dead");
}

/// How many descriptors the supervisor has at its end, as it logs.
fn own_descriptors(log: &std::path::Path) -> usize {
    let log = std::fs::read_to_string(log).unwrap();
    let at = log.split_once("own_descriptors=").unwrap_or_else(|| panic!("{log}")).1;
    let digits = at.find(|c: char| !c.is_ascii_digit()).unwrap_or(at.len());
    at[..digits].parse().unwrap()
}

#[test]
fn what_is_left_is_told() {
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() {
        return;
    }
    // Somebody outside of the tree has the context: we.
    for (options, status) in [(&["--strict"][..], 1), (&[], 0)] {
        let (outside, inside) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = softiommu_run(options);
        command.arg(place.client()).arg("gives-away");
        command.stdin(std::os::fd::OwnedFd::from(inside));
        let output = finish(command);
        drop(outside);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(status), "{said}");
        let left = "left behind: 1 contexts, 0 other descriptors, 4 objects, 16 pinned pages \
                    (16 accounted)";
        assert!(said.contains(left), "{said}");
    }
}

#[test]
fn killing_the_front_kills_the_program() {
    let Some(place) = Place::with_client(&[]) else { return };
    if !can_run() {
        return;
    }
    let mut command = softiommu_run(&[]);
    command.arg(place.client()).arg("busy");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut line = [0; 5];
    stdout.read_exact(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The program holds the other end until it dies.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
}

#[test]
fn the_front_goes_on_whoever_continues_or_kills_the_stopped_program() {
    if !can_run() {
        return;
    }
    // The program stops itself; its child, and not the front, wakes it or ends it.
    let wake = "(until grep -q 'State:.T' /proc/$$/status && grep -q 'State:.T' /proc/$FRONT/status; \
                do sleep 0.01; done; kill -SIGNAL $$) & kill -STOP $$; exit 7";
    for (signal, status, killed) in [("CONT", Some(7), None), ("KILL", None, Some(9))] {
        let script = format!("FRONT=$PPID_OF_SHELL; {}", wake.replace("SIGNAL", signal));
        let mut command = Command::new("sh");
        let run = format!(
            "PPID_OF_SHELL=$$ exec {} run -- sh -c '{}'",
            env!("CARGO_BIN_EXE_softiommu"),
            script.replace('\'', "'\\''")
        );
        command.args(["-c", &run]);
        let output = finish(command);
        assert_eq!(output.status.code(), status, "{}", text(&output));
        assert_eq!(output.status.signal(), killed, "{}", text(&output));
    }
}
