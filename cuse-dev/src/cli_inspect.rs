//! The command lines of `softiommu show`, `walk`, `pfn` and `dma`.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use cuse_dev::control::client::Choice;
use cuse_dev::control::protocol::{Access, AtomicKind, Device, Dma, Reply, Request};
use cuse_dev::control::text;

/// Which daemon to ask, and how to answer.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    /// The daemon's control socket; without it, the one that this user has running
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    control: Option<PathBuf>,
    /// The daemon that was started as this process, where several run
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Options of `softiommu show`.
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    ask: Ask,
    /// Most areas that are listed of each IOAS
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    areas: usize,
    /// List areas from this IOVA on
    #[arg(long, value_name = "IOVA", default_value = "0", value_parser = number)]
    from: u64,
}

/// A requester of DMA.
#[derive(Args, Debug)]
pub(crate) struct Who {
    /// The device's object id
    #[arg(long, value_name = "ID")]
    device: u32,
    /// One PASID of it
    #[arg(long, value_name = "PASID", default_value_t = 0)]
    pasid: u32,
    /// The context, where several have such a device
    #[arg(long, value_name = "ID")]
    context: Option<u64>,
}

impl Who {
    fn device(&self) -> Device {
        Device { context: self.context, device: self.device, pasid: self.pasid }
    }
}

/// Options of `softiommu walk`, and of each kind of DMA.
#[derive(Args, Debug)]
pub(crate) struct WalkArgs {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    who: Who,
    /// Where, as 0x… or decimal
    #[arg(value_parser = number)]
    iova: u64,
}

/// Options of `softiommu pfn`.
#[derive(Args, Debug)]
pub(crate) struct PfnArgs {
    #[command(flatten)]
    ask: Ask,
    /// The frame's number, as 0x… or decimal
    #[arg(value_parser = number)]
    pfn: u64,
    /// Show its bytes
    #[arg(long)]
    bytes: bool,
}

/// Options of `softiommu dma`.
#[derive(Args, Debug)]
pub(crate) struct DmaArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Load bytes, as the device would
    Read {
        #[command(flatten)]
        common: Common,
        /// How many bytes
        #[arg(value_parser = number)]
        length: u64,
        /// Write the bytes themselves to standard output
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// Store bytes, as the device would: those of --hex or --text, or standard input
    Write {
        #[command(flatten)]
        common: Common,
        /// The bytes in hexadecimal
        #[arg(long, value_name = "BYTES", conflicts_with = "text")]
        hex: Option<String>,
        /// The bytes of a text
        #[arg(long, value_name = "TEXT")]
        text: Option<String>,
    },
    /// An atomic of PCIe, as the device would make it; shows what was there before
    Atomic {
        #[command(flatten)]
        common: Common,
        /// What to do
        op: Op,
        /// What to add, or to store
        #[arg(value_parser = number)]
        operand: u64,
        /// What must be there (for compare-swap)
        #[arg(value_parser = number, default_value = "0")]
        expected: u64,
        /// Bytes of the operand: 4 or 8
        #[arg(long, value_name = "BYTES", default_value_t = 8)]
        width: u8,
    },
}

#[derive(Args, Debug)]
struct Common {
    #[command(flatten)]
    walk: WalkArgs,
    /// Milliseconds to wait for the answer to a page request, and then to retry
    #[arg(long, value_name = "MS", default_value_t = 0)]
    wait: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Op {
    FetchAdd,
    Swap,
    CompareSwap,
}

impl From<Op> for AtomicKind {
    fn from(op: Op) -> Self {
        match op {
            Op::FetchAdd => Self::FetchAdd,
            Op::Swap => Self::Swap,
            Op::CompareSwap => Self::CompareSwap,
        }
    }
}

/// A number, hexadecimal after 0x.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

impl ShowArgs {
    pub(crate) fn run(self) -> Result<bool, String> {
        self.ask.run(&Request::Show { areas: self.areas, from: self.from }, |_| None)
    }
}

impl WalkArgs {
    pub(crate) fn run(self) -> Result<bool, String> {
        self.ask.run(&Request::Walk { device: self.who.device(), iova: self.iova }, |_| None)
    }
}

impl PfnArgs {
    pub(crate) fn run(self) -> Result<bool, String> {
        self.ask.run(&Request::Pfn { pfn: self.pfn, bytes: self.bytes }, |_| None)
    }
}

impl DmaArgs {
    pub(crate) fn run(self) -> Result<bool, String> {
        match self.what {
            What::Read { common, length, raw } => common.run(Access::Read { length }, raw),
            What::Write { common, hex, text } => {
                let bytes = match (hex, text) {
                    (Some(digits), _) => hex::decode(digits).map_err(|error| error.to_string())?,
                    (_, Some(text)) => text.into_bytes(),
                    (None, None) => {
                        let mut bytes = Vec::new();
                        let read = io::stdin().lock().read_to_end(&mut bytes);
                        read.map_err(|error| format!("standard input: {error}"))?;
                        bytes
                    }
                };
                common.run(Access::Write { bytes }, false)
            }
            What::Atomic { common, op, operand, expected, width } => {
                common.run(Access::Atomic { width, op: op.into(), operand, expected }, false)
            }
        }
    }
}

impl Common {
    fn run(self, access: Access, raw: bool) -> Result<bool, String> {
        let Self { walk: WalkArgs { ask, who, iova }, wait } = self;
        let request = Request::Dma { device: who.device(), iova, access, wait };
        ask.run(&request, |bytes| {
            Some(if raw { bytes.to_vec() } else { text::dump(iova, bytes).into() })
        })
    }
}

impl Ask {
    /// Asks and shows the answer; `loaded` may show bytes that DMA loaded. Answers false after a
    /// fault.
    fn run(
        self,
        request: &Request,
        loaded: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<bool, String> {
        let choice = Choice { path: self.control, pid: self.pid };
        let reply = choice.ask(request).map_err(|error| error.to_string())?;
        let fault = match &reply {
            Reply::Dma(Dma { fault, .. }) => fault.as_ref(),
            _ => None,
        };
        let shown = match &reply {
            _ if self.json => {
                let value = serde_json::to_value(&reply).map_err(|error| error.to_string())?;
                // The answer without the name of its kind.
                let inner = value.as_object().and_then(|object| object.values().next());
                let text = serde_json::to_string_pretty(inner.unwrap_or(&value));
                (text.map_err(|error| error.to_string())? + "\n").into()
            }
            Reply::Dma(Dma { fault: Some(_), .. }) => Vec::new(),
            Reply::Dma(Dma { bytes, .. }) => loaded(bytes).unwrap_or_default(),
            other => text::render(other).into(),
        };
        match io::stdout().lock().write_all(&shown) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(error.to_string());
            }
            _ => {}
        }
        if let Some(fault) = fault {
            eprintln!("softiommu: {}", text::fault_line(fault));
        }
        Ok(fault.is_none())
    }
}
