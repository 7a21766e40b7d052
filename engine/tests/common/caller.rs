//! A caller whose memory is a vector and whose descriptors are another one.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use engine::caller::{Caller, CallerFile, Capability, Process};
use engine::file::{EngineFile, ReadBuffer};
use engine::memory::{AddressSpace, Held, MmId, PAGE_SIZE, Pin};
use engine::{Context, Errno};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the caller's memory begins.
pub const BASE: u64 = 0x1000_0000;
/// Where ioctl structs are put.
const STRUCT: u64 = BASE;
/// Where the rest is free for tests.
pub const FREE: u64 = BASE + 0x10_000;
/// The PFN of the first page.
pub const FIRST_PFN: u64 = 0x1234;

/// The page from which on frames lie elsewhere.
pub const GAP: u64 = 128;

/// One process with one thread.
pub struct TestCaller {
    memory: Arc<Ram>,
    files: Mutex<Vec<Option<Arc<dyn EngineFile>>>>,
}

/// Its memory.
#[derive(Clone)]
pub struct Ram(Arc<Mutex<Vec<u8>>>);

struct Pages {
    ram: Ram,
    first: u64,
    pages: u64,
}

impl TestCaller {
    pub fn new() -> Self {
        let memory = Arc::new(Ram(Arc::new(Mutex::new(vec![0; 1 << 20]))));
        Self { memory, files: Mutex::default() }
    }

    /// Runs an ioctl with `argument`, and answers what the caller then finds in its place.
    pub fn ioctl<T>(
        &self,
        context: &Arc<Context>,
        command: u32,
        mut argument: T,
    ) -> (T, Result<i64, Errno>)
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.memory.write(STRUCT, argument.as_bytes()).unwrap();
        let result = context.ioctl(self, command, STRUCT);
        self.memory.read(STRUCT, argument.as_mut_bytes()).unwrap();
        (argument, result)
    }

    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, address: u64, value: &T) {
        self.memory.write(address, value.as_bytes()).unwrap();
    }

    pub fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> T {
        let mut value = T::new_zeroed();
        self.memory.read(address, value.as_mut_bytes()).unwrap();
        value
    }

    /// The file behind a descriptor.
    pub fn file_of(&self, fd: u32) -> Arc<dyn EngineFile> {
        self.files.lock().unwrap()[fd as usize].clone().expect("an open descriptor")
    }

    /// Closes a descriptor, the last one of its file.
    pub fn close(&self, fd: u32) {
        let file = self.files.lock().unwrap()[fd as usize].take();
        file.expect("an open descriptor").release();
    }

    /// Closes all descriptors, as an exit does.
    pub fn close_all(&self) {
        let files = std::mem::take(&mut *self.files.lock().unwrap());
        files.into_iter().flatten().for_each(|file| file.release());
    }

    /// Reads up to `room` bytes from a descriptor.
    pub fn read(&self, fd: u32, room: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = Buffer { room, bytes: Vec::new() };
        self.file_of(fd).read(&mut buffer).map(|()| buffer.bytes)
    }
}

struct Buffer {
    room: usize,
    bytes: Vec<u8>,
}

impl ReadBuffer for Buffer {
    fn room(&self) -> usize {
        self.room - self.bytes.len()
    }
    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Caller for TestCaller {
    fn memory(&self) -> Arc<dyn AddressSpace> {
        self.memory.clone()
    }
    fn process(&self) -> Arc<dyn Process> {
        Arc::new(Someone)
    }
    fn file(&self, fd: i32) -> Result<CallerFile, Errno> {
        let files = self.files.lock().unwrap();
        let file = usize::try_from(fd).ok().and_then(|fd| files.get(fd)?.clone());
        file.map(CallerFile::Engine).ok_or(Errno::EBADF)
    }
    fn install(&self, file: Arc<dyn EngineFile>, number_at: u64) -> Result<(), Errno> {
        let mut files = self.files.lock().unwrap();
        self.memory.write(number_at, (files.len() as i32).as_bytes())?;
        files.push(Some(file));
        Ok(())
    }
    fn install_untold(&self, _: Arc<dyn EngineFile>) -> Result<(), Errno> {
        Err(Errno::EMFILE)
    }

    fn install_as_result(&self, _: Arc<dyn EngineFile>) -> Result<(), Errno> {
        Err(Errno::EMFILE)
    }
}

struct Someone;

impl Process for Someone {
    fn pid(&self) -> u32 {
        1
    }
    fn uid(&self) -> u32 {
        0
    }
    fn memlock_limit(&self) -> u64 {
        u64::MAX
    }
    fn capable(&self, _: Capability) -> bool {
        true
    }
}

impl Ram {
    fn range(&self, address: u64, length: usize) -> Result<Range<usize>, Errno> {
        let size = self.0.lock().unwrap().len();
        let start = address.checked_sub(BASE).ok_or(Errno::EFAULT)? as usize;
        let end = start.checked_add(length).filter(|&end| end <= size).ok_or(Errno::EFAULT)?;
        Ok(start..end)
    }
}

impl AddressSpace for Ram {
    fn id(&self) -> MmId {
        MmId(1)
    }
    fn describe(&self) -> String {
        "the test's memory".into()
    }
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let range = self.range(address, into.len())?;
        into.copy_from_slice(&self.0.lock().unwrap()[range]);
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let range = self.range(address, from.len())?;
        self.0.lock().unwrap()[range].copy_from_slice(from);
        Ok(())
    }
    fn pin(&self, address: u64, pages: u64, _write: bool) -> Result<Arc<dyn Pin>, Errno> {
        self.range(address, (pages * PAGE_SIZE) as usize)?;
        Ok(Arc::new(Pages { ram: self.clone(), first: address, pages }))
    }
}

impl Pin for Pages {
    fn pages(&self) -> u64 {
        self.pages
    }
    fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        let page = (self.first - BASE) / PAGE_SIZE + pages.start;
        // The upper half lies elsewhere, so that there is one place where frames do not follow.
        for page in page..page + (pages.end - pages.start) {
            each(FIRST_PFN + page + if page >= GAP { 0x100 } else { 0 }, 1);
        }
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.ram.read(self.first + offset, into)
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.ram.write(self.first + offset, from)
    }
    fn release(&self, _: Range<u64>) {}
    fn held(&self) -> Held {
        Held::Shared
    }
}
