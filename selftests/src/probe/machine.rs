//! Carries out a program's steps with real system calls.
#![allow(unsafe_code)] // The system calls under test take raw pointers, bad ones on purpose.

use std::ffi::CString;
use std::fmt::Write as _;

use nix::errno::Errno;

use super::process::Threads;
use super::value::Names;

/// The state of a program: its descriptors, memory and names.
#[derive(Default, Clone)]
pub struct Machine {
    pub(super) names: Names,
    pub(super) last_open: String,
    pub(super) threads: Threads,
    /// What a loop that begins `anew` does before each of its steps.
    given: Vec<String>,
}

/// A system call's result as a program's output shows it.
pub(super) fn result(value: i64) -> Result<i64, Errno> {
    if value == -1 { Err(Errno::last()) } else { Ok(value) }
}

pub(super) fn show(result: Result<i64, Errno>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(errno) => format!("{errno:?}"),
    }
}

impl Machine {
    /// Carries out one step and says what came of it.
    pub fn step(&mut self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |at: usize| -> Result<u64, String> {
            self.names.value(words.get(at).ok_or("a word is missing")?, None)
        };
        match words[0] {
            "for" => self.sweep(line),
            "given:" => {
                let steps = line.trim_start_matches("given:").split(';');
                self.given = steps.map(|step| step.trim().to_owned()).collect();
                Ok("noted".into())
            }
            "fork:" => self.fork(line),
            "alarm:" => self.alarmed(line),
            "thread" => self.start_thread(line),
            "join" => self.join_thread(words.get(1).ok_or("join NAME")?),
            "memlock" => Ok(show(super::process::limit_locked_memory(value(1)?))),
            "caps" => {
                Ok(if super::process::may_lock_memory() { "IPC_LOCK" } else { "none" }.into())
            }
            "open" => {
                let path = CString::new(*words.get(2).unwrap_or(&"/dev/iommu")).unwrap_or_default();
                let access = match words.get(3).copied() {
                    Some("ro") => libc::O_RDONLY,
                    Some("wo") => libc::O_WRONLY,
                    _ => libc::O_RDWR,
                };
                // SAFETY: `path` is a C string.
                let fd =
                    result(unsafe { libc::open(path.as_ptr(), access | libc::O_CLOEXEC) }.into());
                self.opened(words[1], fd)
            }
            "memfd" => {
                let size = value(2)?;
                // SAFETY: the name is a C string.
                let fd = result(
                    unsafe { libc::memfd_create(c"probe".as_ptr(), libc::MFD_CLOEXEC) }.into(),
                );
                if let Ok(fd) = fd {
                    // SAFETY: a plain system call.
                    unsafe { libc::ftruncate(fd as i32, size as i64) };
                }
                self.opened_quietly(words[1], fd)
            }
            "dup" => {
                // SAFETY: a plain system call.
                let fd = result(
                    unsafe { libc::dup(self.fd(words.get(2).ok_or("dup NAME OLD")?)?) }.into(),
                );
                self.opened_quietly(words[1], fd)
            }
            "lastfd" => {
                // SAFETY: plain system calls on numbers that may be no descriptors.
                let open = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
                let fd = (0..100).rev().find(open).ok_or(Errno::EBADF);
                self.opened_quietly(words[1], fd.map(i64::from))
            }
            "fdflags" => {
                let fd = self.fd(words[1])?;
                // SAFETY: plain system calls.
                let (fd_flags, flags) =
                    unsafe { (libc::fcntl(fd, libc::F_GETFD), libc::fcntl(fd, libc::F_GETFL)) };
                let shown = flags & (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND);
                Ok(format!("{fd_flags} {shown:#o}"))
            }
            "close" => {
                let fd = self.fd(words[1])?;
                // SAFETY: the program's own descriptor.
                Ok(show(result(unsafe { libc::close(fd) }.into())))
            }
            "region" => {
                let size = value(2)?;
                let kind = words.get(3).copied().unwrap_or("rw");
                let prot = match kind {
                    "ro" => libc::PROT_READ,
                    "none" => libc::PROT_NONE,
                    _ => libc::PROT_READ | libc::PROT_WRITE,
                };
                let flags = libc::MAP_ANONYMOUS
                    | if kind == "shared" { libc::MAP_SHARED } else { libc::MAP_PRIVATE }
                    | if kind == "huge" { libc::MAP_HUGETLB } else { 0 };
                // Guard pages before and behind, so that overruns fault.
                let mapped = self.mapped(words[1], size, prot, flags, -1, 0)?;
                if kind != "huge"
                    && let Some(&at) = self.names.addresses.get(words[1])
                {
                    // What is contiguous must not depend on this machine's huge pages.
                    // SAFETY: advice on our own mapping.
                    unsafe { libc::madvise(at as *mut _, size as usize, libc::MADV_NOHUGEPAGE) };
                }
                Ok(mapped)
            }
            "mmap" => {
                let (fd, size, offset) = (self.fd(words[2])?, value(3)?, value(4)?);
                let rights = words.get(5).copied().unwrap_or("rw");
                let mut prot = 0;
                for right in rights.chars() {
                    prot |= match right {
                        'r' => libc::PROT_READ,
                        'w' => libc::PROT_WRITE,
                        'x' => libc::PROT_EXEC,
                        _ => 0,
                    };
                }
                let flags = if rights.contains('p') { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
                self.mapped(words[1], size, prot, flags, fd, offset)
            }
            "munmap" => {
                let (at, len) = (value(1)?, value(2)?);
                // SAFETY: the program's own memory, which nothing of Rust lies in.
                Ok(show(result(unsafe { libc::munmap(at as *mut _, len as usize) }.into())))
            }
            "protect" => {
                let (at, len, prot) = (value(1)?, value(2)?, value(3)?);
                // SAFETY: the program's own memory, which nothing of Rust lies in.
                Ok(show(result(
                    unsafe { libc::mprotect(at as *mut _, len as usize, prot as i32) }.into(),
                )))
            }
            "put" => {
                let (at, width, what) = (value(1)?, value(2)?, value(3)?);
                let bytes = what.to_ne_bytes();
                // SAFETY: a program puts values into memory that it mapped.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        bytes.as_ptr(),
                        at as *mut u8,
                        width.min(8) as usize,
                    );
                }
                Ok("put".into())
            }
            "fill" => {
                let (at, len, what) = (value(1)?, value(2)?, value(3)?);
                // SAFETY: a program fills memory that it mapped.
                unsafe { std::ptr::write_bytes(at as *mut u8, what as u8, len as usize) };
                Ok("filled".into())
            }
            "get" => {
                let (at, len) = (value(1)?, value(2)?);
                // SAFETY: a program looks at memory that it mapped.
                let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) };
                Ok(hex(bytes))
            }
            "load" => {
                let (at, len) = (value(2)?, value(3)?.min(8));
                // SAFETY: a program looks at memory that it mapped.
                let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) };
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                self.names.values.insert(words[1].into(), u64::from_ne_bytes(word));
                Ok("loaded".into())
            }
            "truncate" => {
                let (fd, len) = (self.fd(words[1])?, value(2)? as i64);
                // SAFETY: a plain system call.
                Ok(show(result(unsafe { libc::ftruncate(fd, len) }.into())))
            }
            "ioctl" => {
                let (fd, number, argument) = (self.fd(words[1])?, value(2)?, value(3)?);
                // SAFETY: a hostile call on purpose; it acts on memory of the program.
                Ok(show(result(unsafe { libc::ioctl(fd, number, argument) }.into())))
            }
            "read" => {
                let (fd, len) = (self.fd(words[1])?, value(2)?);
                let mut bytes = vec![0_u8; len as usize];
                let at = if words.len() > 3 { value(3)? as *mut u8 } else { bytes.as_mut_ptr() };
                // SAFETY: `bytes` has the length; another address is the program's to answer for.
                let got = result(unsafe { libc::read(fd, at.cast(), len as usize) } as i64);
                let shown = got.map_or(0, |got| got as usize).min(bytes.len());
                Ok(format!("{} {}", show(got), hex(&bytes[..shown])).trim_end().into())
            }
            "pread" | "pwrite" => {
                let (fd, len, offset) = (self.fd(words[1])?, value(2)? as usize, value(3)? as i64);
                let mut bytes = vec![0_u8; len];
                // SAFETY: `bytes` has the length.
                Ok(show(result(unsafe {
                    if words[0] == "pread" {
                        libc::pread(fd, bytes.as_mut_ptr().cast(), len, offset)
                    } else {
                        libc::pwrite(fd, bytes.as_ptr().cast(), len, offset)
                    }
                } as i64)))
            }
            "writefrom" => {
                let (fd, at, len) = (self.fd(words[1])?, value(2)?, value(3)?);
                // SAFETY: the kernel checks the address.
                Ok(show(result(unsafe { libc::write(fd, at as *const _, len as usize) } as i64)))
            }
            "madvise" => {
                let (at, len, advice) = (value(1)?, value(2)?, value(3)?);
                // SAFETY: the program's own memory, which nothing of Rust lies in.
                Ok(show(result(
                    unsafe { libc::madvise(at as *mut _, len as usize, advice as i32) }.into(),
                )))
            }
            "write" => {
                let fd = self.fd(words[1])?;
                let mut bytes = Vec::new();
                for word in &words[2..] {
                    bytes.extend((self.names.value(word, None)? as u32).to_ne_bytes());
                }
                // SAFETY: `bytes` has the length.
                Ok(show(result(
                    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as i64
                )))
            }
            "nonblock" => {
                let fd = self.fd(words[1])?;
                // SAFETY: plain system calls.
                let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
                // SAFETY: as above.
                Ok(show(result(
                    unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }.into(),
                )))
            }
            "poll" | "pollin" => {
                let all = libc::POLLIN | libc::POLLOUT | libc::POLLERR | libc::POLLHUP;
                let events = if words[0] == "poll" { all } else { libc::POLLIN };
                let wait = if words.len() > 2 { value(2)? as i32 } else { 0 };
                let mut poll = libc::pollfd { fd: self.fd(words[1])?, events, revents: 0 };
                // SAFETY: one pollfd.
                let got = result(unsafe { libc::poll(&mut poll, 1, wait) }.into());
                Ok(format!("{} {:#x}", show(got), poll.revents))
            }
            "seek" => {
                let (fd, to) = (self.fd(words[1])?, value(2)?);
                // SAFETY: a plain system call.
                Ok(show(result(unsafe { libc::lseek(fd, to as i64, libc::SEEK_SET) })))
            }
            _ => self.call(&words),
        }
    }

    pub(super) fn fd(&self, name: &str) -> Result<i32, String> {
        self.names
            .values
            .get(name)
            .map(|&fd| fd as i32)
            .ok_or_else(|| format!("no descriptor {name}"))
    }

    fn opened(&mut self, name: &str, fd: Result<i64, Errno>) -> Result<String, String> {
        self.last_open = name.into();
        self.opened_quietly(name, fd)
    }

    fn opened_quietly(&mut self, name: &str, fd: Result<i64, Errno>) -> Result<String, String> {
        self.names.values.insert(name.into(), fd.unwrap_or(-1) as u64);
        Ok(fd.map_or_else(|errno| format!("{errno:?}"), |_| "ok".into()))
    }

    fn mapped(
        &mut self,
        name: &str,
        size: u64,
        prot: i32,
        flags: i32,
        fd: i32,
        offset: u64,
    ) -> Result<String, String> {
        // Room before and behind stays unmapped, and huge pages find their alignment.
        let room = size as usize + (4 << 20);
        let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping where the kernel likes.
        let area = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, none, -1, 0) };
        let at = (area as u64 + (2 << 20)) & !((2 << 20) - 1);
        // SAFETY: over our own fresh, unused mapping.
        let got = unsafe {
            libc::munmap(area, room);
            libc::mmap(
                at as *mut _,
                size as usize,
                prot,
                flags | libc::MAP_FIXED_NOREPLACE,
                fd,
                offset as i64,
            )
        };
        if got == libc::MAP_FAILED {
            return Ok(format!("{:?}", Errno::last()));
        }
        self.names.addresses.insert(name.into(), got as u64);
        Ok("ok".into())
    }

    /// `for NAME FROM TO STEP: step`; equal results that follow each other become one. With `anew`
    /// before the colon each step is done in the state that the `given:` steps make.
    fn sweep(&mut self, line: &str) -> Result<String, String> {
        let (head, step) = line.split_once(": ").ok_or("for wants a ': '")?;
        let (head, anew) = head.strip_suffix(" anew").map_or((head, false), |head| (head, true));
        let words: Vec<&str> = head.split_whitespace().collect();
        let [_, name, from, to, by] = words[..] else { return Err("for NAME FROM TO STEP".into()) };
        let (from, to, by) = (
            self.names.value(from, None)?,
            self.names.value(to, None)?,
            self.names.value(by, None)?.max(1),
        );
        let mut said = String::new();
        let mut run: Option<(u64, u64, String)> = None;
        let mut at = from;
        while at <= to {
            self.names.values.insert(name.into(), at);
            let result = if anew { self.anew(step)? } else { self.step(step)? };
            run = Some(match run.take() {
                Some((first, _, same)) if same == result => (first, at, same),
                other => {
                    flush(&mut said, other);
                    (at, at, result)
                }
            });
            at += by;
        }
        flush(&mut said, run);
        Ok(said)
    }
}

impl Machine {
    /// Carries out the given steps, then `step`, and closes what they opened.
    fn anew(&self, step: &str) -> Result<String, String> {
        // SAFETY: plain system calls; the descriptor that is made is closed at once. A new one has
        // the lowest free number, and nothing of the program was closed before a loop like this.
        let first = unsafe {
            let first = libc::dup(0);
            libc::close(first);
            first
        };
        let mut machine = self.clone();
        self.given.iter().try_for_each(|given| machine.step(given).map(drop))?;
        let result = machine.step(step);
        if let Ok(first) = u32::try_from(first) {
            // SAFETY: they are the steps' own, which end here.
            unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
        }
        result
    }
}

fn flush(said: &mut String, run: Option<(u64, u64, String)>) {
    let Some((first, last, result)) = run else { return };
    let separator = if said.is_empty() { "" } else { "; " };
    let _ = match first == last {
        true => write!(said, "{separator}{first} {result}"),
        false => write!(said, "{separator}{first}..{last} {result}"),
    };
}

/// Bytes in hex; runs of one value are shortened.
fn hex(bytes: &[u8]) -> String {
    let mut said = String::new();
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let run = rest.iter().take_while(|&&byte| byte == first).count();
        let _ =
            if run > 8 { write!(said, "[{first:02x}*{run}]") } else { write!(said, "{first:02x}") };
        rest = &rest[if run > 8 { run } else { 1 }..];
    }
    said
}
