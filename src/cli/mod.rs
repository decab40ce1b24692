//! Flags in, library calls, text out.
//!
//! Each subcommand is a file here with a clap `Args` struct and a `run(args) -> anyhow::Result<()>`. Only
//! [`main`] turns errors into exit codes: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

/// The binary's entry point.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
