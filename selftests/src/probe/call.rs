//! Commands: a struct filled from the program's words, and what changed in it.
#![allow(unsafe_code)] // The commands under test take raw pointers, bad ones on purpose.

use std::fmt::Write as _;

use ioctl_abi::command::{Argument, COMMANDS};
use ioctl_abi::layout::{Field, How, Layout};
use ioctl_abi::selftest::{TEST_OPS, iommu_test_cmd};
use ioctl_abi::{AbiStruct, command};

use super::machine::{Machine, result, show};

/// Bytes kept for a struct, whatever size the program says it has.
const ROOM: usize = 8192;

impl Machine {
    /// A command with its fields.
    pub(super) fn call(&mut self, words: &[&str]) -> Result<String, String> {
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
            let in_body = |name| {
                let field = body.and_then(|body| body.field(name));
                field.map(|field| (field, field.offset + body_at))
            };
            if let Some(name) = name.strip_prefix("body.") {
                return in_body(name);
            }
            layout.field(name).map(|field| (field, field.offset)).or_else(|| in_body(name)).or_else(
                || {
                    let aliased = |field: &&Field| field.show.alias == Some(name);
                    layout.fields.iter().find(aliased).map(|field| (field, field.offset))
                },
            )
        };

        let mut bytes = vec![0_u8; ROOM];
        put(&mut bytes, 0, 4, layout.size as u64);
        if let Some(op) = op {
            put(&mut bytes, 4, 4, op.op.into());
        }
        let (mut at, mut flip) = (None, None);
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
            } else if name == "flip" {
                flip = Some(self.names.value(text, None)? as usize);
            } else if name == "tail" {
                let offset = self.names.value(text, None)? as usize;
                *bytes.get_mut(offset).ok_or("tail is too far")? = 1;
            } else {
                let (field, offset) = find(name).ok_or_else(|| format!("no field {name}"))?;
                let value = self
                    .names
                    .value(text, Some(layout))
                    .or_else(|why| body.map_or(Err(why), |b| self.names.value(text, Some(b))))?;
                put(&mut bytes, offset, field.size.min(8), value);
            }
        }
        if let Some(bit) = flip {
            *bytes.get_mut(bit / 8).ok_or("flip is too far")? ^= 1 << (bit % 8);
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
                // A new descriptor is never one of the standard ones.
                if fd > 2 { "fd".into() } else { fd.to_string() }
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

fn put(bytes: &mut [u8], offset: usize, size: usize, value: u64) {
    bytes[offset..offset + size].copy_from_slice(&value.to_ne_bytes()[..size]);
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_ne_bytes(word)
}
