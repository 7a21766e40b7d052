//! Where log lines go: a file, or standard error where `RUST_LOG` asks for it.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Mutex;

use cuse_dev::control::Warnings;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::prelude::*;

/// What `--log` writes when `RUST_LOG` does not say.
const FILE_DEFAULT: &str = "info,softiommu::ioctl=debug";

/// Sets up logging to `file`, or to standard error. Without `RUST_LOG`, a file gets every ioctl,
/// standard error warnings only. `warnings` get all warnings, whatever is logged.
pub(crate) fn set_up(file: Option<&Path>, warnings: Option<Warnings>) -> io::Result<()> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let default = if file.is_some() { FILE_DEFAULT } else { "warn" };
    let text = wanted.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let lines = match file {
        Some(path) => {
            let file = Mutex::new(File::create(path)?);
            layer().with_ansi(false).with_writer(file).with_filter(filter).boxed()
        }
        None => layer()
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .with_filter(filter)
            .boxed(),
    };
    let warnings = warnings.map(|warnings| warnings.with_filter(LevelFilter::WARN));
    tracing_subscriber::registry().with(lines).with(warnings).init();
    Ok(())
}
