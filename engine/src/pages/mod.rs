//! `iopt_pages`: a stretch of a caller's memory or of a file, as areas share it.
//!
//! A page is pinned when its first user comes (an area of an IOAS that has a domain, or an access)
//! and let go when the last one leaves. All users share the pin: a domain that is added late, a
//! copied area and an access get the frames of the pin that is there.

mod copy;
mod runs;

pub use copy::Transfer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::field::{DisplayValue, display};

use crate::Errno;
use crate::account::{Account, Accounts, PayerId};
use crate::caller::Process;
use crate::dmabuf::Dmabuf;
use crate::inject;
use crate::inspect::PayerReport;
use crate::memory::{AddressSpace, BackingFile, Held, MmId, PAGE_SIZE, Pin};

use runs::Runs;

pub(crate) use runs::Run;

/// Where pages come from.
pub(crate) enum Source {
    /// The page-aligned `address` of an mm.
    Memory { memory: Arc<dyn AddressSpace>, address: u64 },
    /// The page-aligned byte `offset` of a file.
    File { file: Arc<dyn BackingFile>, offset: u64 },
    /// The page-aligned byte `offset` of a dma-buf, whose frames need no pin.
    Dmabuf { dmabuf: Arc<Dmabuf>, offset: u64 },
}

/// The call that mapped the pages first, for reports.
pub(crate) struct Origin {
    pub(crate) call: &'static str,
    /// The process that made it.
    pub(crate) caller: u32,
    pub(crate) at: Instant,
    pub(crate) ioas: u32,
    pub(crate) iova: AtomicU64,
}

/// Pages `0..count` of a source.
pub(crate) struct Pages {
    source: Source,
    count: u64,
    writable: bool,
    origin: Origin,
    /// A dma-buf that was revoked stays without frames, even when others may map it again.
    revoked: AtomicBool,
    state: Mutex<State>,
}

struct State {
    runs: Runs,
    account: Arc<Account>,
}

/// Pages that follow each other in one pin.
pub(crate) struct PinnedRun {
    pub(crate) pages: Range<u64>,
    /// The first page's number in the pin.
    pub(crate) at: u64,
    pub(crate) pin: Arc<dyn Pin>,
    pub(crate) since: Instant,
}

/// A charge for pages that somebody else pays for, too.
pub(crate) struct Charge {
    account: Arc<Account>,
    pages: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.uncharge(self.pages);
    }
}

impl Pages {
    /// `count` pages, of which none is pinned. `writable` asks for pins that devices may write to.
    pub(crate) fn new(
        source: Source,
        count: u64,
        writable: bool,
        account: Arc<Account>,
        origin: Origin,
    ) -> Result<Arc<Self>, Errno> {
        inject::site("pages: allocate")?;
        let state = Mutex::new(State { runs: Runs::default(), account });
        let revoked = AtomicBool::new(false);
        Ok(Arc::new(Self { source, count, writable, origin, revoked, state }))
    }

    /// Whether devices may be allowed to write.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Where they come from.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Who mapped them first.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What an IOVA for byte `at` should be congruent to: the caller's address or the file offset.
    pub(crate) fn address_of(&self, at: u64) -> u64 {
        let base = match &self.source {
            Source::Memory { address, .. } => *address,
            Source::File { offset, .. } | Source::Dmabuf { offset, .. } => *offset,
        };
        base.wrapping_add(at)
    }

    /// The same for reports: an address of a process, or an offset of a file.
    pub(crate) fn place(
        &self,
        at: u64,
    ) -> (Option<DisplayValue<String>>, Option<DisplayValue<String>>) {
        let place = Some(display(format!("{:#x}", self.address_of(at))));
        match &self.source {
            Source::Memory { .. } => (place, None),
            Source::File { .. } | Source::Dmabuf { .. } => (None, place),
        }
    }

    /// The dma-buf behind it, if it is one.
    pub(crate) fn dmabuf(&self) -> Option<&Arc<Dmabuf>> {
        match &self.source {
            Source::Dmabuf { dmabuf, .. } => Some(dmabuf),
            _ => None,
        }
    }

    /// Whether the dma-buf behind it was taken away.
    pub(crate) fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Adds a user to `pages`: those without get pinned. All or nothing.
    pub(crate) fn acquire(&self, pages: Range<u64>) -> Result<(), Errno> {
        if matches!(self.source, Source::Dmabuf { .. }) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let State { runs, account } = &mut *state;
        if let Some(run) = runs.exactly(&pages) {
            run.users += 1;
            return Ok(());
        }
        if runs.is_empty() {
            let run = self.pin(&pages, account, 1)?;
            runs.insert(pages.start, run);
            return Ok(());
        }
        inject::site("pages: pinned ranges")?;
        let mut pinned = Vec::new();
        let holes = runs.holes(&pages);
        for (index, hole) in holes.iter().enumerate() {
            match self.pin(hole, account, 0) {
                Ok(run) => pinned.push((hole.start, run)),
                Err(error) => {
                    for (_, run) in pinned {
                        let_go(&run, account);
                    }
                    if error == Errno::ENOMEM {
                        // A bad page behind the limit is met before it, too.
                        holes[index + 1..].iter().try_for_each(|hole| self.probe(hole))?;
                    }
                    return Err(error);
                }
            }
        }
        for (start, run) in pinned {
            runs.insert(start, run);
        }
        runs.change(&pages, 1);
        Ok(())
    }

    /// Removes a user from `pages`. What nobody uses any more is unpinned.
    pub(crate) fn release(&self, pages: Range<u64>) {
        if matches!(self.source, Source::Dmabuf { .. }) {
            return;
        }
        let mut state = self.state.lock();
        let State { runs, account } = &mut *state;
        if let Some(run) = runs.exactly(&pages) {
            run.users -= 1;
            if run.users == 0
                && let Some(run) = runs.take_single()
            {
                let_go(&run, account);
            }
            return;
        }
        for run in runs.change(&pages, -1) {
            let_go(&run, account);
        }
    }

    /// The frames of `pages`, which have a user: (first PFN, how many follow each other), in order.
    /// A revoked dma-buf has none.
    pub(crate) fn frames(&self, pages: Range<u64>, each: &mut dyn FnMut(u64, u64)) {
        if let Source::Dmabuf { dmabuf, offset } = &self.source {
            if !self.revoked() {
                let first = (dmabuf.physical() + offset) / PAGE_SIZE + pages.start;
                each(first, pages.end - pages.start);
            }
            return;
        }
        let state = self.state.lock();
        for (first, run) in state.runs.overlapping(&pages) {
            let from = pages.start.max(first) - first + run.at;
            let to = pages.end.min(first + run.length) - first + run.at;
            run.pin.frames(from..to, each);
        }
    }

    /// The run of pinned pages that `page` is in.
    pub(crate) fn pinned_around(&self, page: u64) -> Option<PinnedRun> {
        let state = self.state.lock();
        let (first, run) = state.runs.overlapping(&(page..page + 1)).next()?;
        let (pages, at) = (first..first + run.length, run.at);
        Some(PinnedRun { pages, at, pin: run.pin.clone(), since: run.since })
    }

    /// The pinned frames: (first page, first PFN, how many).
    pub(crate) fn each_pinned(&self, each: &mut dyn FnMut(u64, u64, u64)) {
        let state = self.state.lock();
        for (first, run) in state.runs.overlapping(&(0..self.count)) {
            let mut page = first;
            run.pin.frames(run.at..run.at + run.length, &mut |pfn, count| {
                each(page, pfn, count);
                page += count;
            });
        }
    }

    /// The frames that are known now: (first page, first PFN, how many). A dma-buf's, too.
    pub(crate) fn each_frame(&self, each: &mut dyn FnMut(u64, u64, u64)) {
        match &self.source {
            Source::Dmabuf { .. } => {
                self.frames(0..self.count, &mut |pfn, count| each(0, pfn, count));
            }
            _ => self.each_pinned(each),
        }
    }

    /// Shows the runs of pinned pages in `pages`, cut to them.
    pub(crate) fn each_run(&self, pages: Range<u64>, each: &mut dyn FnMut(Range<u64>, &Run)) {
        let state = self.state.lock();
        for (first, run) in state.runs.overlapping(&pages) {
            each(first.max(pages.start)..(first + run.length).min(pages.end), run);
        }
    }

    /// Shows the runs of `pages` that are pinned and that their file has lost, as nobody was told yet.
    pub(crate) fn each_lost(&self, pages: Range<u64>, each: &mut dyn FnMut(Range<u64>)) {
        let pinned: Vec<_> = {
            let state = self.state.lock();
            let runs = state.runs.overlapping(&pages);
            let cut = |(first, run): (u64, &Run)| {
                let here = first.max(pages.start)..(first + run.length).min(pages.end);
                (run.at + (here.start - first), here, run.pin.clone())
            };
            runs.map(cut).collect()
        };
        for (at, here, pin) in pinned {
            pin.lost(at..at + (here.end - here.start), &mut |page, count| {
                let page = here.start + (page - at);
                each(page..page + count);
            });
        }
    }

    /// Adds who pays to a report.
    pub(crate) fn add_payer(&self, payers: &mut BTreeMap<PayerId, PayerReport>) {
        self.state.lock().account.add_to(payers);
    }

    /// The frame that the process has for `page` now; nothing for a file, or where it can't be seen.
    pub(crate) fn frame_now(&self, page: u64) -> Option<Option<u64>> {
        match &self.source {
            Source::Memory { memory, address } => memory.frame_at(address + page * PAGE_SIZE).ok(),
            Source::File { .. } | Source::Dmabuf { .. } => None,
        }
    }

    /// The process whose memory it is.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.source {
            Source::Memory { memory, .. } => memory.pid(),
            Source::File { .. } | Source::Dmabuf { .. } => None,
        }
    }

    /// For reports: whose pages these are.
    pub(crate) fn describe(&self) -> String {
        match &self.source {
            Source::Memory { memory, .. } => memory.describe(),
            Source::File { file, .. } => file.describe(),
            Source::Dmabuf { .. } => "dma-buf".to_owned(),
        }
    }

    /// Whether these pages follow a file, not an mm.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// Charges `process` (with memory `mm`) for what is pinned, beside who pays now. `ENOMEM` past its
    /// limit. What comes of it goes to [`Pages::pay`] or is dropped, which takes the charge back.
    pub(crate) fn charge_anew(
        &self,
        accounts: &Accounts,
        mm: MmId,
        process: &Arc<dyn Process>,
    ) -> Result<Charge, Errno> {
        let state = self.state.lock();
        let pinned: u64 = state.runs.overlapping(&(0..self.count)).map(|(_, run)| run.length).sum();
        let account = state.account.for_process(accounts, mm, process.clone());
        // Who is past a limit already may still pay for nothing.
        let pages = if account.same(&state.account) { 0 } else { pinned };
        if pages > 0 {
            account.charge(pages)?;
        }
        Ok(Charge { account, pages })
    }

    /// Lets whom `charge` charged pay from now on, and who paid go.
    pub(crate) fn pay(&self, mut charge: Charge) {
        let mut state = self.state.lock();
        state.account.uncharge(std::mem::take(&mut charge.pages));
        state.account = charge.account.clone();
    }

    fn pin(&self, pages: &Range<u64>, account: &Account, users: u32) -> Result<Run, Errno> {
        inject::site("pages: pin")?;
        let length = pages.end - pages.start;
        account.charge(length).or_else(|error| {
            // The kernel pins before it counts: a bad page is met before the limit is.
            self.probe(pages)?;
            Err(error)
        })?;
        let pin = self.pin_pages(pages.start, length).inspect_err(|_| account.uncharge(length))?;
        if let Held::Window(reason) | Held::Copy(reason) | Held::Mapped(reason) = pin.held() {
            self.warn_fallback(pages, pin.held(), reason);
        }
        Ok(Run { length, users, at: 0, pin, since: Instant::now() })
    }

    /// Whether the first of `pages` could be pinned: not all, as nothing limits how many those are.
    fn probe(&self, pages: &Range<u64>) -> Result<(), Errno> {
        let count = (pages.end - pages.start).min(512);
        self.pin_pages(pages.start, count)?.release(0..count);
        Ok(())
    }

    fn pin_pages(&self, first: u64, count: u64) -> Result<Arc<dyn Pin>, Errno> {
        match &self.source {
            Source::Memory { memory, address } => {
                memory.pin(address + first * PAGE_SIZE, count, self.writable)
            }
            Source::File { file, offset } => {
                if !file.pinnable() {
                    return Err(Errno::EINVAL);
                }
                file.pin(offset + first * PAGE_SIZE, count, self.writable)
            }
            Source::Dmabuf { .. } => Err(Errno::EINVAL),
        }
    }

    fn warn_fallback(&self, pages: &Range<u64>, held: Held, reason: &str) {
        let what = match held {
            Held::Copy(_) => "a copy",
            Held::Mapped(_) => "what the file has at the time",
            _ => "a window on the VA",
        };
        let (va, offset) = self.place(pages.start * PAGE_SIZE);
        tracing::warn!(
            owner = self.describe(),
            va,
            offset,
            length = format_args!("{:#x}", (pages.end - pages.start) * PAGE_SIZE),
            ioas = self.origin.ioas,
            iova = format_args!("{:#x}", self.origin.iova.load(Ordering::Relaxed)),
            call = self.origin.call,
            reason,
            "pages are not pinned: {what} stands in"
        );
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let State { runs, account } = self.state.get_mut();
        for (_, run) in runs.overlapping(&(0..self.count)) {
            let_go(run, account);
        }
    }
}

fn let_go(run: &Run, account: &Account) {
    run.pin.release(run.at..run.at + run.length);
    account.uncharge(run.length);
}
