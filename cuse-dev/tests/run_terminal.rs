//! A terminal, its job control and its signals: as without `softiommu run`.
#![allow(unsafe_code)] // a session of its own, between fork and exec

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::can_run;

/// A terminal's two ends.
fn open_terminal() -> Option<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the first two are for the answers; the others may be null.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) };
    if opened != 0 {
        eprintln!("SKIPPED: no terminal can be had");
        return None;
    }
    // SAFETY: both were made for us just now.
    unsafe { Some((OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))) }
}

/// An interactive shell on a terminal.
struct Shell {
    shell: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Shell {
    fn start() -> Option<Self> {
        let (master, slave) = open_terminal()?;
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut command = Command::new("bash");
        command.args(["--norc", "--noprofile", "-i"]).env("PS1", "> ").env_remove("RUST_LOG");
        command.stdin(end(&slave)).stdout(end(&slave));
        command.stderr(end(&slave));
        let own_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: the argument is a number.
            if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: two system calls.
        unsafe { command.pre_exec(own_terminal) };
        let Ok(shell) = command.spawn() else {
            eprintln!("SKIPPED: there is no bash");
            return None;
        };
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = output.read(&mut bytes) {
                if send.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Self { shell, keyboard, screen, seen: String::new() })
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Whether the screen shows `text` after what was waited for before, within `patience`.
    fn shows(&mut self, text: &str, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            if let Some((_, rest)) = self.seen.split_once(text) {
                self.seen = rest.to_owned();
                return true;
            }
            match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => return false,
            }
        }
    }

    fn wait_for(&mut self, text: &str) {
        let shown = self.shows(text, Duration::from_secs(60));
        assert!(shown, "no {text:?} on the screen, which shows {:?}", self.seen);
    }

    /// Types a command to the shell that a signal from the keyboard gave the terminal back to.
    /// Such a signal discards what is typed meanwhile, and that can last until after the prompt,
    /// with or without softiommu: then the command is typed again, as a person would.
    fn type_until(&mut self, keys: &str, text: &str) {
        for _ in 0..20 {
            self.type_in(keys);
            if self.shows(text, Duration::from_secs(3)) {
                return;
            }
        }
        panic!("no {text:?} on the screen, which shows {:?}", self.seen);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn keys_stop_continue_and_end_the_program() {
    if !can_run() {
        return;
    }
    let Some(mut shell) = Shell::start() else { return };
    shell.type_in(concat!(env!("CARGO_BIN_EXE_softiommu"), " run -- sh -c 'echo rea''dy; cat'\n"));
    shell.wait_for("ready");
    // What is typed shows twice: the terminal's echo, and the program's answer.
    shell.type_in("first line\n");
    shell.wait_for("first line");
    shell.wait_for("first line");
    shell.type_in("\x1a");
    shell.wait_for("Stopped");
    shell.wait_for("> ");
    shell.type_until("echo shell $((40 + 2))\n", "shell 42");
    shell.type_in("fg\n");
    shell.wait_for("run --");
    shell.type_in("second line\n");
    shell.wait_for("second line");
    shell.wait_for("second line");
    shell.type_in("\x03");
    shell.wait_for("^C");
    shell.wait_for("> ");
    shell.type_until("echo status $?\n", "status 130");
    // And once more, ended by the end of its input.
    let script = " run -- sh -c 'echo on''ward; cat'; echo status $?\n";
    shell.type_in(&format!("{}{script}", env!("CARGO_BIN_EXE_softiommu")));
    shell.wait_for("onward");
    shell.type_in("\x04");
    shell.wait_for("status 0");
}
