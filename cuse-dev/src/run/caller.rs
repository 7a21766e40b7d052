//! The thread behind one notification, as the engine sees it.

use std::os::fd::AsFd;
use std::sync::Arc;

use engine::Errno;
use engine::caller::{Caller, CallerFile, Process};
use engine::file::EngineFile;
use engine::memory::AddressSpace;
use parking_lot::Mutex;

use super::notify::Notification;
use super::supervisor::Supervisor;
use crate::caller::CallerProcess;
use crate::event_files::FileId;

/// A thread that waits for the answer to an ioctl.
pub(crate) struct IoctlCaller<'a> {
    supervisor: &'a Supervisor,
    call: &'a Notification,
    process: &'a Arc<CallerProcess>,
    /// The descriptor number that the ioctl returns, if it returns one.
    result: Mutex<Option<i32>>,
}

impl<'a> IoctlCaller<'a> {
    pub(crate) fn new(
        supervisor: &'a Supervisor,
        call: &'a Notification,
        process: &'a Arc<CallerProcess>,
    ) -> Self {
        Self { supervisor, call, process, result: Mutex::new(None) }
    }

    /// The descriptor that [`Caller::install_as_result`] gave, in place of the engine's result.
    pub(crate) fn installed(&self) -> Option<i32> {
        *self.result.lock()
    }

    fn give(&self, file: Arc<dyn EngineFile>) -> Result<i32, Errno> {
        let given = self.supervisor.open_file(file)?;
        self.supervisor.listener().add(self.call, given.as_fd(), true)
    }
}

impl Caller for IoctlCaller<'_> {
    fn memory(&self) -> Arc<dyn AddressSpace> {
        self.process.memory()
    }

    fn process(&self) -> Arc<dyn Process> {
        self.process.clone()
    }

    fn file(&self, fd: i32) -> Result<CallerFile, Errno> {
        let file = match self.process.descriptor(self.call.tid, fd) {
            Err(Errno::EPERM) => return Ok(CallerFile::Other),
            other => other?,
        };
        let id = FileId::of(file.as_fd())?;
        if let Some(open) = self.supervisor.open_files().context(id) {
            return Ok(CallerFile::Context(open.context.id()));
        }
        if let Some(file) = self.supervisor.find_file(id) {
            return Ok(CallerFile::Engine(file));
        }
        self.process.classify(file)
    }

    /// Whether the number can be written is tried before the descriptor is made, for a
    /// descriptor in somebody else's table cannot be taken back.
    fn install(&self, file: Arc<dyn EngineFile>, number_at: u64) -> Result<(), Errno> {
        let memory = self.process.memory();
        let mut before = [0; 4];
        memory.read(number_at, &mut before)?;
        memory.write(number_at, &before)?;
        let number = self.give(file)?;
        memory.write(number_at, &number.to_ne_bytes())
    }

    fn install_untold(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        self.give(file).map(drop)
    }

    fn install_as_result(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        let number = self.give(file)?;
        *self.result.lock() = Some(number);
        Ok(())
    }
}
