//! A program as C, to be built against the kernel's headers and run on a kernel.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ioctl_abi::Command;
use ioctl_abi::layout::{How, Layout};
use ioctl_abi::selftest::TestOp;

use super::arena::*;
use super::reply::number;
use super::step::{Argument, Call, Patch, Place, Poke, Source, Step, Value};

/// The program in C.
pub fn c(steps: &[Step]) -> String {
    let there: BTreeSet<u32> = steps.iter().map(|step| step.number).collect();
    let mut writer = Writer { there, text: String::new() };
    writer.text.push_str(&head());
    for step in steps {
        writer.step(step.number, &step.call, "\t");
    }
    writer.text.push_str("\treturn 0;\n}\n");
    writer.text
}

fn head() -> String {
    format!(
        r#"/* gcc -D_GNU_SOURCE -I TREE/usr/include -I TREE/drivers/iommu/iommufd this.c */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include "iommufd_test.h"

#define SAY(what, call) ({{ errno = 0; long r_ = (long)(call); \
	printf("%s = %ld %s\n", what, r_, r_ == -1 ? strerror(errno) : ""); r_; }})
#define MAP(at, len, prot, flags, fd) mmap((void *)(at), len, prot, (flags) | MAP_FIXED, fd, 0)

int main(void)
{{
	int file = memfd_create("arena", MFD_CLOEXEC); /* 3, as programs expect it */
	ftruncate(file, {all:#x});
	MAP({PRIVATE:#x}ul, {all:#x}, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	MAP({SHARED:#x}ul, {all:#x}, 3, MAP_SHARED | MAP_ANONYMOUS, -1);
	MAP({FILE:#x}ul, {all:#x}, 3, MAP_SHARED, file);
	MAP({READ_ONLY:#x}ul, {all:#x}, 1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	MAP({FORBIDDEN:#x}ul, {all:#x}, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *structs = MAP({STRUCT:#x}ul, {structs:#x}, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	MAP({BUFFER:#x}ul, {buffers:#x}, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	MAP({READ_ONLY_BUFFER:#x}ul, {PAGE:#x}, 1, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *end = structs + {structs:#x};

"#,
        all = PAGES * PAGE,
        structs = STRUCT_PAGES * PAGE,
        buffers = BUFFER_PAGES * PAGE,
    )
}

struct Writer {
    there: BTreeSet<u32>,
    text: String,
}

impl Writer {
    /// A value as an expression: what an earlier call returned, or a number.
    fn value(&self, value: &Value) -> String {
        match value.from.filter(|(step, _)| self.there.contains(step)) {
            Some((step, Source::Result)) => format!("r{step}"),
            Some((step, Source::Out { offset, width })) => {
                format!("*(__u{} *)(a{step} + {offset})", u32::from(width) * 8)
            }
            _ => format!("{:#x}", value.literal),
        }
    }

    fn field(&self, patches: &[Patch], offset: usize, otherwise: u64) -> String {
        match patches.iter().find(|patch| usize::from(patch.offset) == offset) {
            Some(patch) => self.value(&patch.value),
            None => format!("{otherwise:#x}"),
        }
    }

    fn poke(&mut self, poke: &Poke, indent: &str) {
        let bytes: String = poke.bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let len = poke.bytes.len();
        let _ =
            writeln!(self.text, "{indent}memcpy((void *){:#x}ul, \"{bytes}\", {len});", poke.at);
    }

    fn step(&mut self, number: u32, call: &Call, indent: &str) {
        let name = super::show::name(call);
        let system_call = match call {
            Call::Ioctl { fd, request, argument, pokes, .. } => {
                for poke in pokes {
                    self.poke(poke, indent);
                }
                let request_name = Command::from_ioctl(*request)
                    .map_or_else(|| format!("{request:#x}"), |command| command.name().to_owned());
                match argument {
                    Argument::Value(value) => {
                        format!("ioctl({}, {request_name}, {value:#x}ul)", self.value(fd))
                    }
                    Argument::Struct { bytes, patches, place } => {
                        self.argument(number, *request, bytes, patches, *place, indent);
                        format!("ioctl({}, {request_name}, a{number})", self.value(fd))
                    }
                }
            }
            Call::Open { flags } => format!("open(\"/dev/iommu\", 0{:o})", flags | libc::O_CLOEXEC),
            Call::Close { fd } => format!("close({})", self.value(fd)),
            Call::Dup { fd } => format!("dup({})", self.value(fd)),
            Call::Read { fd, at, len } => {
                format!("read({}, (void *){at:#x}ul, {len})", self.value(fd))
            }
            Call::Write { fd, poke, len } => {
                self.poke(poke, indent);
                format!("write({}, (void *){:#x}ul, {len})", self.value(fd), poke.at)
            }
            Call::Poll { fd, events } => {
                format!("poll(&(struct pollfd){{ {}, {events:#x} }}, 1, 0)", self.value(fd))
            }
            Call::Mmap { fd, at, len, prot, flags, offset } => format!(
                "mmap((void *){at:#x}ul, {len:#x}, {prot}, {:#x}, {}, {})",
                flags | libc::MAP_FIXED,
                self.value(fd),
                self.value(offset)
            ),
            Call::Munmap(range) => format!("munmap((void *){:#x}ul, {:#x})", range.at, range.len),
            Call::Protect { range, prot } => {
                format!("mprotect((void *){:#x}ul, {:#x}, {prot})", range.at, range.len)
            }
            Call::Memfd { len, flags } => {
                let _ = writeln!(
                    self.text,
                    "{indent}int r{number} = memfd_create(\"program\", {:#x});",
                    flags | libc::MFD_CLOEXEC
                );
                format!("ftruncate(r{number}, {len:#x})")
            }
            Call::Truncate { fd, len } => format!("ftruncate({}, {len:#x})", self.value(fd)),
            Call::LimitLockedMemory { bytes } => format!(
                "setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){{ {bytes:#x}, RLIM_INFINITY }})"
            ),
            Call::Capability { number, raised } => {
                let what = if *raised { "raised" } else { "lowered" };
                let _ = writeln!(
                    self.text,
                    "{indent}/* here effective capability {number} is {what}, see capset(2) */"
                );
                return;
            }
            Call::Look(range) => {
                let _ = writeln!(
                    self.text,
                    "{indent}write(1, (void *){:#x}ul, {:#x}); /* memory differs here */",
                    range.at, range.len
                );
                return;
            }
            Call::Child(calls) => {
                let _ = writeln!(self.text, "{indent}if (fork() == 0) {{");
                let inner = format!("{indent}\t");
                for (at, call) in calls.iter().enumerate() {
                    self.step(number * 100 + at as u32, call, &inner);
                }
                let _ = writeln!(self.text, "{indent}\t_exit(0);\n{indent}}}\n{indent}wait(0);");
                return;
            }
        };
        if matches!(call, Call::Memfd { .. }) {
            let _ = writeln!(self.text, "{indent}{system_call};");
        } else {
            let _ = writeln!(
                self.text,
                "{indent}long r{number} = SAY(\"{number} {name}\", {system_call});"
            );
        }
    }

    fn argument(
        &mut self,
        step: u32,
        request: u32,
        bytes: &[u8],
        patches: &[Patch],
        place: Place,
        indent: &str,
    ) {
        let layout = Command::from_ioctl(request).and_then(|command| command.info().layout());
        let whole = layout.filter(|layout| layout.size <= bytes.len());
        let cut = if let Place::Cut(cut) = place { u64::from(cut) } else { 0 };
        let _ = writeln!(
            self.text,
            "{indent}char *a{step} = end - {};",
            bytes.len() as u64 - cut.min(bytes.len() as u64)
        );
        let there = bytes.len() - (cut as usize).min(bytes.len());
        if let Some(layout) = whole.filter(|_| place == Place::Guarded) {
            let _ = writeln!(
                self.text,
                "{indent}*(struct {} *)a{step} = (struct {}){{",
                layout.name, layout.name
            );
            self.fields(layout, bytes, patches, 0, &format!("{indent}\t"));
            let _ = writeln!(self.text, "{indent}}};");
            let tail = &bytes[layout.size..];
            if !tail.is_empty() {
                let shown: String = tail.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                let (size, len) = (layout.size, tail.len());
                let _ =
                    writeln!(self.text, "{indent}memcpy(a{step} + {size}, \"{shown}\", {len});");
            }
            return;
        }
        let shown: String = bytes[..there].iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let _ = writeln!(self.text, "{indent}memcpy(a{step}, \"{shown}\", {there});");
        for patch in patches.iter().filter(|patch| usize::from(patch.offset) + 8 <= there) {
            let value = self.value(&patch.value);
            let (width, offset) = (u32::from(patch.width) * 8, patch.offset);
            let _ = writeln!(self.text, "{indent}*(__u{width} *)(a{step} + {offset}) = {value};");
        }
        if place == Place::ReadOnly {
            let _ =
                writeln!(self.text, "{indent}mprotect(structs, {:#x}, 1);", STRUCT_PAGES * PAGE);
        }
    }

    fn fields(
        &mut self,
        layout: &Layout,
        bytes: &[u8],
        patches: &[Patch],
        base: usize,
        indent: &str,
    ) {
        for field in layout.fields {
            let at = base + field.offset;
            if let How::TestBody = field.show.how {
                let op = TestOp::find(number(bytes, 4, 4) as u32).and_then(|op| op.body);
                if let Some((name, body)) = op {
                    let _ = writeln!(self.text, "{indent}.{name} = {{");
                    self.fields(body, bytes, patches, at, &format!("{indent}\t"));
                    let _ = writeln!(self.text, "{indent}}},");
                }
                continue;
            }
            let value = number(bytes, at, field.size.min(8));
            let patched = patches.iter().any(|patch| usize::from(patch.offset) == at);
            if matches!(field.show.how, How::Pad) || (value == 0 && !patched) {
                continue;
            }
            let shown = self.field(patches, at, value);
            let shown = match field.count {
                Some(_) => format!("{{ {shown} }}"),
                None => shown,
            };
            let _ = writeln!(self.text, "{indent}.{} = {shown},", field.name);
        }
    }
}
