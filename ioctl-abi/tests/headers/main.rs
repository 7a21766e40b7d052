//! Is the crate what the kernel's headers say?
//!
//! Two questions, both asked of the real headers of a Linux 7.3 tree. Is all that the crate
//! declares as the headers have it? A C compiler answers: it is given a program of static
//! assertions on every size, alignment, offset and value, and checks it without running anything.
//! And does the crate lack something that the headers have? For that they are parsed.
//!
//! The headers that the crate writes itself must stand the same two tests. Those need no tree.

mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ioctl_abi::header::{HEADERS, Header};
use ioctl_abi::layout::{Field, How, Layout, Set};
use ioctl_abi::selftest::TEST_OPS;
use parse::Parsed;

/// The kernel's headers by the path that programs include them by.
type Texts = BTreeMap<&'static str, String>;

/// The tree's headers, or nothing where there is no tree (said loudly).
fn kernel_headers() -> Option<Texts> {
    let explicit = std::env::var_os("SOFTIOMMU_KERNEL_SOURCE")
        .filter(|tree| !tree.is_empty())
        .map(PathBuf::from);
    let tree = match &explicit {
        Some(tree) => tree.clone(),
        None => std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?
            .join("softiommu/kernel/linux-source-7.3"),
    };
    let files = [
        ("linux/iommufd.h", "include/uapi/linux/iommufd.h"),
        ("iommufd_test.h", "drivers/iommu/iommufd/iommufd_test.h"),
        ("linux/vfio.h", "include/uapi/linux/vfio.h"),
    ];
    let mut texts = Texts::new();
    for (include, path) in files {
        let path = tree.join(path);
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.insert(include, text),
            Err(error) if explicit.is_some() => panic!("{}: {error}", path.display()),
            Err(error) => {
                eprintln!("SKIPPED: {}: {error}", path.display());
                return None;
            }
        };
    }
    Some(texts)
}

/// The headers as the crate writes them.
fn own_headers() -> Texts {
    HEADERS.iter().map(|header| (header.path, header.to_string())).collect()
}

/// The part of a header that the crate declares: all, but of VFIO only the container's.
fn our_part(path: &str, text: &str) -> String {
    if path != "linux/vfio.h" {
        return text.to_owned();
    }
    let between = |from: &str, to: &str| {
        let start = text.find(from).unwrap_or_else(|| panic!("{path} has no {from:?}"));
        let end = text[start..].find(to).unwrap_or_else(|| panic!("{path} has no {to:?}"));
        &text[start..start + end]
    };
    let container = between("#define VFIO_API_VERSION", "/* -------- IOCTLs for GROUP");
    let type1 =
        between("/* -------- API for Type1", "/* -------- Additional API for SPAPR TCE (Server");
    format!("{container}\n{type1}")
}

/// Fields that the header has, too.
fn c_fields(layout: &'static Layout) -> impl Iterator<Item = &'static Field> {
    layout.fields.iter().filter(|field| !matches!(field.show.how, How::Pad | How::TestBody))
}

/// All constants of `header`, its ioctl numbers among them.
fn sets(header: &'static Header) -> impl Iterator<Item = &'static Set> {
    header.sets().chain([header.numbers])
}

/// A C program that compiles if the headers say what `header` says.
fn assertions(header: &'static Header) -> String {
    let mut c = format!("#include <stddef.h>\n#include <{}>\n", header.path);
    let mut claim = |left: String, right: u64| {
        let message = format!("{left} is not {right:#x}").replace('"', "");
        writeln!(c, "_Static_assert(({left}) == {right:#x}ULL, \"{message}\");").unwrap();
    };
    for layout in header.structs() {
        let of = format!("struct {}", layout.name);
        claim(format!("sizeof({of})"), layout.size as u64);
        claim(format!("_Alignof({of})"), layout.align as u64);
        let mut claim_field = |name: &str, offset: usize, size: usize| {
            claim(format!("offsetof({of}, {name})"), offset as u64);
            // A flexible array at the end has no size in C.
            if size != 0 {
                claim(format!("sizeof((({of} *)0)->{name})"), size as u64);
            }
        };
        for field in c_fields(layout) {
            for name in [Some(field.name), field.show.alias].into_iter().flatten() {
                claim_field(name, field.offset, field.size);
            }
        }
        for union in layout.fields.iter().filter(|field| matches!(field.show.how, How::TestBody)) {
            for (member, body) in TEST_OPS.iter().filter_map(|op| op.body) {
                claim_field(member, union.offset, body.size);
                for field in c_fields(body) {
                    let name = format!("{member}.{}", field.name);
                    claim_field(&name, union.offset + field.offset, field.size);
                }
            }
        }
    }
    for constant in sets(header).flat_map(|set| set.constants) {
        claim(format!("(unsigned long long)({})", constant.name), constant.value);
    }
    c
}

/// What the compiler says about the assertions on all headers; nothing without a compiler.
fn compile(texts: &Texts) -> Option<Result<(), String>> {
    let directory =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory in target");
    for (path, text) in texts {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut errors = String::new();
    for header in HEADERS {
        match check_syntax(directory.path(), &assertions(header)) {
            Ok(None) => {}
            Ok(Some(error)) => errors += &error,
            Err(error) => {
                eprintln!("SKIPPED: cannot run cc: {error}");
                return None;
            }
        }
    }
    Some(if errors.is_empty() { Ok(()) } else { Err(errors) })
}

/// The compiler's complaints about `program`, if it has any.
fn check_syntax(include: &Path, program: &str) -> std::io::Result<Option<String>> {
    let mut cc = Command::new("cc")
        // What `make headers` takes out of the kernel's headers, and what an older system's
        // <linux/stddef.h> does not define.
        .args(["-fsyntax-only", "-std=gnu11", "-D__user=", "-D__counted_by(m)=", "-I"])
        .arg(include)
        .args(["-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = cc.stdin.take().expect("a pipe");
    stdin.write_all(program.as_bytes())?;
    drop(stdin);
    let output = cc.wait_with_output()?;
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(complaints))
}

/// What `texts` have and the crate lacks, a line each.
fn lacking(texts: &Texts) -> Vec<String> {
    let mut lacking = Vec::new();
    for header in HEADERS {
        let parsed = Parsed::new(&our_part(header.path, &texts[header.path]));
        let mut lack = |what: String| lacking.push(format!("{}: {what}", header.path));
        let names: BTreeSet<_> =
            sets(header).flat_map(|set| set.constants).map(|constant| constant.name).collect();
        for name in parsed.constants.iter().filter(|name| **name != header.guard) {
            if !names.contains(name.as_str()) {
                lack(format!("constant {name}"));
            }
        }
        for name in &parsed.enums {
            if !sets(header).any(|set| set.name == name) {
                lack(format!("enum {name}"));
            }
        }
        for (name, fields) in &parsed.structs {
            let Some(layout) = header.structs().find(|layout| layout.name == name) else {
                lack(format!("struct {name}"));
                continue;
            };
            for field in fields {
                let (theirs, field) = (&field.c_type, &field.name);
                match find_type(layout, field) {
                    None => lack(format!("struct {name}: {field}")),
                    Some(ours) if same_type(ours, theirs) => {}
                    Some(ours) => lack(format!("struct {name}: {theirs} {field}, here {ours}")),
                }
            }
        }
    }
    lacking
}

/// The C type of the field `name`, which may lead through the selftest's union.
fn find_type(layout: &Layout, name: &str) -> Option<&'static str> {
    if let Some((member, name)) = name.split_once('.') {
        let (_, body) =
            TEST_OPS.iter().filter_map(|op| op.body).find(|(found, _)| *found == member)?;
        return find_type(body, name);
    }
    let found =
        layout.fields.iter().find(|field| field.name == name || field.show.alias == Some(name))?;
    Some(found.c_type)
}

/// Whether two C types are the same word; the crate does not tell 64-bit ones apart.
fn same_type(ours: &str, theirs: &str) -> bool {
    let theirs = match theirs {
        "__u64" | "__aligned_le64" | "__u64 __user *" => "__aligned_u64",
        other => other,
    };
    ours == theirs
}

#[test]
fn every_layout_and_value_is_the_kernels() {
    let Some(texts) = kernel_headers() else { return };
    if let Some(Err(errors)) = compile(&texts) {
        panic!("{errors}");
    }
}

#[test]
fn nothing_of_the_kernels_is_lacking() {
    let Some(texts) = kernel_headers() else { return };
    assert_eq!(lacking(&texts), Vec::<String>::new());
}

#[test]
fn our_own_headers_say_the_same() {
    if let Some(Err(errors)) = compile(&own_headers()) {
        panic!("{errors}");
    }
}

#[test]
fn what_is_new_in_a_header_is_noticed() {
    let mut texts = own_headers();
    // The parser's cuts of VFIO's header are the kernel's comments, which ours lacks.
    let vfio = texts.get_mut("linux/vfio.h").unwrap();
    *vfio = format!(
        "#define VFIO_API_VERSION 0\n{vfio}/* -------- IOCTLs for GROUP */\n\
         /* -------- API for Type1 */\n/* -------- Additional API for SPAPR TCE (Server */\n"
    );
    assert_eq!(lacking(&texts), Vec::<String>::new());
    let iommufd = texts.get_mut("linux/iommufd.h").unwrap();
    *iommufd = iommufd.replacen(
        "struct iommu_destroy {",
        "#define NEW_FLAG (1 << 3) /* a flag */\nenum new_enum { NEW_ONE, NEW_TWO = 7 };\n\
         struct new_struct { __u32 size; };\nstruct iommu_destroy {\n\t__u16 new_field;",
        1,
    );
    let expected = [
        "constant NEW_FLAG",
        "constant NEW_ONE",
        "constant NEW_TWO",
        "enum new_enum",
        "struct iommu_destroy: new_field",
        "struct new_struct",
    ];
    assert_eq!(lacking(&texts), expected.map(|what| format!("linux/iommufd.h: {what}")));
}

#[test]
fn a_wrong_claim_is_noticed() {
    let mut texts = own_headers();
    let iommufd = texts.get_mut("linux/iommufd.h").unwrap();
    *iommufd = iommufd.replacen("__u32 fault_id;", "__u64 fault_id;", 1);
    if let Some(result) = compile(&texts) {
        assert!(result.unwrap_err().contains("struct iommu_hwpt_alloc *)0)->fault_id) is not 0x4"));
    }
}
