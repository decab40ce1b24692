//! Flags in, library calls, text out.
//!
//! Each subcommand is a file here with a clap `Args` struct and a `run(args) -> anyhow::Result<()>`. Only
//! [`main`] turns errors into exit codes: 0 done, 1 failed, 2 wrong usage.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Error;
use crate::hub::RepoName;

mod argv;
mod bench;
mod check;
mod convert;
mod hub;
mod imatrix;
mod input;
mod inspect;
mod logits;
mod model;
mod offload;
mod perplexity;
mod progress;
mod quantize;
mod run;
mod signal;
mod split;
mod tokenize;

/// Exit code of a command that failed or was interrupted.
const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
const WRONG_USAGE: u8 = 2;

const HELP: &str = "\
{before-help}{about}

{usage-heading} {usage}

Make a model
  convert     Turn a Hugging Face checkpoint folder into a GGUF file
  quantize    Make a GGUF file smaller: Q4_K_M, Q8_0, …; also straight from a checkpoint folder
  imatrix     Measure on text which weights matter, for quantize
  split       Split a GGUF file into several
  merge       Make one GGUF file of several

Use it
  run         Answer a prompt, or hold a conversation
  tokenize    Show the tokens of a text

Look into it
  perplexity  Measure how well a model predicts: perplexity, divergence, multiple choice
  inspect     Show what a model is made of, which one it is, and the memory that it takes
  check       Look for damage: structure, values, tensors, vocabulary
  bench       Measure how fast models run, beside what the machine could do at best
  logits      Print a model's logits, for comparing implementations

Options
{options}
{after-help}";

const EXAMPLES: &str = "\
Examples
  phi run -p \"What is GGUF?\"                            the small model in the box answers
  phi convert Phi-3.5-mini-instruct --outfile phi.gguf
  phi quantize phi.gguf phi-q4.gguf Q4_K_M
  phi run -m phi-q4.gguf                                a conversation at the terminal
  phi run -m Phi-3.5-mini-instruct -p \"Hello\"           a checkpoint folder, quantized in memory
  phi run -hf microsoft/Phi-3.5-mini-instruct           downloaded from the Hugging Face hub

`phi help COMMAND` has the options of a command. Their names are llama.cpp's where the meaning is the same.
";

/// Convert, quantize and run Microsoft's Phi models.
#[derive(Parser, Debug)]
#[command(name = "phi", version, help_template = HELP, after_help = EXAMPLES, max_term_width = 110)]
#[command(args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Convert(convert::Args),
    Quantize(Box<quantize::Args>),
    Imatrix(Box<imatrix::Args>),
    Split(split::SplitArgs),
    Merge(split::MergeArgs),
    Run(Box<run::Args>),
    Tokenize(tokenize::Args),
    Inspect(inspect::Args),
    Check(check::Args),
    Perplexity(Box<perplexity::Args>),
    Bench(Box<bench::Args>),
    Logits(logits::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Convert(args) => convert::run(args),
            Self::Quantize(args) => quantize::run(*args),
            Self::Imatrix(args) => imatrix::run(*args),
            Self::Split(args) => split::split(args),
            Self::Merge(args) => split::merge(args),
            Self::Run(args) => run::run(*args),
            Self::Tokenize(args) => tokenize::run(args),
            Self::Inspect(args) => inspect::run(args),
            Self::Check(args) => check::run(args),
            Self::Perplexity(args) => perplexity::run(*args),
            Self::Bench(args) => bench::run(*args),
            Self::Logits(args) => logits::run(args),
        }
    }
}

/// The binary's entry point.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut command = Cli::command();
    let arguments = argv::normalize(arguments, &command);
    let parsed =
        command.try_get_matches_from_mut(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = signal::install().map_err(anyhow::Error::from).and_then(|()| cli.command.run());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if signal::leave_first() => report(&error),
        // The thread that a signal woke has said why, and is ending the process.
        Err(_) => loop {
            std::thread::park();
        },
    }
}

/// Prints an error in one line; a reader that went away (`phi inspect … | head`) is none.
fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    let hint = error.downcast_ref().and_then(hub_hint).unwrap_or_default();
    let message = format!("{error:#}{hint}");
    eprintln!("error: {}", message.replace('\n', " "));
    match error.downcast_ref() {
        Some(Error::Usage(_)) => ExitCode::from(WRONG_USAGE),
        _ => ExitCode::from(FAILED),
    }
}

/// What to add where USER/MODEL was given as a file or a folder.
fn hub_hint(error: &Error) -> Option<String> {
    let Error::Io { path, action, cause } = error else { return None };
    let name = path.to_str().filter(|name| !name.ends_with(".gguf") && name.parse::<RepoName>().is_ok())?;
    (cause.kind() == io::ErrorKind::NotFound && action.starts_with("open"))
        .then(|| format!("; for a model of the Hugging Face hub give -hf {name}"))
}

fn is_closed_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_lists_every_command() {
        for command in Cli::command().get_subcommands() {
            let line = format!("\n  {} ", command.get_name());
            assert!(HELP.contains(&line), "{} is missing in HELP", command.get_name());
        }
    }

    #[test]
    fn a_name_of_the_hub_where_a_file_was_expected_is_told() {
        let missing = |path: &str| Error::io("open", path, io::ErrorKind::NotFound.into());
        assert!(hub_hint(&missing("microsoft/phi-4")).unwrap().ends_with("give -hf microsoft/phi-4"));
        for path in ["phi-4", "models/phi.gguf", "/a/b", "../b", "a/b/c"] {
            assert_eq!(hub_hint(&missing(path)), None, "{path}");
        }
        assert_eq!(hub_hint(&Error::Usage("x".into())), None);
    }

    #[test]
    fn exit_codes() {
        let usage = anyhow::Error::from(Error::Usage("x".into()));
        assert_eq!(report(&usage), ExitCode::from(2));
        assert_eq!(report(&usage.context("while y")), ExitCode::from(2));
        assert_eq!(report(&anyhow::anyhow!("x")), ExitCode::from(1));
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(report(&anyhow::Error::from(closed).context("printing")), ExitCode::SUCCESS);
    }
}
