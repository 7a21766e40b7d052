//! Hardware page tables: the objects that own domains.

use crate::driver::HwDomain;
use crate::{Context, Errno};

/// A HWPT of either kind.
pub(crate) enum Hwpt {}

impl Hwpt {
    /// HWPT `id` of `context`. `ENOENT`.
    pub(crate) fn get(_context: &Context, _id: u32) -> Result<Self, Errno> {
        Err(Errno::ENOENT)
    }

    /// Its domain.
    pub(crate) fn domain(&self) -> HwDomain {
        match *self {}
    }
}
