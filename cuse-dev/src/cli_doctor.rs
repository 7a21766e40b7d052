//! The command line of `softiommu doctor`.

use clap::{Args, ValueEnum};
use cuse_dev::doctor::{self, Purpose, Report};

/// Options of `softiommu doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// What the exit status is about
    #[arg(long = "for", value_name = "COMMAND", default_value = "run")]
    purpose: For,
    /// One JSON object, for scripts
    #[arg(long)]
    json: bool,
}

/// What somebody wants to do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    /// softiommu run.
    Run,
    /// softiommu serve.
    Serve,
}

impl Doctor {
    /// Shows what was found. Answers the exit status.
    pub(crate) fn examine(&self) -> i32 {
        let report = Report::new();
        if self.json {
            println!("{}", doctor::json(&report));
        } else {
            let width = terminal_size::terminal_size().map_or(100, |(width, _)| width.0.into());
            anstream::print!("{}", doctor::text(&report, usize::clamp(width, 40, 100)));
        }
        let purpose = match self.purpose {
            For::Run => Purpose::Run,
            For::Serve => Purpose::Serve,
        };
        i32::from(!report.works(purpose))
    }
}
