//! Where log lines go: a file, or standard error where `RUST_LOG` asks for it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// What `--log` writes when `RUST_LOG` does not say.
const FILE_DEFAULT: &str = "info,softiommu::ioctl=debug";

/// Sets up logging to `file`, or to standard error. Without `RUST_LOG`, a file gets every ioctl,
/// standard error warnings only.
pub(crate) fn set_up(file: Option<&Path>) -> io::Result<()> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let default = if file.is_some() { FILE_DEFAULT } else { "warn" };
    let text = wanted.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match file {
        Some(path) => {
            subscriber.with_ansi(false).with_writer(Mutex::new(File::create(path)?)).init();
        }
        None => subscriber.with_writer(io::stderr).init(),
    }
    Ok(())
}
