//! Carries out a program's steps with real system calls.
#![allow(unsafe_code)] // The system calls under test take raw pointers, bad ones on purpose.

use std::ffi::CString;
use std::fmt::Write as _;

use ioctl_abi::command::{Argument, COMMANDS};
use ioctl_abi::layout::{Field, How, Layout};
use ioctl_abi::selftest::{TEST_OPS, iommu_test_cmd};
use ioctl_abi::{AbiStruct, command};
use nix::errno::Errno;

use super::value::Names;

/// Bytes kept for a struct, whatever size the program says it has.
const ROOM: usize = 8192;

/// The state of a program: its descriptors, memory and names.
#[derive(Default)]
pub struct Machine {
    names: Names,
    last_open: String,
}

/// A system call's result as a program's output shows it.
fn result(value: i64) -> Result<i64, Errno> {
    if value == -1 { Err(Errno::last()) } else { Ok(value) }
}

fn show(result: Result<i64, Errno>) -> String {
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
            "open" => {
                let path = CString::new(*words.get(2).unwrap_or(&"/dev/iommu")).unwrap_or_default();
                // SAFETY: `path` is a C string.
                let fd = result(
                    unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }.into(),
                );
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
                let fd = result(unsafe { libc::dup(value(2)? as i32) }.into());
                self.opened_quietly(words[1], fd)
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
                self.mapped(words[1], size, prot, flags, -1, 0)
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
            "poll" => {
                let events = libc::POLLIN | libc::POLLOUT | libc::POLLERR | libc::POLLHUP;
                let mut poll = libc::pollfd { fd: self.fd(words[1])?, events, revents: 0 };
                // SAFETY: one pollfd.
                let got = result(unsafe { libc::poll(&mut poll, 1, 0) }.into());
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

    fn fd(&self, name: &str) -> Result<i32, String> {
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

    /// `for NAME FROM TO STEP: step`; equal results that follow each other become one.
    fn sweep(&mut self, line: &str) -> Result<String, String> {
        let (head, step) = line.split_once(": ").ok_or("for wants a ': '")?;
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
            let result = self.step(step)?;
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

    /// A command with its fields.
    fn call(&mut self, words: &[&str]) -> Result<String, String> {
        let (fd, verb) = match words[0].split_once('.') {
            Some((fd, verb)) => (self.fd(fd)?, verb),
            None => (self.fd(&self.last_open.clone())?, words[0]),
        };
        let (layout, ioctl, op) = if verb == "test" {
            let name = format!("IOMMU_TEST_OP_{}", words.get(1).ok_or("test wants an operation")?);
            let op = TEST_OPS.iter().find(|op| op.name == name).ok_or("no such operation")?;
            (iommu_test_cmd::LAYOUT, command::Command::Test.info().ioctl, Some(op))
        } else {
            let info = COMMANDS.iter().find(|info| info.name == verb).ok_or("no such command")?;
            let Argument::Struct(layout) = info.argument else {
                return Err("the command has no struct; use ioctl".into());
            };
            (layout, info.ioctl, None)
        };
        let body = op.and_then(|op| op.body).map(|(_, body)| body);
        let body_at = layout.field("body").map_or(0, |field| field.offset);
        let find = |name: &str| -> Option<(&'static Field, usize)> {
            body.and_then(|body| body.field(name))
                .map(|field| (field, field.offset + body_at))
                .or_else(|| layout.field(name).map(|field| (field, field.offset)))
                .or_else(|| {
                    let aliased = |field: &&Field| field.show.alias == Some(name);
                    layout.fields.iter().find(aliased).map(|field| (field, field.offset))
                })
        };

        let mut bytes = vec![0_u8; ROOM];
        put(&mut bytes, 0, 4, layout.size as u64);
        if let Some(op) = op {
            put(&mut bytes, 4, 4, op.op.into());
        }
        let mut at = None;
        let mut saves: Vec<(&str, &str)> = Vec::new();
        let mut saving = false;
        for word in &words[if op.is_some() { 2 } else { 1 }..] {
            if *word == "->" {
                saving = true;
                continue;
            }
            let (name, text) = word.split_once('=').ok_or_else(|| format!("what is {word}?"))?;
            if saving {
                saves.push((name, text));
            } else if name == "at" {
                at = Some(self.names.value(text, None)?);
            } else if name == "tail" {
                let offset = self.names.value(text, None)? as usize;
                *bytes.get_mut(offset).ok_or("tail is too far")? = 1;
            } else {
                let (field, offset) = find(name).ok_or_else(|| format!("no field {name}"))?;
                let value = self.names.value(
                    text,
                    Some(body.filter(|b| b.field(name).is_some()).unwrap_or(layout)),
                )?;
                put(&mut bytes, offset, field.size.min(8), value);
            }
        }
        let before = bytes.clone();
        let pointer = at.map_or(bytes.as_mut_ptr() as u64, |at| {
            // What can be put there is put there; the rest is the kernel's to refuse.
            self.poke(at, &before[..layout.size]);
            at
        });
        // SAFETY: the struct has more room than any size that a program states, or lies where the
        // program says on purpose.
        let got = result(unsafe { libc::ioctl(fd, ioctl.into(), pointer) }.into());

        let mut said = match (got, op.map(|op| op.name)) {
            (Ok(fd), Some("IOMMU_TEST_OP_DMABUF_GET")) => {
                self.names.values.insert("result".into(), fd as u64);
                "fd".into()
            }
            _ => show(got),
        };
        for (layout, base) in [(Some(layout), 0), (body, body_at)] {
            for field in layout.into_iter().flat_map(|layout: &Layout| layout.fields) {
                let range = base + field.offset..base + field.end();
                if matches!(field.show.how, How::TestBody) && body.is_some()
                    || bytes[range.clone()] == before[range.clone()]
                {
                    continue;
                }
                let value = word(&bytes[range]);
                match field.show.how {
                    How::Fd => {
                        let _ = write!(said, " {}=fd", field.name);
                    }
                    How::Hex | How::Pointer | How::TestBody => {
                        let _ = write!(said, " {}={value:#x}", field.name);
                    }
                    _ => {
                        let _ = write!(said, " {}={value}", field.name);
                    }
                }
            }
        }
        for (name, field) in saves {
            let (field, offset) = find(field).ok_or_else(|| format!("no field {field}"))?;
            let value = if got.is_ok() {
                word(&bytes[offset..offset + field.size])
            } else {
                u64::from(u32::MAX)
            };
            self.names.values.insert(name.into(), value);
        }
        Ok(said)
    }

    /// Writes where it may, through the kernel, so that a bad address is no signal.
    fn poke(&self, at: u64, bytes: &[u8]) {
        let local = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
        let remote = libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() };
        // SAFETY: `local` is ours; the kernel checks `remote`.
        unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
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

fn put(bytes: &mut [u8], offset: usize, size: usize, value: u64) {
    bytes[offset..offset + size].copy_from_slice(&value.to_ne_bytes()[..size]);
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_ne_bytes(word)
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
