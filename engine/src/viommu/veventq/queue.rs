//! The queue itself: bounded, and it counts what it loses.
//!
//! Each event takes the next sequence number, a lost one, too. Losses show as a gap before the
//! event that follows; only while the newest event is a lost one, a header without data
//! (`IOMMU_VEVENTQ_FLAG_LOST_EVENTS`) ends the queue.

use std::collections::VecDeque;
use std::sync::Arc;

use ioctl_abi::iommufd::{IOMMU_VEVENTQ_FLAG_LOST_EVENTS, iommufd_vevent_header};
use parking_lot::Mutex;
use zerocopy::IntoBytes;

use crate::file::ReadBuffer;
use crate::quota::{Quota, Resource, Taken};
use crate::watch::Watchers;
use crate::{Errno, inject};

/// Sequence numbers are positive ints.
const SEQUENCE_MASK: u32 = i32::MAX as u32;
/// Bytes of the header that each entry begins with.
const HEADER_SIZE: usize = size_of::<iommufd_vevent_header>();

/// The queue behind a vEVENTQ object and its file.
pub(crate) struct EventQueue {
    depth: u32,
    /// What its user may have.
    quota: Option<Arc<Quota>>,
    state: Mutex<State>,
    pub(super) watchers: Watchers,
}

/// An event with data, and its place in its user's quota.
struct Event {
    bytes: Box<[u8]>,
    _taken: Taken,
}

#[derive(Default)]
struct State {
    /// Events with data, in the form that is read; at most `depth`.
    events: VecDeque<Event>,
    /// The sequence number of the lost event that ends the queue.
    lost: Option<u32>,
    sequence: u32,
}

impl State {
    fn take(&mut self, room: usize) -> Option<Entry> {
        if let Some(first) = self.events.front() {
            let event = if first.bytes.len() <= room { self.events.pop_front() } else { None }?;
            return Some(Entry { event, lost: None });
        }
        let sequence = if room >= HEADER_SIZE { self.lost.take()? } else { return None };
        let bytes = entry(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, sequence, &[]);
        Some(Entry { event: Event { bytes, _taken: Taken::default() }, lost: Some(sequence) })
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost.is_none()
    }
}

/// What a read takes out.
struct Entry {
    event: Event,
    lost: Option<u32>,
}

fn entry(flags: u32, sequence: u32, data: &[u8]) -> Box<[u8]> {
    let header = iommufd_vevent_header { flags, sequence };
    [header.as_bytes(), data].concat().into()
}

impl EventQueue {
    /// A queue of at most `depth` events, which are counted in `quota`.
    pub(super) fn new(depth: u32, quota: Option<Arc<Quota>>) -> Self {
        Self { depth, quota, state: Mutex::default(), watchers: Watchers::default() }
    }

    /// Takes an event, or loses it when the queue is full (no error) or memory is short.
    pub(crate) fn push(&self, data: &[u8]) -> Result<(), Errno> {
        let result = {
            let mut state = self.state.lock();
            let sequence = state.sequence;
            state.sequence = (sequence + 1) & SEQUENCE_MASK;
            let full = state.events.len() >= self.depth as usize;
            let memory = match full {
                true => Ok(None),
                false => inject::site("vevent: allocate")
                    .and_then(|()| Taken::of(self.quota.as_ref(), Resource::Events))
                    .map(Some),
            };
            match memory {
                Ok(Some(taken)) => {
                    state.lost = None;
                    state
                        .events
                        .push_back(Event { bytes: entry(0, sequence, data), _taken: taken });
                    Ok(())
                }
                Ok(None) => {
                    state.lost = Some(sequence);
                    Ok(())
                }
                Err(error) => {
                    state.lost = Some(sequence);
                    Err(error)
                }
            }
        };
        self.watchers.wake();
        result
    }

    /// Reads as many whole events as fit, none when there is none. `EINVAL` when not even a
    /// header, or not the first event, fits.
    pub(super) fn read(&self, into: &mut dyn ReadBuffer) -> Result<(), Errno> {
        if into.room() < HEADER_SIZE {
            return Err(Errno::EINVAL);
        }
        // Each is taken under the lock, copied without it, and put back when the copy failed.
        let mut done = false;
        loop {
            let (entry, sequence) = {
                let mut state = self.state.lock();
                match state.take(into.room()) {
                    Some(entry) => (entry, state.sequence),
                    None if done || state.is_empty() => return Ok(()),
                    None => return Err(Errno::EINVAL),
                }
            };
            if let Err(error) = into.put(&entry.event.bytes) {
                self.put_back(entry, sequence);
                return if done { Ok(()) } else { Err(error) };
            }
            done = true;
        }
    }

    /// Undoes a [`State::take`] that saw `sequence`.
    fn put_back(&self, entry: Entry, sequence: u32) {
        let mut state = self.state.lock();
        match entry.lost {
            None => state.events.push_front(entry.event),
            // An event that came meanwhile shows the loss by its own number.
            Some(lost) if state.sequence == sequence => state.lost = Some(lost),
            Some(_) => {}
        }
    }

    /// Whether a read would find something.
    pub(super) fn readable(&self) -> bool {
        !self.state.lock().is_empty()
    }
}
