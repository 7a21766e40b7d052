//! A program's replies in few bytes.
//!
//! FNV-1a over what was asked and what was answered, byte for byte and written out, because digests
//! are kept in files and must not change with a compiler or a crate.

use super::reply::Reply;
use super::step::{Argument, Call};

/// A running digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// Adds what makes a call the call it is.
    pub fn call(&mut self, call: &Call) {
        match call {
            Call::Ioctl { fd, request, argument, .. } => {
                self.number(fd.literal);
                self.number((*request).into());
                match argument {
                    Argument::Value(value) => self.number(*value),
                    Argument::Struct { bytes, .. } => self.bytes(bytes),
                }
            }
            Call::Read { fd, len, .. } => {
                self.number(fd.literal);
                self.number(*len);
            }
            Call::Child(calls) => calls.iter().for_each(|call| self.call(call)),
            _ => {}
        }
    }

    /// Adds a reply.
    pub fn reply(&mut self, reply: &Reply) {
        self.number(reply.result as u64);
        self.bytes(&reply.after);
        for seen in &reply.seen {
            self.number(seen.len() as u64);
            self.bytes(seen);
        }
        self.number(reply.descriptor.map_or(u64::MAX, |fd| fd as u64));
        reply.child.iter().for_each(|reply| self.reply(reply));
    }
}

/// The digest of one call and its reply.
pub fn of(call: &Call, reply: &Reply) -> u64 {
    let mut digest = Digest::default();
    digest.call(call);
    digest.reply(reply);
    digest.0
}
