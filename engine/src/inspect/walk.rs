//! One IOVA as the hardware sees it: every level's raw entry.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dma::{Extent, FirstStage, Frames as _, GuestTable, WalkFault};
use crate::domain::Domain;
use crate::driver::NO_PASID;
use crate::hwpt::Hwpt;
use crate::ioas::Ioas;
use crate::memory::PAGE_SIZE;
use crate::{Context, Errno};

use super::{FrameReport, PATIENCE};

/// What a device's access at an IOVA meets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WalkReport {
    /// The HWPT that the device (or the PASID) is attached to; nothing when its DMA is blocked.
    pub hwpt: Option<u32>,
    /// The IOAS behind it.
    pub ioas: Option<u32>,
    /// The first stage of a nested HWPT, if it translates, then the table that the IOAS fills.
    pub stages: Vec<StageReport>,
    /// The physical address; nothing when the walk ends without one.
    pub physical: Option<String>,
    /// Whether the page was written to while dirty tracking was on and since the last clear.
    pub dirty: bool,
    /// What the last entry's frame is.
    pub frame: Vec<FrameReport>,
}

/// One table's part of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReport {
    /// `first` or `second`.
    pub stage: String,
    /// The address that it translates.
    #[serde(with = "super::hex")]
    pub input: u64,
    /// The entries met, the top's first.
    pub steps: Vec<StepReport>,
    /// What it comes to, in words.
    pub result: String,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// The entry as it stands in memory.
    #[serde(with = "super::hex")]
    pub entry: u64,
    /// What it says, in words.
    pub text: String,
}

/// What a device is attached to, held by nothing that others would notice.
struct Attached {
    hwpt: u32,
    ioas: Arc<Ioas>,
    domain: Arc<dyn Domain>,
    first_stage: Option<Arc<dyn FirstStage>>,
}

impl Context {
    /// Walks the tables that device `device` (or its `pasid`) is attached to, and sets no bit in
    /// them. `ENOENT` for no such device, `EBUSY` while a command runs for longer than
    /// [`PATIENCE`].
    pub fn walk(&self, device: u32, pasid: u32, iova: u64) -> Result<WalkReport, Errno> {
        let bound = self.device(device)?;
        let mut report = WalkReport {
            hwpt: None,
            ioas: None,
            stages: Vec::new(),
            physical: None,
            dirty: false,
            frame: Vec::new(),
        };
        let attached = |hwpt: &Hwpt| Attached {
            hwpt: hwpt.id(),
            ioas: hwpt.paging().ioas_use().object().clone(),
            domain: hwpt.paging().domain().clone(),
            first_stage: match hwpt {
                Hwpt::Paging(_) => None,
                Hwpt::Nested(nested) => nested.domain().first_stage(),
            },
        };
        let group = bound.device().group();
        let Some(attached) = group.with_attachment(&bound, pasid, attached) else {
            return Ok(report);
        };
        report.hwpt = Some(attached.hwpt);
        report.ioas = Some(attached.ioas.id());
        let mut at = iova;
        if let Some(first_stage) = &attached.first_stage {
            if attached.ioas.lock_within(PATIENCE).is_none() {
                return Err(Errno::EBUSY);
            }
            match attached.first_stage(&**first_stage, iova, &mut report.stages) {
                Some(next) => at = next,
                None => return Ok(report),
            }
        }
        attached.second_stage(at, &mut report);
        if let Some(physical) = attached.domain.translate(at) {
            report.physical = Some(format!("{physical:#x}"));
            let page = at & !(PAGE_SIZE - 1);
            let dirty = &mut report.dirty;
            attached.domain.read_dirty(page, PAGE_SIZE, false, &mut |_, _| *dirty = true);
            report.frame = self.find_frame(physical / PAGE_SIZE, false);
            report.frame.retain(|frame| frame.ioas == attached.ioas.id());
        }
        Ok(report)
    }
}

impl Attached {
    /// Answers where the first stage leads.
    fn first_stage(
        &self,
        first_stage: &dyn FirstStage,
        iova: u64,
        stages: &mut Vec<StageReport>,
    ) -> Option<u64> {
        let mut steps = Vec::new();
        let mut found = Err(WalkFault::NotPresent);
        self.ioas.locked(&mut |look_up| {
            let mut table = Guest { domain: &*self.domain, look_up, steps: &mut steps };
            found = first_stage.walk(iova, false, &mut table);
        });
        let (result, next) = match found {
            Ok(leaf) => {
                let next = leaf.translate(iova);
                let mut text = format!("IOVA {next:#x} of the second stage, ");
                // A String takes all that is written.
                let _ = bitflags::parser::to_writer(&leaf.prot, &mut text);
                (text, Some(next))
            }
            Err(fault) => (words(fault).to_owned(), None),
        };
        stages.push(StageReport { stage: "first".into(), input: iova, steps, result });
        next
    }

    fn second_stage(&self, iova: u64, report: &mut WalkReport) {
        let steps = match self.domain.walker().map(|walk| walk.steps(iova)) {
            None => Err("the IOMMU has no device side".to_owned()),
            Some(steps) => steps.map_err(|fault| words(fault).to_owned()),
        };
        let (steps, result) = match steps {
            Ok(steps) => {
                let result = match steps.last().map(|step| step.kind) {
                    Some(io_pgtable::Kind::Leaf) => "mapped",
                    Some(io_pgtable::Kind::Reserved) => "a reserved entry: the table is corrupt",
                    _ => words(WalkFault::NotPresent),
                };
                (steps, result.to_owned())
            }
            Err(why) => (Vec::new(), why),
        };
        let steps = steps
            .iter()
            .map(|step| StepReport { entry: step.entry, text: step.to_string() })
            .collect();
        report.stages.push(StageReport { stage: "second".into(), input: iova, steps, result });
    }
}

fn words(fault: WalkFault) -> &'static str {
    match fault {
        WalkFault::NotPresent => "not present",
        WalkFault::Permission => "no permission",
        WalkFault::OutOfRange => "outside of what the table can map",
    }
}

/// The guest's table, noting what is loaded from it and writing nothing.
struct Guest<'a, 'b> {
    domain: &'a dyn Domain,
    look_up: &'a crate::dma::LookUp<'b>,
    steps: &'a mut Vec<StepReport>,
}

impl GuestTable for Guest<'_, '_> {
    fn load(&mut self, address: u64) -> Result<u64, WalkFault> {
        if !address.is_multiple_of(8) {
            return Err(WalkFault::OutOfRange);
        }
        self.domain.translate(address).ok_or(WalkFault::NotPresent)?;
        let Extent { first, offset, pin, .. } =
            (self.look_up)(address).ok_or(WalkFault::NotPresent)?;
        let mut bytes = [0; 8];
        pin.read(offset + (address - first), &mut bytes).map_err(|_| WalkFault::NotPresent)?;
        let entry = u64::from_le_bytes(bytes);
        let text = format!("at {address:#x}: {entry:#018x}");
        self.steps.push(StepReport { entry, text });
        Ok(entry)
    }

    fn update(&mut self, _address: u64, _old: u64, _new: u64) -> Result<bool, WalkFault> {
        Ok(true)
    }
}

const _: () = assert!(NO_PASID == 0, "reports call the device itself PASID 0");
