//! I/O page faults: queues, HWPTs that use them, responses.

use ioctl_abi::Command;
use ioctl_abi::iommufd::IOMMU_HWPT_FAULT_ID_VALID;
use ioctl_abi::selftest::*;

use super::super::arena::BUFFER;
use super::super::rng::Rng;
use super::super::step::{Call, Poke, Value};
use super::draft::{Draft, half_words};
use super::state::{Kind, State, out};
use super::{Made, Recipe};

pub(super) const RECIPES: &[(u64, Recipe)] =
    &[(3, queue), (5, attach), (12, fault), (9, read), (10, respond), (3, poll), (1, close)];

pub(super) fn queue(state: &mut State, _: &mut Rng) -> Option<Made> {
    let draft = Draft::new(Command::FaultQueueAlloc);
    let (id, fd) = (draft.out("out_fault_id"), draft.out("out_fault_fd"));
    Some(draft.call(state).then(move |state, reply, number| {
        let fd = out(reply, number, fd);
        state.made(Kind::FaultQueue, reply, number, id, Some(fd), 0);
    }))
}

/// A fault without a PASID says so by this number.
const NO_PASID: u32 = 0;

/// Puts a mock device behind an HWPT that has a queue: from there its faults reach the program.
pub(super) fn attach(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let mut all = state.all(Kind::Hwpt);
    all.extend(state.all(Kind::Nested));
    all.retain(|hwpt| hwpt.flags & u64::from(IOMMU_HWPT_FAULT_ID_VALID) != 0);
    let (hwpt, mock) = (rng.any(&all)?.id, state.any(Kind::MockDevice, rng)?);
    let call =
        Draft::test(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, mock.id).set("pt_id", hwpt).call(state);
    Some(call.then(move |state, _, _| {
        if let Some(device) = mock.other {
            state.faulting.push((state.context, device, NO_PASID));
        }
    }))
}

fn fault(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let here: Vec<_> = state.faulting.iter().filter(|(at, ..)| *at == state.context).collect();
    let (device, pasid): (Value, u32) = match rng.any(&here) {
        Some(&&(_, device, pasid)) if rng.chance(75) => (device, pasid),
        _ => (state.any(Kind::Device, rng)?.id, NO_PASID),
    };
    // With another PASID, only a first stage's faults reach a queue.
    let other = *rng.pick(&[u32::MAX, u32::MAX, NO_PASID, 1, 2, 100, 1024]);
    let pasid = if rng.chance(70) { pasid } else { other };
    Some(
        Draft::test(IOMMU_TEST_OP_TRIGGER_IOPF, 0_u64)
            .set("dev_id", device)
            .set("pasid", pasid)
            .set("grpid", rng.below(4))
            .set("perm", rng.below(16))
            .set("addr", state.iova(rng))
            .call(state)
            .into(),
    )
}

fn read(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let fd = state.any(Kind::FaultQueue, rng)?.other?;
    let len = *rng.pick(&[40_u64, 40, 80, 120, 200, 39, 60, 0, 8]);
    Some(Call::Read { fd, at: BUFFER, len }.then(move |state, reply, _| {
        for fault in reply.seen[0][..reply.result as usize].chunks_exact(40) {
            let cookie = u32::from_le_bytes([fault[36], fault[37], fault[38], fault[39]]);
            state.cookies.push((fd, cookie));
        }
    }))
}

fn respond(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let number = *rng.pick(&[1, 1, 1, 2, 0]);
    let mut words = Vec::new();
    let mut fd = state.any(Kind::FaultQueue, rng)?.other?;
    for _ in 0..number {
        let code = *rng.pick(&[0_u32, 0, 0, 1, 1, 2]);
        let due = rng.any(&state.cookies).copied();
        let cookie = match due {
            Some((due, cookie)) if rng.chance(90) => {
                fd = due;
                if rng.chance(85) {
                    state.cookies.retain(|other| other.1 != cookie);
                }
                cookie
            }
            _ => *rng.pick(&[0, 1, 7, u32::MAX]),
        };
        words.extend(half_words([cookie, code]));
    }
    let len = words.len() as u64;
    let len = if rng.chance(90) { len } else { *rng.pick(&[4, len + 1, 7, 12]) };
    words.resize(16, 0);
    Some(Call::Write { fd, poke: Poke { at: BUFFER, bytes: words, patches: vec![] }, len }.into())
}

fn poll(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let fd = state.any(Kind::FaultQueue, rng)?.other?;
    let events = *rng.pick(&[libc::POLLIN | libc::POLLOUT, libc::POLLIN, 0]);
    Some(Call::Poll { fd, events }.into())
}

fn close(state: &mut State, rng: &mut Rng) -> Option<Made> {
    let kind = if rng.chance(60) { Kind::FaultQueue } else { Kind::Veventq };
    let fd = state.any(kind, rng)?.other?;
    Some(Call::Close { fd }.into())
}
