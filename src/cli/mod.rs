//! Flags in, library calls, text out.
//!
//! Each subcommand is a file here with a clap `Args` struct and a `run(args) -> anyhow::Result<()>`. Only
//! [`main`] turns errors into exit codes: 0 done, 1 failed, 2 wrong usage.

pub mod convert;
pub mod inspect;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "phi", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Convert(convert::Args),
    Inspect(inspect::Args),
}

/// The binary's entry point.
pub fn main() -> ExitCode {
    let _ = ctrlc::set_handler(|| {
        crate::fs::remove_unfinished();
        std::process::exit(130);
    });
    let result = match Cli::parse().command {
        Command::Convert(args) => convert::run(args),
        Command::Inspect(args) => inspect::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
