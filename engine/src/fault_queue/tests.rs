use std::sync::Arc;

use ioctl_abi::iommufd::{iommu_hwpt_page_response, iommu_hwpt_pgfault};
use parking_lot::Mutex;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::{FaultFile, FaultGroup, FaultQueue, Origin};
use crate::driver::{
    DomainChange, Fault, Group, HwCapabilities, HwInfo, HwptFlags, IommuDevice, PageResponse,
    PagingDomain, ResponseCode, UserData,
};
use crate::file::{EngineFile, PollEvents, ReadBuffer};
use crate::object::Objects;
use crate::{Engine, Errno, Node};

/// A device that only notes the answers it gets.
struct Notes {
    group: Arc<Group>,
    answers: Mutex<Vec<(u32, ResponseCode)>>,
}

impl IommuDevice for Notes {
    fn name(&self) -> String {
        "notes".into()
    }
    fn driver(&self) -> &'static str {
        "notes"
    }
    fn instance(&self) -> u64 {
        0
    }
    fn group(&self) -> &Arc<Group> {
        &self.group
    }
    fn hw_info(&self, _: u32) -> Result<Option<HwInfo>, Errno> {
        Ok(None)
    }
    fn capabilities(&self) -> HwCapabilities {
        HwCapabilities::empty()
    }
    fn alloc_paging(
        &self,
        _: HwptFlags,
        _: Option<&UserData<'_>>,
    ) -> Result<Arc<dyn PagingDomain>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn set_domain(&self, _: u32, _: DomainChange<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn page_response(&self, response: PageResponse) {
        self.answers.lock().push((response.group_id, response.code));
    }
}

/// A queue with its file, and a device whose faults it takes.
struct Bench {
    queue: Arc<FaultQueue>,
    file: FaultFile,
    device: Arc<Notes>,
}

const ORIGIN: Origin = Origin { device_id: 7, attached: 0 };

impl Bench {
    fn new() -> Self {
        let context = Engine::new().open(Node::Iommu);
        let queue = Objects::default().reserve().unwrap().commit_used(Arc::<FaultQueue>::default());
        let device = Notes { group: Arc::new(Group::new("notes")), answers: Mutex::default() };
        Self {
            queue: queue.object().clone(),
            file: FaultFile::new(queue, context.hold()),
            device: Arc::new(device),
        }
    }

    fn push(&self, origin: Origin, group_id: u32, faults: usize) {
        let fault = |n| Fault {
            pasid: None,
            group_id,
            permissions: 3,
            address: 0x1000 * n as u64,
            last: n + 1 == faults,
        };
        let faults = (0..faults).map(fault).collect();
        self.queue.push(FaultGroup::new(origin, self.device.clone(), faults).unwrap());
    }

    fn read(&self, faults: usize) -> Result<Vec<iommu_hwpt_pgfault>, Errno> {
        let mut buffer = Buffer { room: faults * 40, good: usize::MAX, bytes: Vec::new() };
        self.file.read(&mut buffer)?;
        Ok(faults_of(&buffer.bytes))
    }

    fn respond(&self, cookie: u32, code: u32) -> Result<usize, Errno> {
        self.file.write(iommu_hwpt_page_response { cookie, code }.as_bytes())
    }
}

fn faults_of(bytes: &[u8]) -> Vec<iommu_hwpt_pgfault> {
    bytes.chunks(40).map(|bytes| iommu_hwpt_pgfault::read_from_bytes(bytes).unwrap()).collect()
}

/// A caller's buffer of `room` bytes, of which only the first `good` are there.
struct Buffer {
    room: usize,
    good: usize,
    bytes: Vec<u8>,
}

impl ReadBuffer for Buffer {
    fn room(&self) -> usize {
        self.room - self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if self.bytes.len() + bytes.len() > self.good {
            return Err(Errno::EFAULT);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn a_group_is_read_whole_and_answered_once() {
    let bench = Bench::new();
    assert_eq!(bench.file.poll(), PollEvents::OUT);
    assert_eq!(bench.read(4), Ok(vec![]));
    bench.push(ORIGIN, 5, 3);
    assert_eq!(bench.file.poll(), PollEvents::OUT | PollEvents::IN | PollEvents::RDNORM);
    assert_eq!(bench.read(2), Ok(vec![]), "a part of a group is not read");
    let faults = bench.read(4).unwrap();
    let summary: Vec<_> = faults.iter().map(|f| (f.flags, f.dev_id, f.grpid, f.cookie)).collect();
    assert_eq!(summary, [(0, 7, 5, 1), (0, 7, 5, 1), (2, 7, 5, 1)]);
    assert_eq!(bench.respond(2, 0), Err(Errno::EINVAL));
    assert_eq!(bench.respond(1, 2), Err(Errno::EINVAL));
    assert_eq!(bench.respond(1, 1), Ok(8));
    assert_eq!(bench.respond(1, 1), Err(Errno::EINVAL));
    assert_eq!(*bench.device.answers.lock(), [(5, ResponseCode::Invalid)]);
}

#[test]
fn sizes_that_end_inside_a_message_are_refused() {
    let bench = Bench::new();
    let mut buffer = Buffer { room: 41, good: 0, bytes: Vec::new() };
    assert_eq!(bench.file.read(&mut buffer), Err(Errno::ESPIPE));
    assert_eq!(bench.file.write(&[0; 7]), Err(Errno::ESPIPE));
    assert_eq!(bench.file.write(&[]), Ok(0));
}

#[test]
fn a_write_says_how_far_it_came() {
    let bench = Bench::new();
    bench.push(ORIGIN, 1, 1);
    bench.read(1).unwrap();
    let good = iommu_hwpt_page_response { cookie: 1, code: 0 };
    let bad = iommu_hwpt_page_response { cookie: 9, code: 0 };
    assert_eq!(bench.file.write([good, bad].as_bytes()), Ok(8));
}

#[test]
fn a_bad_pointer_loses_no_group_and_no_cookie() {
    let bench = Bench::new();
    for group in 1..=3 {
        bench.push(ORIGIN, group, 1);
    }
    let mut buffer = Buffer { room: 120, good: 40, bytes: Vec::new() };
    assert_eq!(bench.file.read(&mut buffer), Ok(()));
    assert_eq!(faults_of(&buffer.bytes)[0].grpid, 1);
    let mut buffer = Buffer { room: 120, good: 0, bytes: Vec::new() };
    assert_eq!(bench.file.read(&mut buffer), Err(Errno::EFAULT));
    let rest: Vec<_> = bench.read(3).unwrap().iter().map(|f| (f.grpid, f.cookie)).collect();
    assert_eq!(rest, [(2, 2), (3, 3)]);
}

#[test]
fn a_cookie_that_finds_no_memory_leaves_the_group() {
    let bench = Bench::new();
    bench.push(ORIGIN, 1, 1);
    let (result, _) = crate::inject::with_fail_nth(1, || bench.read(1));
    assert_eq!(result, Err(Errno::ENOMEM));
    assert_eq!(bench.read(1).unwrap()[0].cookie, 1);
}

#[test]
fn who_leaves_takes_its_faults_along() {
    let bench = Bench::new();
    let other = Origin { device_id: 8, attached: 0 };
    bench.push(ORIGIN, 1, 1);
    bench.push(ORIGIN, 2, 1);
    bench.push(other, 3, 1);
    bench.read(1).unwrap();
    bench.queue.forget(ORIGIN);
    let mut answers = bench.device.answers.lock().clone();
    answers.sort_by_key(|answer| answer.0);
    assert_eq!(answers, [(1, ResponseCode::Invalid), (2, ResponseCode::Invalid)]);
    assert_eq!(bench.read(3).unwrap().len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Push { faults: usize },
    Read { faults: usize, good: usize },
    Answer { which: usize },
    Leave,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..4usize).prop_map(|faults| Step::Push { faults }),
        3 => (0..8usize, 0..10usize).prop_map(|(faults, good)| Step::Read { faults, good }),
        3 => (0..4usize).prop_map(|which| Step::Answer { which }),
        1 => Just(Step::Leave),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    /// Groups are read in order, each gets exactly one answer, and cookies are the lowest free.
    #[test]
    fn every_group_gets_one_answer(steps in steps()) {
        let bench = Bench::new();
        let mut unread: Vec<(u32, usize)> = Vec::new();
        let mut unanswered: Vec<(u32, u32)> = Vec::new();
        let mut answered = 0;
        let mut next = 0;
        for step in steps {
            match step {
                Step::Push { faults } => {
                    bench.push(ORIGIN, next, faults);
                    unread.push((next, faults));
                    next += 1;
                }
                Step::Read { faults, good } => {
                    let mut buffer =
                        Buffer { room: faults * 40, good: good * 40, bytes: Vec::new() };
                    let result = bench.file.read(&mut buffer);
                    let (mut room, mut taken) = (faults, 0);
                    let mut expected = Vec::new();
                    while let Some(&(group, size)) = unread.first() {
                        if size > room {
                            break;
                        }
                        if taken + size > good {
                            if expected.is_empty() {
                                prop_assert_eq!(result, Err(Errno::EFAULT));
                            }
                            break;
                        }
                        let free = |cookie: &u32| unanswered.iter().all(|(c, _)| c != cookie);
                        let cookie = (1..).find(free).unwrap();
                        expected.extend(std::iter::repeat_n((group, cookie), size));
                        unanswered.push((cookie, group));
                        room -= size;
                        taken += size;
                        unread.remove(0);
                    }
                    let got: Vec<_> =
                        faults_of(&buffer.bytes).iter().map(|f| (f.grpid, f.cookie)).collect();
                    prop_assert_eq!(got, expected);
                }
                Step::Answer { which } => {
                    let cookie = unanswered.get(which).map_or(1000, |(cookie, _)| *cookie);
                    let known = which < unanswered.len();
                    prop_assert_eq!(bench.respond(cookie, 0).is_ok(), known);
                    if known {
                        unanswered.remove(which);
                        answered += 1;
                    }
                }
                Step::Leave => {
                    bench.queue.forget(ORIGIN);
                    answered += unread.len() + unanswered.len();
                    unread.clear();
                    unanswered.clear();
                }
            }
            prop_assert_eq!(bench.device.answers.lock().len(), answered);
        }
    }
}
