//! `phi tokenize`: the tokens of a text.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::hub::{Found, HubArgs, Model};
use super::input;
use super::model::{self, ModelArgs};
use crate::checkpoint::Checkpoint;
use crate::convert::{self, Conversion};
use crate::gguf::{Gguf, Source};
use crate::quant::recipe::FileType;
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples
  phi tokenize -m phi.gguf -p '<|user|>\\nHello<|end|>\\n'      one token a line: its id and its text
  phi tokenize -m Phi-3.5-mini-instruct -f notes.txt --ids    a checkpoint folder will do, too
  phi tokenize -hf microsoft/phi-4 -p Hello                   a checkpoint on the hub, without its weights
";

/// Show the tokens of a text
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, or a checkpoint folder [default: the small model in the box]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "hf_repo")]
    model: Option<PathBuf>,
    #[command(flatten)]
    input: Input,
    /// Print the ids only, as [1, 2, 3]
    #[arg(long)]
    ids: bool,
    /// Take control tokens in the text as text
    #[arg(long)]
    no_parse_special: bool,
    /// Do not begin with the model's BOS token, even if its tokenizer does
    #[arg(long)]
    no_bos: bool,
    /// Print the number of tokens at the end
    #[arg(long)]
    show_count: bool,
    /// Resolve escapes in files and stdin too
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Take \n, \t, \\, \x41 and the like literally
    #[arg(long)]
    no_escape: bool,
    /// Print {"ids": […], "pieces": […], "count": n}
    #[arg(long, conflicts_with_all = ["ids", "show_count"])]
    json: bool,
    #[command(flatten, next_help_heading = "Hub")]
    hub: HubArgs,
}

/// Where the text comes from.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text; with \n, \t, \", \\ and \xHH as escapes
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read the text from standard input
    #[arg(long)]
    stdin: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = args.input.text()?;
    let tokenizer = tokenizer(&args)?;
    let escapes = if args.input.prompt.is_some() { !args.no_escape } else { args.escape };
    let text = input::escaped(&text, escapes)?;
    let special = if args.no_parse_special { Special::Text } else { Special::Parse };
    let bos = tokenizer.bos_to_add().filter(|_| !args.no_bos);
    let mut ids: Vec<u32> = bos.into_iter().collect();
    ids.extend(tokenizer.encode(&text, special));
    let mut out = BufWriter::new(io::stdout().lock());
    print(&args, &tokenizer, &ids, &mut out)?;
    Ok(out.flush()?)
}

fn print(args: &Args, tokenizer: &Tokenizer, ids: &[u32], out: &mut impl Write) -> io::Result<()> {
    if args.json {
        let pieces: Vec<&str> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
        return writeln!(out, "{}", json!({ "ids": ids, "pieces": pieces, "count": ids.len() }));
    }
    if args.ids {
        writeln!(out, "{ids:?}")?;
    } else {
        for id in ids {
            writeln!(out, "{id:6} -> '{}'", visible(&tokenizer.token_bytes(*id, true)))?;
        }
    }
    if args.show_count {
        writeln!(out, "Total number of tokens: {}", ids.len())?;
    }
    Ok(())
}

/// A token's text on one line: control characters escaped, bytes that are part of a character in hexadecimal.
fn visible(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
            .collect(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}

/// The model's tokenizer; of a checkpoint without touching its weights.
fn tokenizer(args: &Args) -> Result<Tokenizer> {
    match (&args.model, &args.hub.hf_repo) {
        (Some(folder), _) if folder.is_dir() => of_checkpoint(&Checkpoint::open_for_vocabulary(folder)?),
        (Some(path), _) => model::tokenizer(&Gguf::open(path)?),
        (None, Some(spec)) => {
            let found = Found::look_up(&args.hub.access, &spec.repo)?;
            match found.model(spec, args.hub.hf_file.as_deref())? {
                Model::Gguf(path) => model::tokenizer(&Gguf::open(&path)?),
                Model::Checkpoint(files, _) => of_checkpoint(&found.open_vocabulary(&files)?),
            }
        }
        (None, None) => {
            let boxed = ModelArgs { model: None, quantize: FileType::F16, hub: HubArgs::default() };
            model::tokenizer(&*model::open(&boxed)?)
        }
    }
}

fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let options = convert::Options { vocab_only: true, ..Default::default() };
    let conversion = Conversion::plan(checkpoint, &options)?;
    Tokenizer::from_gguf(conversion.metadata()).map_err(|fault| Error::invalid(checkpoint.path(), fault))
}

impl Input {
    /// The text, its last newline included: it is a token, too.
    fn text(&self) -> Result<String> {
        let (bytes, source) = match (&self.prompt, &self.file) {
            (Some(text), _) => return Ok(text.clone()),
            (None, Some(path)) => {
                (std::fs::read(path).map_err(|error| Error::io("read", path, error))?, path.as_path())
            }
            (None, None) => {
                let mut bytes = Vec::new();
                let stdin = Path::new("standard input");
                io::stdin().read_to_end(&mut bytes).map_err(|error| Error::io("read", stdin, error))?;
                (bytes, stdin)
            }
        };
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::invalid(source, format!("byte {at} is no UTF-8; save the text as UTF-8"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn tokens_are_shown_on_one_line() {
        assert_eq!(visible(" né\n\t".as_bytes()), " né\\n\\t");
        assert_eq!(visible(&[0xF0]), "\\xf0");
        assert_eq!(visible(b""), "");
    }
}
