//! The softiommu program.

mod cli;
mod cli_doctor;
mod cli_inspect;
mod cli_pages;
mod cli_serve;
mod log;
mod startup;

use clap::Parser;
use cli::{Cli, Command};
use cuse_dev::control::Warnings;

fn main() {
    match Cli::parse().command {
        Command::Run(options) => {
            let log = options.log;
            let warnings = Warnings::default();
            let run = cuse_dev::run::Options {
                command: options.command,
                strict: options.strict,
                quirks: options.quirks,
                via: options.via,
                pfn: options.pfn.into(),
                control: options.control,
                warnings: warnings.clone(),
                ignores_pipe: startup::ignores_pipe(),
            };
            cuse_dev::run::run(run, move || log::set_up(log.as_deref(), Some(warnings)))
        }
        Command::Doctor(options) => std::process::exit(options.examine()),
        Command::Pages(options) => {
            if let Err(error) = options.write() {
                eprintln!("softiommu: {error}");
                std::process::exit(1);
            }
        }
        Command::Serve(options) => {
            let log = options.log.clone();
            let serve: cuse_dev::serve::Options = options.into();
            let warnings = serve.warnings.clone();
            let log = move || log::set_up(log.as_deref(), Some(warnings));
            if let Err(error) = cuse_dev::serve::serve(&serve, log) {
                eprintln!("softiommu: {error}");
                std::process::exit(1);
            }
        }
        Command::Show(options) => end(options.run()),
        Command::Walk(options) => end(options.run()),
        Command::Pfn(options) => end(options.run()),
        Command::Dma(options) => end(options.run()),
    }
}

/// 1 after a DMA that faulted, 2 without an answer.
fn end(answered: Result<bool, String>) {
    match answered {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(why) => {
            eprintln!("softiommu: {why}");
            std::process::exit(2);
        }
    }
}
