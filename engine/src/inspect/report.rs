//! What a report consists of. Addresses are hexadecimal strings in JSON, lengths and counts numbers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::domain::Prot;
use crate::ioas::Ioas;
use crate::iopt::Area;
use crate::memory::{Held, PAGE_SIZE};

use super::Scope;

/// A name from the engine's own tables.
pub(super) type Name = Cow<'static, str>;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineReport {
    /// The open contexts, oldest first.
    pub contexts: Vec<ContextReport>,
    /// Whom pins are charged to.
    pub payers: Vec<PayerReport>,
    /// What accounting per user counts.
    pub users: Vec<UserReport>,
}

/// A process that pays for pins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PayerReport {
    /// Its thread-group id.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What its limit is compared with: `user`, `process`, or `unlimited` for `CAP_IPC_LOCK`.
    pub mode: Name,
    /// Its `RLIMIT_MEMLOCK` in pages; nothing for none.
    pub limit_pages: Option<u64>,
    /// Pages pinned for it: its `VmPin`.
    pub pinned_pages: u64,
    /// Pages that count against the limit per process.
    pub locked_pages: u64,
}

/// A user that pays for pins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserReport {
    /// Its id.
    pub uid: u32,
    /// Pages that count against the limit per user.
    pub locked_pages: u64,
}

/// One open of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContextReport {
    /// The context's number, as in the log.
    pub id: u64,
    /// The node.
    pub node: Name,
    /// `IOMMU_OPTION_RLIMIT_MODE`: `user` or `process`.
    pub rlimit_mode: Name,
    /// Its objects, by id.
    pub objects: Vec<ObjectReport>,
}

/// One object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectReport {
    /// The id that the user sees.
    pub id: u32,
    /// How many others hold it: `IOMMU_DESTROY` is `EBUSY` until there are none.
    pub users: u32,
    /// What it is.
    #[serde(flatten)]
    pub detail: Detail,
}

/// What an object is, and what of it is worth knowing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Detail {
    /// A kernel user of an IOAS.
    Access {
        /// Where it is attached.
        ioas: Option<u32>,
        /// Whether it pins pages.
        pins: bool,
    },
    /// A bound device.
    Device {
        /// Its name.
        name: String,
        /// The driver of its IOMMU.
        driver: Name,
        /// Its vDEVICE.
        vdevice: Option<u32>,
        /// What it and its PASIDs are attached to.
        attached: Vec<Attachment>,
    },
    /// A fault queue.
    FaultQueue {
        /// Groups that the user has not read.
        unread: usize,
        /// Groups that wait for the user's answer.
        unanswered: usize,
    },
    /// A hardware queue.
    HwQueue {
        /// Its vIOMMU.
        viommu: u32,
        /// `enum iommu_hw_queue_type`.
        queue_type: u32,
        /// Which one of that type.
        index: u32,
    },
    /// A page table that mirrors an IOAS.
    HwptPaging {
        /// The IOAS.
        ioas: u32,
        /// Whether an attach to the IOAS made it.
        automatic: bool,
        /// The driver of the IOMMU.
        driver: Name,
        /// What the user asked for: `nest-parent`, `dirty-tracking`, `pasid`.
        flags: Vec<Name>,
        /// The page sizes of the table.
        #[serde(with = "super::hex")]
        page_sizes: u64,
        /// Whether it has a fault queue.
        faults: bool,
    },
    /// A page table whose first stage is the user's.
    HwptNested {
        /// The HWPT that it stands on.
        parent: u32,
        /// Whether it has a fault queue.
        faults: bool,
    },
    /// An I/O address space.
    Ioas(IoasReport),
    /// The selftest's handle of a mock device.
    SelftestDevice {
        /// The device.
        device: Option<u32>,
    },
    /// A device as a vIOMMU sees it.
    Vdevice {
        /// Its vIOMMU.
        viommu: u32,
        /// The device's name.
        device: String,
        /// What the guest calls it.
        #[serde(with = "super::hex")]
        virt_id: u64,
    },
    /// An event queue.
    Veventq {
        /// Its vIOMMU.
        viommu: u32,
        /// `enum iommu_veventq_type`.
        event_type: u32,
    },
    /// A virtual IOMMU.
    Viommu {
        /// The HWPT that it stands on.
        parent: u32,
    },
}

/// What a device or a PASID of it is attached to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The PASID; 0 for the device itself.
    pub pasid: u32,
    /// The HWPT.
    pub hwpt: u32,
    /// The IOAS behind it.
    pub ioas: u32,
}

/// An IOAS.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct IoasReport {
    /// A command holds it for long: nothing else is known.
    #[serde(default)]
    pub busy: bool,
    /// Tables that mirror it.
    pub domains: usize,
    /// Accesses that are attached to it.
    pub accesses: usize,
    /// IOVAs and lengths must be multiples of this.
    pub alignment: u64,
    /// `IOMMU_OPTION_HUGE_PAGES`.
    pub huge_pages: bool,
    /// How many areas it has.
    pub area_count: usize,
    /// Bytes that are mapped.
    pub mapped: u64,
    /// The areas, as far as they were asked for.
    pub areas: Vec<AreaReport>,
}

/// IOVAs that are mapped by one call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AreaReport {
    /// The first IOVA.
    #[serde(with = "super::hex")]
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Devices may read.
    pub read: bool,
    /// Devices may write.
    pub write: bool,
    /// What is mapped.
    pub source: SourceReport,
    /// How its pages are held. Nothing while no domain and no access needs them.
    pub pins: Vec<PinReport>,
    /// Pins of accesses in it.
    pub access_pins: u32,
    /// Hardware queues in it, which keep it from being unmapped.
    pub hw_queues: u32,
    /// An unmap waits for accesses to let it go.
    pub unmapping: bool,
}

/// Memory that was mapped, and by which call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceReport {
    /// The process ("pid 4711 (qemu)") or the file.
    pub owner: String,
    /// The process that has the memory; nothing for a file.
    pub pid: Option<u32>,
    /// The caller's address, or the offset in the file.
    #[serde(with = "super::hex")]
    pub address: u64,
    /// The call that mapped it first.
    pub call: Name,
    /// The process that made that call.
    pub caller: u32,
    /// Whether this area is an `IOMMU_IOAS_COPY` of what that call mapped.
    pub copied: bool,
    /// How long ago that call was, in seconds.
    pub age: f64,
}

/// Pages of an area that are held in one way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinReport {
    /// The first page's IOVA, or the area's if that begins inside of the page.
    #[serde(with = "super::hex")]
    pub iova: u64,
    /// Pages.
    pub pages: u64,
    /// `pinned`, `shared`, `mapped`, `window`, `copy`.
    pub held: Name,
    /// Why it is mapped only, a window or a copy.
    pub reason: Option<Name>,
    /// Domains (all of an IOAS count once) and accesses that use it.
    pub users: u32,
    /// Since how many seconds.
    pub age: f64,
}

/// How pages are held, in words, and why so.
pub(super) fn held(held: Held) -> (Name, Option<Name>) {
    match held {
        Held::Shared => ("shared".into(), None),
        Held::Mapped(reason) => ("mapped".into(), Some(reason.into())),
        Held::Pinned => ("pinned".into(), None),
        Held::Window(reason) => ("window".into(), Some(reason.into())),
        Held::Copy(reason) => ("copy".into(), Some(reason.into())),
    }
}

impl Ioas {
    /// For [`crate::object::Object::report`].
    pub(crate) fn report_areas(&self, scope: Scope) -> IoasReport {
        let Some(state) = self.lock_within(super::PATIENCE) else {
            return IoasReport { busy: true, ..IoasReport::default() };
        };
        let mut report = state.summary();
        state.each_area(&mut |start, area| {
            report.area_count += 1;
            report.mapped += area.length(start);
            if start >= scope.from && report.areas.len() < scope.areas {
                report.areas.push(area.report(start));
            }
        });
        report
    }
}

impl Area {
    /// Where byte `byte` of its pages comes from.
    pub(super) fn source(&self, byte: u64) -> SourceReport {
        let origin = self.pages.origin();
        SourceReport {
            owner: self.pages.describe(),
            pid: self.pages.pid(),
            address: self.pages.address_of(byte),
            call: origin.call.into(),
            caller: origin.caller,
            copied: self.copied,
            age: origin.at.elapsed().as_secs_f64(),
        }
    }

    fn report(&self, start: u64) -> AreaReport {
        let mut pins = Vec::new();
        self.pages.each_run(self.all_pages(start), &mut |pages, run| {
            let (held, reason) = held(run.pin.held());
            pins.push(PinReport {
                iova: start + (pages.start * PAGE_SIZE).saturating_sub(self.at()),
                pages: pages.end - pages.start,
                held,
                reason,
                users: run.users,
                age: run.since.elapsed().as_secs_f64(),
            });
        });
        AreaReport {
            iova: start,
            length: self.length(start),
            read: self.prot.contains(Prot::READ),
            write: self.prot.contains(Prot::WRITE),
            source: self.source(self.at()),
            pins,
            access_pins: self.accesses,
            hw_queues: self.locks,
            unmapping: self.leaving,
        }
    }
}
