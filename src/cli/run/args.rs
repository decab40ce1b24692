//! The flags of `phi run`, named as in llama.cpp.

use std::path::PathBuf;

use clap::{ArgAction, ValueEnum};

use crate::backend::cpu::Cpu;
use crate::cli::model::{CacheType, ModelArgs, NumaArg};
use crate::cli::offload::OffloadArgs;
use crate::text::SamplerOptions;

const EXAMPLES: &str = "\
A prompt that holds the model's control tokens (<|user|> …) runs as it is; any other goes through
the model's chat template. Without a prompt, and at a terminal, it is a conversation.

stdout carries the answer and nothing else. Ctrl-C stops an answer, a second one leaves. Exit codes:
0 done, 1 failed or interrupted, 2 wrong usage.

Examples
  phi run -m phi-q4.gguf -p \"What is GGUF?\"     one question, one answer
  phi run -m phi-q4.gguf                        a conversation; /help lists what to type there
  git diff | phi run -m phi-q4.gguf -sys \"Describe this change in a sentence\"
  phi run -m phi-q4.gguf --temp 0 -p \"<|user|>\\nCan you introduce .NET<|end|>\\n<|assistant|>\\n\"
";

/// Answer a prompt, or hold a conversation
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub offload: OffloadArgs,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    /// The prompt; with \n, \t, \", \\ and \xHH as escapes
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file with the prompt, taken as it is unless -e is given [without -p and -f: stdin, when piped]
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// -sys: what the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system_prompt: Option<String>,
    /// -sysf: a file with the system prompt
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    pub system_prompt_file: Option<PathBuf>,
    /// Resolve escapes in files and stdin too
    #[arg(short, long, overrides_with = "no_escape")]
    pub escape: bool,
    /// Take backslashes in -p, -sys and -r literally
    #[arg(long, overrides_with = "escape")]
    pub no_escape: bool,
    /// -cnv: a conversation; its first question may be -p. From a pipe: a question a line
    #[arg(long, overrides_with = "no_conversation")]
    pub conversation: bool,
    /// -no-cnv: no chat template, the model continues the prompt
    #[arg(long, overrides_with = "conversation")]
    pub no_conversation: bool,
    /// -st: leave after one question and its answer
    #[arg(long)]
    pub single_turn: bool,
    /// A file that keeps the computed prompt: a later run takes from it what its prompt begins with too
    #[arg(long, value_name = "FILE")]
    pub prompt_cache: Option<PathBuf>,
    /// Keep the answers in the prompt cache too
    #[arg(long, requires = "prompt_cache", conflicts_with = "prompt_cache_ro")]
    pub prompt_cache_all: bool,
    /// Use the prompt cache, but do not change it
    #[arg(long, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Tokens the context may hold; memory is taken as it fills [0: as many as the model was made for]
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx_size: usize,
    /// Go on when the context is full: its first --keep tokens stay, half of the others are dropped and what is left is
    /// read again
    #[arg(long, overrides_with = "no_context_shift")]
    pub context_shift: bool,
    /// End an answer when the context is full, as is the default
    #[arg(long, overrides_with = "context_shift")]
    pub no_context_shift: bool,
    /// Tokens at the start that stay when the context slides [-1: all of the prompt]
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub keep: i64,
    /// Threads [default: one a physical core that this process may use]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<i64>,
    /// -tb: threads for reading prompts [default: as many as -t]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads_batch: Option<i64>,
    /// Spread threads and memory over the memory nodes of the machine, or keep to one
    #[arg(long, value_name = "HOW")]
    pub numa: Option<NumaArg>,
    /// Prompt tokens read at once, at most
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub batch_size: usize,
    /// -ub: prompt tokens computed at once, at most [default: 512, with AMX 1024]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    ubatch_size: Option<usize>,
    /// -ctk: element type of the cached keys
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_k: CacheType,
    /// -ctv: element type of the cached values
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub cache_type_v: CacheType,
    /// -fa: accepted; attention never stores its score matrix here
    #[arg(long, value_name = "on|off|auto", num_args = 0..=1, default_missing_value = "on")]
    #[arg(value_parser = ["on", "off", "auto"])]
    pub flash_attn: Option<String>,
}

/// Guessing ahead: the answer is the same, only faster where guesses are right.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Speculation (the same answer, sooner where guesses are right)")]
pub struct SpeculationArgs {
    /// Guess that what was said before after the last few tokens is said again
    #[arg(long, conflicts_with = "model_draft")]
    pub lookup: bool,
    /// The most tokens that --lookup looks for
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub lookup_ngram_max: usize,
    /// The fewest tokens that --lookup looks for
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub lookup_ngram_min: usize,
    /// -md: a smaller model of the same vocabulary that guesses
    #[arg(long, value_name = "MODEL")]
    pub model_draft: Option<PathBuf>,
    /// Tokens to guess at once, at most; fewer where measured times say that it pays
    #[arg(long, visible_aliases = ["draft", "draft-n"], value_name = "N", default_value_t = 16)]
    pub draft_max: usize,
    /// Do not have the model check fewer guessed tokens than this
    #[arg(long, visible_alias = "draft-n-min", value_name = "N", default_value_t = 0)]
    pub draft_min: usize,
    /// The draft model guesses no token that it thinks less probable than this
    #[arg(long, value_name = "P", default_value_t = 0.75)]
    pub draft_p_min: f32,
    /// Say what FILE has instead of the model's own answer: how much time guesses save on such an answer
    #[arg(long, value_name = "FILE", conflicts_with = "conversation")]
    pub replay: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Tokens to generate at most [-1: no limit, -2: until the context is full]
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", default_value_t = -1)]
    #[arg(allow_negative_numbers = true)]
    pub predict: i64,
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, visible_alias = "temperature", value_name = "T", default_value_t = 0.8)]
    #[arg(allow_negative_numbers = true)]
    pub temp: f32,
    /// Keep the K likeliest tokens [0: all]
    #[arg(long, value_name = "K", default_value_t = 40, allow_negative_numbers = true)]
    pub top_k: i64,
    /// Keep the likeliest tokens that together have this probability [1: all]
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Keep tokens at least this probable, relative to the likeliest [0: all]
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Locally typical sampling [1: off]
    #[arg(long, visible_alias = "typical-p", value_name = "P", default_value_t = 1.0)]
    pub typical: f32,
    /// Tokens the three penalties look back on [0: none, -1: the whole context]
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    pub repeat_last_n: i64,
    /// Divide the logits of tokens that were used [1: off]
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Lower the logits of tokens that were used [0: off]
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Lower the logits of tokens once for each use [0: off]
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Random seed [-1: another one each time]
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub seed: i64,
    /// Add BIAS to the logit of a token: 15043+1, 15043-0.5, 15043-inf
    #[arg(short, long, value_name = "ID(+/-)BIAS", value_parser = logit_bias, action = ArgAction::Append)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Never end by the model's own choice
    #[arg(long)]
    pub ignore_eos: bool,
    /// End the answer where this text comes up; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, action = ArgAction::Append)]
    pub reverse_prompt: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print the prompt before the answer
    #[arg(long, overrides_with = "no_display_prompt")]
    pub display_prompt: bool,
    /// Print the answer alone, as is the default
    #[arg(long, overrides_with = "display_prompt")]
    pub no_display_prompt: bool,
    /// -sp: print control tokens too
    #[arg(long)]
    pub special: bool,
    /// -co: colour in a conversation
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_value = "auto", default_missing_value = "on")]
    pub color: When,
    /// Do not print the timings on stderr
    #[arg(long, visible_alias = "no-show-timings", overrides_with = "perf")]
    pub no_perf: bool,
    /// Print the timings, as is the default
    #[arg(long, visible_alias = "show-timings", overrides_with = "no_perf")]
    pub perf: bool,
    /// Say more on stderr: the model, the tokens of the prompt, why an answer ended
    #[arg(short, long, visible_alias = "verbose-prompt")]
    pub verbose: bool,
}

/// on, off, or on at a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    On,
    Off,
    Auto,
}

impl MachineArgs {
    /// Threads asked for; like llama.cpp, 0 and less mean as many as there are.
    pub fn threads(&self) -> Option<usize> {
        positive(self.threads)
    }

    /// Threads asked for to read prompts.
    pub fn threads_batch(&self) -> Option<usize> {
        positive(self.threads_batch)
    }

    /// Prompt tokens computed at once, at most.
    pub fn batch(&self) -> usize {
        self.batch_size.min(self.ubatch_size.unwrap_or_else(Cpu::tokens_at_once))
    }
}

fn positive(count: Option<i64>) -> Option<usize> {
    count.and_then(|count| usize::try_from(count).ok()).filter(|&count| count > 0)
}

impl SamplingArgs {
    /// Tokens to generate at most.
    pub fn max_tokens(&self) -> Option<usize> {
        usize::try_from(self.predict).ok()
    }

    /// What the sampler is to do; `ends` are the model's end-of-generation tokens, `context` its size in tokens.
    pub fn options(&self, ends: &[u32], context: usize) -> SamplerOptions {
        let mut logit_bias = self.logit_bias.clone();
        if self.ignore_eos {
            logit_bias.extend(ends.iter().map(|&id| (id, f32::NEG_INFINITY)));
        }
        SamplerOptions {
            temperature: self.temp.max(0.0),
            top_k: usize::try_from(self.top_k).unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: usize::try_from(self.repeat_last_n).unwrap_or(context),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: u32::try_from(self.seed).ok().filter(|&seed| seed != u32::MAX),
            logit_bias,
        }
    }
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "expected a number above 0".into())
}

fn logit_bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let wrong = || "expected a token id, + or -, and a number: 15043+1, 15043-inf".to_string();
    let at = text.find(['+', '-']).ok_or_else(wrong)?;
    let (id, bias) = text.split_at(at);
    let id = id.trim().parse().map_err(|_| wrong())?;
    let bias: f32 = bias.parse().map_err(|_| wrong())?;
    if bias.is_nan() { Err(wrong()) } else { Ok((id, bias)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_biases() {
        assert_eq!(logit_bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(logit_bias("15043-0.5"), Ok((15043, -0.5)));
        assert_eq!(logit_bias("0-inf"), Ok((0, f32::NEG_INFINITY)));
        for wrong in ["", "15043", "15043+", "+1", "x-1", "1-nan", "-1-1"] {
            assert!(logit_bias(wrong).is_err(), "{wrong}");
        }
    }
}
