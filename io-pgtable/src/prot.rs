//! Permissions and memory types, in words that every format shares.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// What a mapping permits and how its memory behaves.
    ///
    /// No format can express every combination; [`Format::FIELDS`](crate::Format::FIELDS) says
    /// which ones it can, and a map with another is refused.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The device may fetch instructions.
        const EXECUTE = 1 << 2;
        /// Only requests with privilege may pass.
        const PRIVILEGED = 1 << 3;
        /// The access snoops the CPU's caches whatever the request says.
        const SNOOP = 1 << 4;
        /// The memory is not cached, but can be reordered and merged.
        const NONCACHED = 1 << 5;
        /// The memory is a device's registers.
        const DEVICE = 1 << 6;
    }
}

/// As `READ | WRITE`, or `none`.
impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("none") } else { bitflags::parser::to_writer(self, f) }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::Prot;

    #[test]
    fn rights_read_as_a_list() {
        assert_eq!((Prot::READ | Prot::EXECUTE).to_string(), "READ | EXECUTE");
        assert_eq!(Prot::empty().to_string(), "none");
    }
}
