//! The file of a fault queue: reads take page requests, writes bring answers.

use std::any::Any;
use std::sync::Arc;

use ioctl_abi::iommufd::{
    IOMMUFD_PAGE_RESP_INVALID, IOMMUFD_PAGE_RESP_SUCCESS, iommu_hwpt_page_response,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use crate::Errno;
use crate::context::Hold;
use crate::driver::ResponseCode;
use crate::file::{EngineFile, PollEvents, ReadBuffer, Wake};
use crate::kept::Opens;
use crate::object::Use;

use super::{FAULT_SIZE, FaultQueue, RESPONSE_SIZE};

/// The file of a fault queue. Keeps the queue, and its context, until it is released.
pub(crate) struct FaultFile {
    queue: Arc<FaultQueue>,
    kept: Mutex<Option<(Use<FaultQueue>, Hold)>>,
    opens: Opens,
}

impl FaultFile {
    pub(crate) fn new(queue: Use<FaultQueue>, hold: Hold) -> Self {
        Self {
            queue: queue.object().clone(),
            kept: Mutex::new(Some((queue, hold))),
            opens: Opens::default(),
        }
    }
}

impl EngineFile for FaultFile {
    fn name(&self) -> &'static str {
        "[iommufd-pgfault]"
    }

    fn writable(&self) -> bool {
        true
    }

    /// Whole groups, as many as fit: nothing at all when there is none or the first one is larger
    /// than the buffer. `ESPIPE` for a buffer that ends inside a fault.
    fn read(&self, into: &mut dyn ReadBuffer) -> Result<(), Errno> {
        let mut room = into.room();
        if !room.is_multiple_of(FAULT_SIZE) {
            return Err(Errno::ESPIPE);
        }
        // Taken under the lock, copied without it, and put back where the copy failed.
        let mut taken: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut result = Ok(());
        {
            let mut state = self.queue.state.lock();
            while let Some(group) = state.unread.front().filter(|g| g.bytes() <= room) {
                room -= group.bytes();
                let cookie = match state.cookies.take() {
                    Ok(cookie) => cookie,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                };
                let Some(group) = state.unread.pop_front() else { break };
                let bytes = group.messages(cookie).flat_map(|m| m.as_bytes().to_vec()).collect();
                taken.push((cookie, bytes));
                state.unanswered.insert(cookie, group);
            }
        }
        let mut done = 0;
        for (_, bytes) in &taken {
            if let Err(error) = into.put(bytes) {
                result = Err(error);
                break;
            }
            done += 1;
        }
        if done < taken.len() {
            let mut state = self.queue.state.lock();
            for &(cookie, _) in taken[done..].iter().rev() {
                if let Some(group) = state.remove(cookie) {
                    state.unread.push_front(group);
                }
            }
        }
        if done > 0 { Ok(()) } else { result }
    }

    /// Answers, one after another. `ESPIPE` for bytes that end inside one; `EINVAL` for a code
    /// that there is not or a cookie that awaits no answer, unless some were taken before it.
    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        if !bytes.len().is_multiple_of(RESPONSE_SIZE) {
            return Err(Errno::ESPIPE);
        }
        let mut done = 0;
        for bytes in bytes.chunks_exact(RESPONSE_SIZE) {
            if let Err(error) = self.respond(bytes) {
                return if done == 0 { Err(error) } else { Ok(done) };
            }
            done += RESPONSE_SIZE;
        }
        Ok(done)
    }

    fn poll(&self) -> PollEvents {
        let readable = !self.queue.state.lock().unread.is_empty();
        let input = PollEvents::IN | PollEvents::RDNORM;
        PollEvents::OUT | if readable { input } else { PollEvents::empty() }
    }

    fn watch(&self, wake: Arc<dyn Wake>) {
        self.queue.watchers.add(wake);
    }

    fn opens(&self) -> Option<&Opens> {
        Some(&self.opens)
    }

    fn end(&self) {
        self.queue.watchers.clear();
        let kept = self.kept.lock().take();
        if let Some((queue, hold)) = kept {
            drop(queue);
            drop(hold);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl FaultFile {
    fn respond(&self, bytes: &[u8]) -> Result<(), Errno> {
        let response =
            iommu_hwpt_page_response::read_from_bytes(bytes).map_err(|_| Errno::EINVAL)?;
        let code = match response.code {
            IOMMUFD_PAGE_RESP_SUCCESS => ResponseCode::Success,
            IOMMUFD_PAGE_RESP_INVALID => ResponseCode::Invalid,
            _ => return Err(Errno::EINVAL),
        };
        let group = self.queue.state.lock().remove(response.cookie).ok_or(Errno::EINVAL)?;
        group.answer(code);
        Ok(())
    }
}
