//! Callers who do what they like: the way from an ioctl's number and pointer through decoding to
//! the engine, with a made-up caller.
//!
//! Bytes become a program of steps. Random structs would all end at the first check, so a struct
//! is built from the ABI's own table: each field gets a value of its kind (an object that may
//! exist, a pointer that may be good, a flag that has a name), or plain random bytes. At the end
//! all is closed, and nothing may be left: no context, no pin, no charge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arbitrary::{Arbitrary as _, Result, Unstructured};
use engine::caller::Caller as _;
use engine::file::{ReadBuffer, Wake};
use engine::memory::{AddressSpace as _, PAGE_SIZE};
use engine::testing::{TestCaller, TestFile};
use engine::{Context, Engine, Errno, Node};
use ioctl_abi::command::{Argument, COMMANDS};
use ioctl_abi::layout::{Direction, Field, How, Layout};
use ioctl_abi::selftest::TEST_OPS;

/// Steps of one program. More of them find little that fewer do not, and take longer.
const STEPS: usize = 96;
/// Contexts that are open at a time.
const CONTEXTS: usize = 3;
/// The caller's writable memory, from [`DATA`] on.
const DATA: u64 = 0x10_000;
const DATA_PAGES: u64 = 64;
/// Memory that it can only read.
const READ_ONLY: u64 = 0x100_000;
const READ_ONLY_PAGES: u64 = 4;
/// Pages of its memfd.
const FILE_PAGES: u64 = 16;

/// Runs the program that `bytes` are.
pub fn run(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut world = World::new();
    for _ in 0..STEPS {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
    }
    let files_first = bytes.len().is_multiple_of(2);
    world.end(files_first);
}

struct World {
    engine: Arc<Engine>,
    caller: TestCaller,
    file: Arc<TestFile>,
    contexts: Vec<Arc<Context>>,
    /// Descriptors go from 3 up; one more than the highest that may exist.
    next_fd: i32,
}

/// Counts, and must not be called any more once its file is gone.
#[derive(Default)]
struct Waker(AtomicUsize);

impl Wake for Waker {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A reader with so much room, and perhaps a bad pointer.
struct Room {
    bytes: usize,
    bad: bool,
}

impl ReadBuffer for Room {
    fn room(&self) -> usize {
        self.bytes
    }

    fn put(&mut self, bytes: &[u8]) -> std::result::Result<(), Errno> {
        assert!(bytes.len() <= self.bytes, "{} bytes for room of {}", bytes.len(), self.bytes);
        if self.bad {
            return Err(Errno::EFAULT);
        }
        self.bytes -= bytes.len();
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let engine = Engine::new();
        let caller = TestCaller::new();
        caller.memory.map(DATA, DATA_PAGES, true);
        caller.memory.map(READ_ONLY, READ_ONLY_PAGES, false);
        let file = TestFile::new(FILE_PAGES, true);
        caller.open(file.clone());
        caller.open_other();
        let contexts = vec![engine.open(Node::Iommu)];
        Self { engine, caller, file, contexts, next_fd: 5 }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match u8::arbitrary(input)? {
            0..=199 => self.command(input),
            200..=209 => self.any_ioctl(input),
            210..=219 => self.open_or_close(input),
            220..=229 => self.event_file(input),
            230..=239 => self.memory(input),
            240..=244 => {
                self.caller.close(self.descriptor(input)?);
                Ok(())
            }
            245..=247 => {
                self.file.truncate(input.int_in_range(0..=FILE_PAGES)?);
                Ok(())
            }
            248..=251 => self.limits(input),
            _ => self.scatter(input),
        }
    }

    fn context(&self, input: &mut Unstructured<'_>) -> Result<Option<Arc<Context>>> {
        if self.contexts.is_empty() {
            return Ok(None);
        }
        Ok(Some(input.choose(&self.contexts)?.clone()))
    }

    /// A command of the table, with a struct that makes some sense.
    fn command(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(context) = self.context(input)? else { return Ok(()) };
        let info = *input.choose(COMMANDS)?;
        let arg = match info.argument {
            Argument::None => u64::arbitrary(input)?,
            Argument::Value(set) => input.choose(set.constants)?.value,
            Argument::Struct(layout) => {
                let mut bytes = vec![0; layout.size];
                self.fill(input, layout, &mut bytes)?;
                let odd = u8::arbitrary(input)?;
                let size = match odd {
                    0..=239 => layout.size as u32,
                    240..=247 => input.int_in_range(0..=2 * layout.size as u32)?,
                    _ => u32::arbitrary(input)?,
                };
                bytes[..4].copy_from_slice(&size.to_ne_bytes());
                let arg = if odd == 255 { self.pointer(input)? } else { TestCaller::ARGUMENT };
                // Where it does not fit the call finds something else.
                let _ = self.caller.memory.write(arg, &bytes);
                // As the log shows it, whatever is in there.
                let shown = ioctl_abi::print::print(info.command, &bytes).to_string();
                assert!(shown.starts_with(info.name));
                arg
            }
        };
        let nth = if u8::arbitrary(input)? < 16 { input.int_in_range(1..=40)? } else { 0 };
        self.ioctl(&context, info.ioctl, arg, nth);
        Ok(())
    }

    fn any_ioctl(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(context) = self.context(input)? else { return Ok(()) };
        let (command, arg) = (u32::arbitrary(input)?, self.pointer(input)?);
        let _ = ioctl_abi::print::IoctlName(command).to_string();
        self.ioctl(&context, command, arg, 0);
        Ok(())
    }

    fn ioctl(&mut self, context: &Arc<Context>, command: u32, arg: u64, nth: u64) {
        let call = || context.ioctl(&self.caller, command, arg);
        let (result, _) = engine::inject::with_fail_nth(nth, call);
        if let Err(error) = result {
            assert_ne!(error, Errno::UnknownErrno, "{command:#x}");
        }
        while self.caller.engine_file(self.next_fd).is_some() {
            self.next_fd += 1;
        }
    }

    fn open_or_close(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let index = input.int_in_range(0..=CONTEXTS - 1)?;
        if index < self.contexts.len() {
            self.contexts.swap_remove(index).close();
        } else {
            let container = bool::arbitrary(input)?;
            let node = if container { Node::VfioContainer } else { Node::Iommu };
            self.contexts.push(self.engine.open(node));
        }
        Ok(())
    }

    fn event_file(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(file) = self.caller.engine_file(self.descriptor(input)?) else { return Ok(()) };
        let _ = file.poll();
        match input.int_in_range(0..=3)? {
            0 => drop(
                file.read(&mut Room { bytes: usize::from(u16::arbitrary(input)?), bad: false }),
            ),
            1 => drop(file.read(&mut Room { bytes: 4096, bad: true })),
            2 => file.watch(Arc::new(Waker::default())),
            _ => {
                let length = input.int_in_range(0..=64)?;
                let bytes = input.bytes(length)?;
                if let Ok(taken) = file.write(bytes) {
                    assert!(taken <= bytes.len());
                }
            }
        }
        Ok(())
    }

    /// The caller changes its own memory under what is mapped.
    fn memory(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let first = input.int_in_range(0..=DATA_PAGES - 1)?;
        let pages = input.int_in_range(1..=DATA_PAGES - first)?;
        let address = DATA + first * PAGE_SIZE;
        if bool::arbitrary(input)? {
            // Pages that are pinned stay countable: they only change their place for an engine.
            if (first..first + pages)
                .all(|page| self.caller.memory.pins(DATA + page * PAGE_SIZE) == 0)
            {
                self.caller.memory.map(address, pages, bool::arbitrary(input)?);
            }
        } else {
            let range = address..address + pages * PAGE_SIZE;
            self.engine.memory_changed(
                self.caller.memory.id(),
                &range,
                std::time::Instant::now(),
                "munmap",
            );
        }
        Ok(())
    }

    fn limits(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let process = &self.caller.process;
        let limit = match input.int_in_range(0..=2)? {
            0 => u64::MAX,
            1 => u64::arbitrary(input)?,
            _ => u64::from(u8::arbitrary(input)?) * PAGE_SIZE,
        };
        process.memlock.store(limit, Ordering::Relaxed);
        process.ipc_lock.store(bool::arbitrary(input)?, Ordering::Relaxed);
        process.sys_resource.store(bool::arbitrary(input)?, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes where arrays and payloads are looked for.
    fn scatter(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let at = self.pointer(input)?;
        let count = input.int_in_range(1..=8)?;
        for index in 0..count {
            let word = self.number(input)?;
            let _ = self.caller.memory.write(at.wrapping_add(index * 8), &word.to_ne_bytes());
        }
        Ok(())
    }

    fn fill(&self, input: &mut Unstructured<'_>, layout: &Layout, into: &mut [u8]) -> Result<()> {
        let wild = u8::arbitrary(input)? >= 250;
        for field in layout.fields {
            if field.size == 0 || field.show.direction == Direction::Out && !wild {
                continue;
            }
            let bytes = &mut into[field.offset..field.end()];
            if wild {
                input.fill_buffer(bytes)?;
                continue;
            }
            match field.show.how {
                How::Struct(inner) => self.fill(input, inner, bytes)?,
                How::TestBody => {}
                _ => {
                    let width = bytes.len() / field.count.unwrap_or(1);
                    for element in bytes.chunks_exact_mut(width) {
                        let value = self.value(input, field)?.to_ne_bytes();
                        element.copy_from_slice(&value[..width]);
                    }
                }
            }
        }
        let body = layout.fields.iter().find(|field| matches!(field.show.how, How::TestBody));
        if let (Some(body), Some(op), false) = (body, layout.field("op"), wild) {
            let test = input.choose(TEST_OPS)?;
            into[op.offset..op.end()].copy_from_slice(&test.op.to_ne_bytes());
            if let Some((_, inner)) = test.body {
                self.fill(input, inner, &mut into[body.offset..body.offset + inner.size])?;
            }
        }
        Ok(())
    }

    fn value(&self, input: &mut Unstructured<'_>, field: &Field) -> Result<u64> {
        Ok(match field.show.how {
            How::Id => self.object(input)?,
            How::Fd => self.descriptor(input)? as u64,
            How::Pointer => self.pointer(input)?,
            How::Decimal => match u8::arbitrary(input)? {
                small @ 0..=159 => u64::from(small) & 7,
                _ => self.number(input)?,
            },
            How::Flags(set) => {
                // Mostly few, named bits.
                let mask = u16::arbitrary(input)?;
                let mut value = 0;
                for (index, constant) in set.constants.iter().enumerate().take(12) {
                    if mask >> index & 1 == 1 {
                        value |= constant.value;
                    }
                }
                if mask >> 12 == 15 { value | 1 << (mask & 31) } else { value }
            }
            How::Enum(sets) => {
                let set = input.choose(sets)?;
                match u8::arbitrary(input)? {
                    0..=239 if !set.constants.is_empty() => input.choose(set.constants)?.value,
                    _ => u64::arbitrary(input)?,
                }
            }
            How::Hex => self.number(input)?,
            How::Reserved | How::Pad if u8::arbitrary(input)? != 255 => 0,
            _ => u64::arbitrary(input)?,
        })
    }

    fn object(&self, input: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match u8::arbitrary(input)? {
            small @ 0..=250 => u64::from(small) & 15,
            _ => u64::arbitrary(input)?,
        })
    }

    fn descriptor(&self, input: &mut Unstructured<'_>) -> Result<i32> {
        Ok(match u8::arbitrary(input)? {
            0..=245 => input.int_in_range(3..=self.next_fd)?,
            _ => i32::arbitrary(input)?,
        })
    }

    fn pointer(&self, input: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match u8::arbitrary(input)? {
            page @ 0..=159 => DATA + u64::from(page) % (DATA_PAGES + 1) * PAGE_SIZE,
            160..=219 => DATA + input.int_in_range(0..=DATA_PAGES * PAGE_SIZE)?,
            220..=229 => TestCaller::ARGUMENT + input.int_in_range(0..=PAGE_SIZE)?,
            230..=239 => READ_ONLY + input.int_in_range(0..=READ_ONLY_PAGES)? * PAGE_SIZE,
            240..=247 => 0,
            _ => u64::arbitrary(input)?,
        })
    }

    /// An IOVA, a length, an offset: mostly whole pages, mostly small.
    fn number(&self, input: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match u8::arbitrary(input)? {
            0..=127 => input.int_in_range(0..=DATA_PAGES)? * PAGE_SIZE,
            128..=159 => 0x100_0000 + input.int_in_range(0..=255)? * PAGE_SIZE,
            160..=191 => input.int_in_range(0..=2 * PAGE_SIZE)?,
            192..=207 => 1 << (u8::arbitrary(input)? & 63),
            208..=223 => (1_u64 << (u8::arbitrary(input)? & 63)).wrapping_sub(1),
            224..=239 => u64::from(u8::arbitrary(input)?).wrapping_neg(),
            _ => u64::arbitrary(input)?,
        })
    }

    fn end(mut self, files_first: bool) {
        let close_files = |world: &Self| {
            for fd in 0..=world.next_fd {
                world.caller.close(fd);
            }
        };
        if files_first {
            close_files(&self);
        }
        for context in self.contexts.drain(..) {
            let left = context.close();
            assert!(!files_first || left == 0, "{left} objects are left");
        }
        if !files_first {
            close_files(&self);
        }
        assert!(self.engine.contexts().is_empty(), "a context is left");
        assert_eq!(self.caller.memory.all_pins(), 0, "pages of memory are left pinned");
        assert_eq!(self.file.all_pins(), 0, "pages of the file are left pinned");
        let charged = self.engine.pinned(self.caller.memory.id());
        assert_eq!(charged, Default::default(), "pages are left charged");
        let uid = self.caller.process().uid();
        assert_eq!(self.engine.accounts().locked_by_user(uid), 0, "the user is left charged");
    }
}
