//! The softiommu program.

mod cli;
mod cli_doctor;
mod cli_pages;
mod cli_serve;
mod log;
mod startup;

use clap::Parser;
use cli::{Cli, Command};

fn main() {
    match Cli::parse().command {
        Command::Run(options) => {
            let log = options.log;
            let run = cuse_dev::run::Options {
                command: options.command,
                strict: options.strict,
                pfn: options.pfn.into(),
                ignores_pipe: startup::ignores_pipe(),
            };
            cuse_dev::run::run(run, move || log::set_up(log.as_deref()))
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
            if let Err(error) =
                cuse_dev::serve::serve(&options.into(), || log::set_up(log.as_deref()))
            {
                eprintln!("softiommu: {error}");
                std::process::exit(1);
            }
        }
    }
}
