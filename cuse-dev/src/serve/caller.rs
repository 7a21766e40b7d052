//! One calling thread, as the engine sees it: a request of the node that waits for its answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use engine::Errno;
use engine::caller::{Caller, CallerFile, Process};
use engine::file::{ContextId, EngineFile};
use engine::memory::AddressSpace;
use parking_lot::Mutex;

use super::daemon::Daemon;
use super::stopped::{Seized, Stopped};
use super::{deliver, identify};
use crate::caller::{CallerProcess, copying};
use crate::wire::Reply;

/// The thread whose ioctl is being answered.
pub(super) struct IoctlCaller<'a> {
    daemon: &'a Daemon,
    /// Whose event files its own are closed in order with.
    owner: u64,
    tid: u32,
    process: Arc<CallerProcess>,
    memory: Arc<dyn AddressSpace>,
    answer: Mutex<Answer>,
}

/// How the request will be answered.
enum Answer {
    /// By the reply.
    Reply(Reply),
    /// The reply is gone: the thread is stopped on its way out, with what was given to it.
    Stopped { thread: Box<Stopped>, given: Vec<i32>, result: Option<i32> },
    /// The thread died.
    Gone,
}

impl<'a> IoctlCaller<'a> {
    pub(super) fn new(
        daemon: &'a Daemon,
        owner: u64,
        tid: u32,
        process: Arc<CallerProcess>,
        reply: Reply,
    ) -> Self {
        let memory = process.memory();
        Self { daemon, owner, tid, process, memory, answer: Mutex::new(Answer::Reply(reply)) }
    }

    /// Answers the caller, and lets it go if it was stopped.
    pub(super) fn finish(self, result: Result<i64, Errno>) {
        match self.answer.into_inner() {
            Answer::Reply(reply) => reply.ioctl(result.map(|value| value as i32)),
            Answer::Stopped { mut thread, given, result: number } => {
                if result.is_err() {
                    for number in given {
                        // Whoever cannot close any more is gone, with its descriptors.
                        let _ = deliver::close(&mut thread, number);
                    }
                }
                let value = number.map_or(result, |number| result.map(|_| i64::from(number)));
                thread.set_result(value.unwrap_or_else(|error| -i64::from(error as i32)));
            }
            Answer::Gone => {}
        }
    }

    /// Gives the caller a descriptor of `file`.
    fn give(&self, file: Arc<dyn EngineFile>) -> Result<i32, Errno> {
        let given = self.daemon.files.open(self.owner, file)?;
        let number = self.deliver(given.as_fd());
        if number.is_err() {
            self.daemon.files.revoke(given);
        }
        number
    }

    fn deliver(&self, given: BorrowedFd<'_>) -> Result<i32, Errno> {
        copying::still_there()?;
        let mut answer = self.answer.lock();
        if let Answer::Reply(_) = *answer {
            let seized = Seized::new(self.tid).inspect_err(|error| self.explain(*error))?;
            if let Answer::Reply(reply) = std::mem::replace(&mut *answer, Answer::Gone) {
                // It returns to its program only after we let it go, with the result of then.
                reply.ioctl_raw(0)?;
            }
            let thread = Box::new(seized.stopped(&*self.memory)?);
            *answer = Answer::Stopped { thread, given: Vec::new(), result: None };
        }
        let Answer::Stopped { thread, given: all, .. } = &mut *answer else {
            return Err(Errno::ESRCH);
        };
        let number = deliver::give(thread, &*self.memory, given)?;
        all.push(number);
        Ok(number)
    }

    /// Gives the caller a duplicate of `file`, whose number there its call returns.
    pub(super) fn hand_over(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let number = self.deliver(file)?;
        if let Answer::Stopped { result, .. } = &mut *self.answer.lock() {
            *result = Some(number);
        }
        Ok(())
    }

    /// A duplicate of the caller's descriptor `fd`.
    pub(super) fn descriptor(&self, fd: i32) -> Result<OwnedFd, Errno> {
        copying::still_there()?;
        self.process.descriptor(self.tid, fd)
    }

    fn explain(&self, error: Errno) {
        let tid = self.tid;
        match super::task::tracer(tid) {
            0 => tracing::warn!(tid, %error, "cannot give the caller a descriptor"),
            tracer => tracing::warn!(
                tid,
                tracer,
                "cannot give a descriptor to a caller that another process traces; \
                 `softiommu run -- PROGRAM` serves such programs"
            ),
        }
    }
}

impl Caller for IoctlCaller<'_> {
    fn memory(&self) -> Arc<dyn AddressSpace> {
        self.memory.clone()
    }

    fn process(&self) -> Arc<dyn Process> {
        self.process.clone()
    }

    fn file(&self, fd: i32) -> Result<CallerFile, Errno> {
        let file = self.descriptor(fd)?;
        // No question here may wait for a file system that the caller serves itself.
        let shown = identify::of(file.as_fd())?;
        if let Some(file) = self.daemon.files.find(shown.id()) {
            return Ok(CallerFile::Engine(file));
        }
        if self.daemon.is_node(&shown) {
            return Ok(match identify::context(file.as_fd()) {
                Some(context) => CallerFile::Context(ContextId(context)),
                None => CallerFile::Other,
            });
        }
        if shown.kind != libc::S_IFREG || identify::is_remote(file.as_fd()) {
            return Ok(CallerFile::Other);
        }
        self.process.classify(file)
    }

    /// Whether the number can be written is tried before the descriptor is made.
    fn install(&self, file: Arc<dyn EngineFile>, number_at: u64) -> Result<(), Errno> {
        let mut before = [0; 4];
        self.memory.read(number_at, &mut before)?;
        self.memory.write(number_at, &before)?;
        let number = self.give(file)?;
        self.memory.write(number_at, &number.to_ne_bytes())
    }

    fn install_untold(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        self.give(file).map(drop)
    }

    fn install_as_result(&self, file: Arc<dyn EngineFile>) -> Result<(), Errno> {
        let number = self.give(file)?;
        if let Answer::Stopped { result, .. } = &mut *self.answer.lock() {
            *result = Some(number);
        }
        Ok(())
    }
}
