//! Plays programs of iommufd calls against this machine's `/dev/iommu`.

use std::process::ExitCode;

use softiommu_selftests::probe::{BAD_PROGRAM, close_inherited, play};

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() || files[0].starts_with('-') {
        eprintln!(
            "usage: softiommu-probe FILE...\n\
             Plays the program in each FILE and prints what each of its calls answered."
        );
        return ExitCode::from(2);
    }
    close_inherited();
    let mut bad = false;
    for file in &files {
        let program = match std::fs::read_to_string(file) {
            Ok(program) => program,
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        };
        let lines = play(&program);
        bad |= lines.iter().any(|line| line.contains(BAD_PROGRAM));
        for line in lines {
            println!("{line}");
        }
    }
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
