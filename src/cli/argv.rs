//! llama.cpp's long options with a single dash (`-ngl`), which clap does not know.

use std::collections::HashSet;
use std::ffi::OsString;

use clap::{Arg, Command};

/// The options as llama.cpp spells them, and as clap parses them.
pub const SINGLE_DASH: &[(&str, &str)] = &[
    ("-bf", "--binary-file"),
    ("-cnv", "--conversation"),
    ("-co", "--color"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-dev", "--device"),
    ("-fa", "--flash-attn"),
    ("-md", "--model-draft"),
    ("-mg", "--main-gpu"),
    ("-hf", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hfr", "--hf-repo"),
    ("-hft", "--hf-token"),
    ("-ngl", "--gpu-layers"),
    ("-nkvo", "--no-kv-offload"),
    ("-no-cnv", "--no-conversation"),
    ("-np", "--parallel"),
    ("-oe", "--output-err"),
    ("-ofreq", "--output-frequency"),
    ("-ot", "--override-tensor"),
    ("-pg", "--pg"),
    ("-sm", "--split-mode"),
    ("-sp", "--special"),
    ("-st", "--single-turn"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-tb", "--threads-batch"),
    ("-ts", "--tensor-split"),
    ("-ub", "--ubatch-size"),
];

/// Rewrites the options of [`SINGLE_DASH`] (`-ngl 10`, `-ngl=10`) up to a `--`. Values of other options stay as
/// they are, so that `-p -st` is a prompt.
pub fn normalize(arguments: impl IntoIterator<Item = OsString>, cli: &Command) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut out: Vec<OsString> = arguments.next().into_iter().collect();
    let mut arguments = arguments.peekable();
    let mut takes_value = HashSet::new();
    if let Some(command) = arguments.peek().and_then(|name| cli.find_subcommand(name)) {
        takes_value = valued(command);
    }
    while let Some(argument) = arguments.next() {
        let rewritten = rewrite(argument);
        let last = rewritten == "--";
        let value_next = rewritten.to_str().is_some_and(|text| takes_value.contains(text));
        out.push(rewritten);
        if last {
            out.extend(arguments.by_ref());
        } else if value_next {
            out.extend(arguments.next());
        }
    }
    out
}

fn rewrite(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    match (SINGLE_DASH.iter().find(|(dash, _)| *dash == name), value) {
        (Some((_, long)), Some(value)) => format!("{long}={value}").into(),
        (Some((_, long)), None) => long.into(),
        (None, _) => argument,
    }
}

/// Every spelling of the options of `command` that need a value.
fn valued(command: &Command) -> HashSet<String> {
    let needs_value = |arg: &&Arg| {
        !arg.is_positional()
            && arg.get_action().takes_values()
            && arg.get_num_args().is_none_or(|count| count.min_values() > 0)
    };
    let spellings = |arg: &Arg| {
        let shorts = arg.get_short_and_visible_aliases().unwrap_or_default();
        let longs = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
        let shorts = shorts.into_iter().map(|short| format!("-{short}"));
        shorts.chain(longs.map(|long| format!("--{long}"))).collect::<Vec<_>>()
    };
    command.get_arguments().filter(needs_value).flat_map(spellings).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn normalized(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from);
        let out = normalize(arguments, &Cli::command());
        out.into_iter().map(|argument| argument.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn single_dash_options_are_rewritten() {
        assert_eq!(
            normalized("phi run -m a.gguf -ngl 10 -no-cnv -ngl=all"),
            "phi run -m a.gguf --gpu-layers 10 --no-conversation --gpu-layers=all"
        );
    }

    #[test]
    fn values_are_left_alone() {
        assert_eq!(normalized("phi run -p -st -st"), "phi run -p -st --single-turn");
        assert_eq!(normalized("phi run --prompt -cnv"), "phi run --prompt -cnv");
        assert_eq!(normalized("phi run -sys -st"), "phi run --system-prompt -st");
        assert_eq!(normalized("phi run -- -st"), "phi run -- -st");
    }

    #[test]
    fn every_long_form_exists() {
        let cli = Cli::command();
        let arguments: Vec<&Arg> = cli.get_subcommands().flat_map(Command::get_arguments).collect();
        for (dash, long) in SINGLE_DASH {
            let is_meant = |name: &str| *long == format!("--{name}");
            let known = arguments.iter().any(|arg| {
                let aliases = arg.get_visible_aliases().unwrap_or_default();
                arg.get_long().is_some_and(is_meant) || aliases.into_iter().any(is_meant)
            });
            assert!(known, "{dash} leads to {long}, which no command has");
        }
    }
}
