//! What is asked and answered.

use engine::inspect::{EngineReport, FrameReport, WalkReport};
use serde::{Deserialize, Serialize};

use super::warnings::Warning;

/// Most bytes of one DMA.
pub const MOST_BYTES: u64 = 1 << 20;

/// Longest line that is read: a DMA of [`MOST_BYTES`] in hexadecimal, and the rest.
pub const LONGEST_LINE: u64 = 2 * MOST_BYTES + 4096;

/// A requester of DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The context; nothing when only one has such a device.
    #[serde(default)]
    pub context: Option<u64>,
    /// The object id of the device.
    pub device: u32,
    /// The PASID, 0 for none.
    #[serde(default)]
    pub pasid: u32,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// Everything. Answered by [`Reply::Show`].
    Show {
        /// Most areas that are listed of each IOAS.
        areas: usize,
        /// Areas below this IOVA are not listed.
        #[serde(default)]
        from: u64,
    },
    /// What an access at `iova` meets. Answered by [`Reply::Walk`].
    Walk {
        /// Whose access.
        #[serde(flatten)]
        device: Device,
        /// Where.
        iova: u64,
    },
    /// Whose frame this is. Answered by [`Reply::Frames`].
    Pfn {
        /// The frame's number.
        pfn: u64,
        /// Whether its bytes are wanted.
        #[serde(default)]
        bytes: bool,
    },
    /// DMA. Answered by [`Reply::Dma`].
    Dma {
        /// Whose.
        #[serde(flatten)]
        device: Device,
        /// Where.
        iova: u64,
        /// What.
        #[serde(flatten)]
        access: Access,
        /// How long to wait for the answer to a page request, in milliseconds, and then to retry.
        #[serde(default)]
        wait: u64,
    },
}

/// What a device does to memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "access", rename_all = "kebab-case")]
pub enum Access {
    /// Loads.
    Read {
        /// Bytes.
        length: u64,
    },
    /// Stores.
    Write {
        /// What, in hexadecimal.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// An atomic of PCIe.
    Atomic {
        /// 4 or 8 bytes.
        width: u8,
        /// What to do.
        op: AtomicKind,
        /// What to add, or to store.
        operand: u64,
        /// What must be there for a compare and swap.
        #[serde(default)]
        expected: u64,
    },
}

/// The atomics of PCIe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtomicKind {
    /// Adds.
    FetchAdd,
    /// Replaces.
    Swap,
    /// Replaces if what is expected is there.
    CompareSwap,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Everything.
    Show(Box<Show>),
    /// A walk.
    Walk(WalkReport),
    /// The places of a frame.
    Frames(Vec<FrameReport>),
    /// What became of DMA.
    Dma(Dma),
    /// There is no answer, and why.
    Error(String),
}

/// Everything about a daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Show {
    /// The process that was started as `softiommu`.
    pub pid: u32,
    /// What it serves: the program's command line.
    pub program: String,
    /// Since how many seconds.
    pub age: f64,
    /// Contexts, and who pays for pins.
    #[serde(flatten)]
    pub engine: EngineReport,
    /// What it warned of, oldest first.
    pub warnings: Vec<Warning>,
    /// How many older warnings are forgotten.
    pub warnings_lost: u64,
}

/// What became of DMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dma {
    /// What was loaded; of an atomic, what was there before, little-endian. Nothing after a fault.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// Why it ended.
    pub fault: Option<Fault>,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The first IOVA that could not be reached; what comes before it was transferred.
    pub iova: u64,
    /// Whether it was a store or an atomic.
    pub write: bool,
    /// Why, in words.
    pub reason: String,
    /// The page request group that went to the fault queue; nothing when it was aborted.
    pub requested: Option<u32>,
}
