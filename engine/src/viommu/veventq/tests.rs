use proptest::prelude::*;
use zerocopy::FromBytes;

use ioctl_abi::iommufd::{IOMMU_VEVENTQ_FLAG_LOST_EVENTS, iommufd_vevent_header};

use super::EventQueue;
use crate::Errno;
use crate::file::ReadBuffer;

/// Takes so many bytes, and `faults_after` entries.
struct Buffer {
    room: usize,
    faults_after: usize,
    bytes: Vec<u8>,
    puts: usize,
}

impl Buffer {
    fn new(room: usize) -> Self {
        Self { room, faults_after: usize::MAX, bytes: Vec::new(), puts: 0 }
    }
}

impl ReadBuffer for Buffer {
    fn room(&self) -> usize {
        self.room - self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        assert!(bytes.len() <= self.room());
        if self.puts >= self.faults_after {
            return Err(Errno::EFAULT);
        }
        self.puts += 1;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// The headers of what a read brought, with the data of `data` bytes behind those that have any.
fn entries(mut bytes: &[u8], data: usize) -> Vec<(u32, u32, Vec<u8>)> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = iommufd_vevent_header::read_from_prefix(bytes).unwrap();
        let lost = header.flags & IOMMU_VEVENTQ_FLAG_LOST_EVENTS != 0;
        let (data, rest) = rest.split_at(if lost { 0 } else { data });
        entries.push((header.flags, header.sequence, data.to_vec()));
        bytes = rest;
    }
    entries
}

#[test]
fn an_overflow_ends_the_queue_with_a_header() {
    let queue = EventQueue::new(2, None);
    for byte in 0..3 {
        queue.push(&[byte; 4]).unwrap();
    }
    let mut buffer = Buffer::new(36);
    queue.read(&mut buffer).unwrap();
    assert_eq!(entries(&buffer.bytes, 4), [(0, 0, vec![0; 4]), (0, 1, vec![1; 4]), (1, 2, vec![])]);
    assert!(!queue.readable());
    queue.push(&[9; 4]).unwrap();
    let mut buffer = Buffer::new(12);
    queue.read(&mut buffer).unwrap();
    assert_eq!(entries(&buffer.bytes, 4), [(0, 3, vec![9; 4])]);
}

#[test]
fn room_for_no_entry_is_invalid() {
    let queue = EventQueue::new(1, None);
    assert_eq!(queue.read(&mut Buffer::new(0)), Err(Errno::EINVAL));
    assert_eq!(queue.read(&mut Buffer::new(7)), Err(Errno::EINVAL));
    assert_eq!(queue.read(&mut Buffer::new(8)), Ok(()));
    queue.push(&[0; 4]).unwrap();
    assert_eq!(queue.read(&mut Buffer::new(8)), Err(Errno::EINVAL));
    assert_eq!(queue.read(&mut Buffer::new(11)), Err(Errno::EINVAL));
    assert!(queue.readable());
}

#[test]
fn a_bad_pointer_loses_nothing() {
    let queue = EventQueue::new(1, None);
    queue.push(&[1; 4]).unwrap();
    queue.push(&[2; 4]).unwrap();
    let mut buffer = Buffer { faults_after: 0, ..Buffer::new(64) };
    assert_eq!(queue.read(&mut buffer), Err(Errno::EFAULT));
    let mut buffer = Buffer { faults_after: 1, ..Buffer::new(64) };
    assert_eq!(queue.read(&mut buffer), Ok(()));
    assert_eq!(entries(&buffer.bytes, 4), [(0, 0, vec![1; 4])]);
    let mut buffer = Buffer::new(64);
    queue.read(&mut buffer).unwrap();
    assert_eq!(entries(&buffer.bytes, 4), [(1, 1, vec![])]);
}

#[test]
fn an_event_that_finds_no_memory_is_lost() {
    let queue = EventQueue::new(4, None);
    let (result, left) = crate::inject::with_fail_nth(1, || queue.push(&[1; 4]));
    assert_eq!((result, left.fired), (Err(Errno::ENOMEM), Some("vevent: allocate")));
    let mut buffer = Buffer::new(64);
    queue.read(&mut buffer).unwrap();
    assert_eq!(entries(&buffer.bytes, 4), [(1, 0, vec![])]);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Read { entries: usize, fault_after: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let read = (0..6usize, 0..8usize)
        .prop_map(|(entries, fault_after)| Step::Read { entries, fault_after });
    prop::collection::vec(prop_oneof![any::<u8>().prop_map(Step::Push), read], 1..80)
}

proptest! {
    /// Every event is read in order, exactly once, or counted: between two sequence numbers that
    /// were read lie just the events that found the queue full.
    #[test]
    fn nothing_is_lost_uncounted(depth in 1..5u32, steps in steps()) {
        let queue = EventQueue::new(depth, None);
        // What is in the queue by our own books: sequence and data, nothing for a lost tail.
        let mut books: Vec<(u32, Option<u8>)> = Vec::new();
        let mut sequence = 0;
        for step in steps {
            match step {
                Step::Push(byte) => {
                    queue.push(&[byte; 4]).unwrap();
                    books.retain(|(_, data)| data.is_some());
                    let full = books.len() == depth as usize;
                    books.push((sequence, (!full).then_some(byte)));
                    sequence += 1;
                }
                Step::Read { entries: count, fault_after } => {
                    let mut buffer = Buffer { faults_after: fault_after, ..Buffer::new(count * 12) };
                    let result = queue.read(&mut buffer);
                    let mut room = count * 12;
                    let mut expected = Vec::new();
                    while let Some(&(sequence, data)) = books.first() {
                        let size = if data.is_some() { 12 } else { 8 };
                        if size > room || expected.len() == fault_after {
                            break;
                        }
                        room -= size;
                        let flags = u32::from(data.is_none());
                        expected.push((flags, sequence, vec![data.unwrap_or(0); size - 8]));
                        books.remove(0);
                    }
                    if count == 0 {
                        prop_assert_eq!(result, Err(Errno::EINVAL));
                    } else if !expected.is_empty() || books.is_empty() {
                        prop_assert_eq!(result, Ok(()));
                    } else {
                        prop_assert_eq!(result, Err(Errno::EFAULT));
                    }
                    prop_assert_eq!(entries(&buffer.bytes, 4), expected);
                    prop_assert_eq!(queue.readable(), !books.is_empty());
                }
            }
        }
    }
}
