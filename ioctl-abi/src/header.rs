//! What each of the kernel's headers holds of what is declared here, and the headers themselves
//! written anew: for programs that try an ABI before any kernel has it.
//!
//! `cargo run -p ioctl-abi --example header > include/linux/iommufd.h`

use core::fmt;

use crate::layout::{Field, How, Layout, Set};
use crate::selftest::TEST_OPS;
use crate::{command, iommufd, selftest, vfio};

/// A header of the kernel.
#[derive(Debug)]
pub struct Header {
    /// How programs include it.
    pub path: &'static str,
    /// Its include guard.
    pub guard: &'static str,
    /// The headers that it includes.
    pub includes: &'static [&'static str],
    /// Its structs, by subject.
    pub structs: &'static [&'static [&'static Layout]],
    /// Its enums and defines, by subject.
    pub sets: &'static [&'static [&'static Set]],
    /// The numbers of its ioctls.
    pub numbers: &'static Set,
}

/// `linux/iommufd.h`.
pub static IOMMUFD: Header = Header {
    path: "linux/iommufd.h",
    guard: "_UAPI_IOMMUFD_H",
    includes: &["linux/ioctl.h", "linux/types.h"],
    structs: &[
        iommufd::object::STRUCTS,
        iommufd::ioas::STRUCTS,
        iommufd::hwpt::STRUCTS,
        iommufd::hw_info::STRUCTS,
        iommufd::dirty::STRUCTS,
        iommufd::invalidate::STRUCTS,
        iommufd::fault::STRUCTS,
        iommufd::viommu::STRUCTS,
        iommufd::veventq::STRUCTS,
    ],
    sets: &[
        iommufd::SETS,
        iommufd::object::SETS,
        iommufd::ioas::SETS,
        iommufd::hwpt::SETS,
        iommufd::hw_info::SETS,
        iommufd::dirty::SETS,
        iommufd::invalidate::SETS,
        iommufd::fault::SETS,
        iommufd::viommu::SETS,
        iommufd::veventq::SETS,
    ],
    numbers: &command::iommufd,
};

/// `iommufd_test.h`.
pub static SELFTEST: Header = Header {
    path: "iommufd_test.h",
    guard: "_UAPI_IOMMUFD_TEST_H",
    includes: &["linux/iommufd.h", "linux/types.h"],
    structs: &[selftest::mock::STRUCTS, selftest::op::STRUCTS, selftest::body::STRUCTS],
    sets: &[selftest::mock::SETS, selftest::op::SETS],
    numbers: &command::selftest,
};

/// The container's part of `linux/vfio.h`.
pub static VFIO: Header = Header {
    path: "linux/vfio.h",
    guard: "_UAPIVFIO_H",
    includes: &["linux/types.h", "linux/ioctl.h"],
    structs: &[vfio::STRUCTS],
    sets: &[vfio::SETS],
    numbers: &command::vfio,
};

/// All of them.
pub static HEADERS: &[&Header] = &[&IOMMUFD, &SELFTEST, &VFIO];

impl Header {
    /// Its structs. The members of the union in `iommu_test_cmd` are not among them: in C they
    /// have no name.
    pub fn structs(&self) -> impl Iterator<Item = &'static Layout> {
        self.structs.iter().flat_map(|file| file.iter().copied()).filter(|layout| {
            TEST_OPS.iter().all(|op| op.body.is_none_or(|(_, body)| body.name != layout.name))
        })
    }

    /// Its enums and defines, those of the ioctl numbers left out.
    pub fn sets(&self) -> impl Iterator<Item = &'static Set> {
        self.sets.iter().flat_map(|file| file.iter().copied())
    }
}

/// The header in C.
///
/// Enums that have no name in the kernel's header, and defines, become enums with a name of ours.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "/* The ABI that softiommu answers. */")?;
        writeln!(f, "#ifndef {0}\n#define {0}\n", self.guard)?;
        for include in self.includes {
            writeln!(f, "#include <{include}>")?;
        }
        for set in self.sets() {
            writeln!(f, "\nenum {} {{", set.name)?;
            for constant in set.constants {
                writeln!(f, "\t{} = {:#x},", constant.name, constant.value)?;
            }
            writeln!(f, "}};")?;
        }
        for layout in self.structs() {
            writeln!(f, "\nstruct {} {{", layout.name)?;
            write_fields(f, layout, 1)?;
            writeln!(f, "}};")?;
        }
        writeln!(f)?;
        for number in self.numbers.constants {
            match u8::try_from(number.value >> 8) {
                Ok(0) | Err(_) => writeln!(f, "#define {} {:#x}", number.name, number.value)?,
                Ok(kind) => {
                    let (name, nr) = (number.name, number.value & 0xff);
                    writeln!(f, "#define {name} _IO('{}', {nr:#x})", char::from(kind))?;
                }
            }
        }
        writeln!(f, "\n#endif")
    }
}

fn write_fields(f: &mut fmt::Formatter<'_>, layout: &Layout, depth: usize) -> fmt::Result {
    for field in layout.fields {
        match (field.show.how, field.show.alias) {
            (How::Pad, _) => {}
            (How::TestBody, _) => write_test_body(f)?,
            (_, None) => write_field(f, field, field.name, depth)?,
            (_, Some(alias)) => {
                indent(f, depth)?;
                writeln!(f, "union {{")?;
                for name in [alias, field.name] {
                    write_field(f, field, name, depth + 1)?;
                }
                indent(f, depth)?;
                writeln!(f, "}};")?;
            }
        }
    }
    Ok(())
}

fn write_field(f: &mut fmt::Formatter<'_>, field: &Field, name: &str, depth: usize) -> fmt::Result {
    indent(f, depth)?;
    write!(f, "{} {name}", field.c_type)?;
    match field.count {
        None => writeln!(f, ";"),
        Some(0) => writeln!(f, "[];"),
        Some(count) => writeln!(f, "[{count}];"),
    }
}

fn write_test_body(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    indent(f, 1)?;
    writeln!(f, "union {{")?;
    for (member, body) in TEST_OPS.iter().filter_map(|op| op.body) {
        indent(f, 2)?;
        writeln!(f, "struct {{")?;
        write_fields(f, body, 3)?;
        indent(f, 2)?;
        writeln!(f, "}} {member};")?;
    }
    indent(f, 1)?;
    writeln!(f, "}};")
}

fn indent(f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
    (0..depth).try_for_each(|_| f.write_str("\t"))
}
