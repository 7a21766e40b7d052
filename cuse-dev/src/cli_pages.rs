//! Manual pages and completions, made of the command line's own definition, so that they cannot
//! say anything else than `--help` does. The package's build runs this (`ci/deb`).

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// Options of `softiommu pages`.
#[derive(Args, Debug)]
pub(crate) struct Pages {
    /// Where `man/` and `completions/` are written
    directory: PathBuf,
}

impl Pages {
    pub(crate) fn write(&self) -> io::Result<()> {
        let man = self.directory.join("man");
        let completions = self.directory.join("completions");
        fs::create_dir_all(&man)?;
        fs::create_dir_all(&completions)?;
        let mut command = visible();
        command.build();
        clap_mangen::generate_to(command.clone(), &man)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            clap_complete::generate_to(shell, &mut command, "softiommu", &completions)?;
        }
        Ok(())
    }
}

/// The command line as people see it: without what is hidden, and without `help COMMAND`, which
/// would get a page for each command once more.
fn visible() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("softiommu")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommands(shown)
}
