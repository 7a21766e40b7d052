//! From a frame back to its bytes and its owner.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Context;
use crate::hwpt::HwptPaging;
use crate::memory::{PAGE_SIZE, Pin};

use super::report::Name;
use super::{PATIENCE, SourceReport};

/// A place where a frame is mapped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FrameReport {
    /// The context.
    pub context: u64,
    /// The IOAS.
    pub ioas: u32,
    /// The IOVA of the frame's page, or of the area if that begins inside of the page.
    #[serde(with = "super::hex")]
    pub iova: u64,
    /// The HWPTs whose IOPTE at that IOVA leads to the frame.
    pub hwpts: Vec<u32>,
    /// Whose page it is; `address` is the page's.
    pub source: SourceReport,
    /// `pinned`, `shared`, `mapped`, `window`, `copy`, `dma-buf`.
    pub held: Name,
    /// Why it is a window or a copy.
    pub reason: Option<Name>,
    /// Whether the process still has it at that address, or has unmapped, replaced or copied it
    /// since; nothing where that cannot be told.
    pub current: Option<bool>,
    /// Since how many seconds it is held.
    pub age: f64,
    /// The page's bytes, hexadecimal, if they were asked for and can be read.
    pub bytes: Option<String>,
}

/// What is found with the IOAS's lock held; bytes are read without.
struct Found {
    report: FrameReport,
    pin: Option<(Arc<dyn Pin>, u64)>,
}

impl Context {
    /// [`crate::Engine::find_frame`] in one context.
    pub fn find_frame(&self, pfn: u64, bytes: bool) -> Vec<FrameReport> {
        let mut found: Vec<Found> = Vec::new();
        self.each_ioas(|ioas| {
            let Some(state) = ioas.lock_within(PATIENCE) else { return };
            state.each_area(&mut |start, area| {
                let mut pages = Vec::new();
                area.pages.each_frame(&mut |page, first, count| {
                    if (first..first + count).contains(&pfn) {
                        pages.push(page + (pfn - first));
                    }
                });
                let find = |&page| area.find(self.id().0, ioas.id(), start, page, pfn);
                found.extend(pages.iter().filter_map(find));
            });
        });
        self.objects().each::<HwptPaging>(|id, hwpt| {
            for Found { report, .. } in &mut found {
                let here = hwpt.ioas().id() == report.ioas;
                let to = hwpt.domain().translate(report.iova).map(|physical| physical / PAGE_SIZE);
                if here && to == Some(pfn) {
                    report.hwpts.push(id);
                }
            }
        });
        found.into_iter().map(|found| found.read(bytes)).collect()
    }
}

impl Found {
    fn read(mut self, bytes: bool) -> FrameReport {
        if bytes && let Some((pin, page)) = self.pin {
            let mut contents = [0; PAGE_SIZE as usize];
            if pin.read(page * PAGE_SIZE, &mut contents).is_ok() {
                self.report.bytes = Some(contents.iter().map(|b| format!("{b:02x}")).collect());
            }
        }
        self.report
    }
}

impl crate::iopt::Area {
    fn find(&self, context: u64, ioas: u32, start: u64, page: u64, pfn: u64) -> Option<Found> {
        let pages: Range<u64> = self.all_pages(start);
        if !pages.contains(&page) {
            return None;
        }
        let run = self.pages.pinned_around(page);
        let (held, reason) = match &run {
            Some(run) => super::report::held(run.pin.held()),
            None => ("dma-buf".into(), None),
        };
        let report = FrameReport {
            context,
            ioas,
            iova: start + (page * PAGE_SIZE).saturating_sub(self.at()),
            hwpts: Vec::new(),
            source: self.source(page * PAGE_SIZE),
            held,
            reason,
            current: self.pages.frame_now(page).map(|now| now == Some(pfn)),
            age: run.as_ref().map_or(0.0, |run| run.since.elapsed().as_secs_f64()),
            bytes: None,
        };
        let pin = run.map(|run| (run.pin, run.at + (page - run.pages.start)));
        Some(Found { report, pin })
    }
}
