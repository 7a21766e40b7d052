//! Events of a vIOMMU, as its user reads them: a bounded queue that counts what it loses.
//!
//! Each event takes the next sequence number, a lost one, too. Losses show as a gap before the
//! event that follows; only while the newest event is a lost one, a header without data
//! (`IOMMU_VEVENTQ_FLAG_LOST_EVENTS`) ends the queue.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::{Errno, inject};

/// Sequence numbers are positive ints.
const SEQUENCE_MASK: u32 = i32::MAX as u32;

/// The queue behind a vEVENTQ object and its file.
pub(crate) struct EventQueue {
    depth: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// The sequence number of the lost event that ends the queue.
    lost: Option<u32>,
    sequence: u32,
}

/// One entry of the queue: an event, or that the newest ones were lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) sequence: u32,
    /// Nothing for the header that ends a queue with losses.
    pub(crate) data: Option<Box<[u8]>>,
}

impl EventQueue {
    /// A queue of at most `depth` events.
    pub(crate) fn new(depth: u32) -> Self {
        Self { depth, state: Mutex::default() }
    }

    /// Takes an event, or loses it when the queue is full (no error) or memory is short.
    pub(crate) fn push(&self, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let sequence = state.sequence;
        state.sequence = (sequence + 1) & SEQUENCE_MASK;
        if state.events.len() >= self.depth as usize {
            state.lost = Some(sequence);
            return Ok(());
        }
        if let Err(error) = inject::site("vevent: allocate") {
            state.lost = Some(sequence);
            return Err(error);
        }
        state.lost = None;
        state.events.push_back(Event { sequence, data: Some(data.into()) });
        Ok(())
    }
}
