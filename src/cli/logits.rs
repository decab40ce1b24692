//! `phi logits`: a model's logits as text or JSON, for comparing implementations.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::input;
use super::model::{self, CacheType, ModelArgs};
use super::offload::{self, OffloadArgs};
use super::signal::Watch;
use crate::engine::{Engine, EngineOptions};
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

/// Print a model's logits, for comparing implementations
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    /// Take backslashes in -p literally
    #[arg(long)]
    no_escape: bool,
    /// How many positions to report, counted from the end
    #[arg(long, value_name = "N", default_value_t = 1)]
    last: usize,
    /// How many of the highest logits to report for each
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    /// Tokens the context may hold [0: as many as the model was made for]
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    ctx_size: usize,
    /// Threads [default: one a physical core that this process may use]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens computed at once, at most
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    batch_size: usize,
    /// -ctk: element type of the cached keys; f32 is exact, f16 what `phi run` takes
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    cache_type_k: CacheType,
    /// -ctv: element type of the cached values [default: the keys']
    #[arg(long, value_name = "TYPE")]
    cache_type_v: Option<CacheType>,
    #[command(flatten)]
    offload: OffloadArgs,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Input {
    /// A text; control tokens in it are recognized, and nothing is added to it
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids: 1,2,3
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    ids: Option<Vec<u32>>,
    /// A file of token ids, with commas or white space between them; a JSON array will do
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let gguf = model::open(&args.model)?;
    let tokenizer = model::tokenizer(&gguf)?;
    let ids = args.input.ids(&tokenizer, !args.no_escape)?;
    let (keys, values) = (args.cache_type_k, args.cache_type_v.unwrap_or(args.cache_type_k));
    let wanted = args.offload.plan(args.ctx_size, (keys.into(), values.into()))?;
    let options = EngineOptions {
        threads: args.threads,
        cache_type_k: keys.into(),
        cache_type_v: values.into(),
        offload: wanted.offload.clone(),
        batch: args.batch_size.max(1),
        ..EngineOptions::default()
    };
    let engine = offload::engine(gguf, options, &wanted)?;
    check(&ids, &args, &engine)?;
    let positions = positions(&engine, &ids, &args, &tokenizer)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        let report = json!({
            "ids": ids,
            "positions": positions.iter().map(Position::to_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{report}")?;
    } else {
        for position in &positions {
            write!(out, "{position}")?;
        }
    }
    Ok(out.flush()?)
}

impl Input {
    fn ids(&self, tokenizer: &Tokenizer, unescape: bool) -> Result<Vec<u32>> {
        if let Some(text) = &self.prompt {
            return Ok(tokenizer.encode(&input::escaped(text, unescape)?, Special::Parse));
        }
        if let Some(ids) = &self.ids {
            return Ok(ids.clone());
        }
        let path = self.ids_file.as_deref().expect("clap asks for one of the three");
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        parse_ids(&text).map_err(|word| {
            Error::invalid(
                path,
                format!("{word:?} is no token id; expected numbers with commas or white space between"),
            )
        })
    }
}

/// Numbers out of `1,2,3`, `1 2 3` or `[1, 2, 3]`; fails with the first word that is none.
fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let text = text.trim();
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|_| word.to_owned())).collect()
}

fn check(ids: &[u32], args: &Args, engine: &Engine) -> Result<()> {
    let vocabulary = engine.vocab_size();
    if ids.is_empty() {
        return Err(Error::Usage("there are no tokens to compute: the text or list of ids is empty".into()));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(Error::Usage(format!(
            "there is no token {id}: the model has the tokens 0 to {}",
            vocabulary - 1
        )));
    }
    if args.last == 0 || args.last > ids.len() {
        let count = ids.len();
        return Err(Error::Usage(format!(
            "--last {} is not between 1 and the {count} tokens there are",
            args.last
        )));
    }
    Ok(())
}

/// Feeds `ids` and looks at the last positions' logits.
fn positions(engine: &Engine, ids: &[u32], args: &Args, tokenizer: &Tokenizer) -> Result<Vec<Position>> {
    let context = if args.ctx_size == 0 { engine.model_context() } else { args.ctx_size };
    if args.ctx_size > 0 {
        engine.check_context(context)?;
    }
    let mut sequence = engine.sequence(context)?;
    let watch = Watch::start();
    let mut progress = |_| if watch.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let logits = engine.feed(&mut sequence, ids, args.last, &mut progress)?;
    let first = ids.len() - args.last;
    let rows = logits.chunks_exact(engine.vocab_size()).enumerate();
    Ok(rows.map(|(row, logits)| Position::new(first + row, logits, args.top, tokenizer)).collect())
}

/// What is said about the logits at a position.
struct Position {
    /// The position whose token was fed, from 0.
    position: usize,
    l2: f64,
    mean: f64,
    top: Vec<Candidate>,
}

struct Candidate {
    id: u32,
    piece: String,
    logit: f32,
    logprob: f64,
}

impl Position {
    /// `logits` `[vocab]` belong to the token after `position`.
    fn new(position: usize, logits: &[f32], top: usize, tokenizer: &Tokenizer) -> Self {
        let summary = Summary::of(logits, top);
        let candidate = |&id: &u32| {
            let logit = logits[id as usize];
            let piece = tokenizer.piece(id).to_owned();
            Candidate { id, piece, logit, logprob: f64::from(logit) - summary.log_sum }
        };
        let top = summary.top.iter().map(candidate).collect();
        Self { position, l2: summary.l2, mean: summary.mean, top }
    }

    fn to_json(&self) -> Value {
        let candidate = |candidate: &Candidate| {
            json!({
                "id": candidate.id,
                "piece": candidate.piece,
                "logit": candidate.logit,
                "logprob": candidate.logprob,
            })
        };
        let top: Vec<_> = self.top.iter().map(candidate).collect();
        json!({ "position": self.position, "l2": self.l2, "mean": self.mean, "top": top })
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "position {}: l2 {:.4}, mean {:.6}", self.position, self.l2, self.mean)?;
        for candidate in &self.top {
            let Candidate { id, piece, logit, logprob } = candidate;
            writeln!(f, "{id:8} {logit:11.5} {logprob:11.5}  {piece:?}")?;
        }
        Ok(())
    }
}

/// Figures over logits, summed in double precision.
struct Summary {
    l2: f64,
    mean: f64,
    /// Logarithm of the sum of the logits' exponentials.
    log_sum: f64,
    /// Ids of the highest logits, highest first; the lower id of equals.
    top: Vec<u32>,
}

impl Summary {
    fn of(logits: &[f32], top: usize) -> Self {
        let wide = || logits.iter().copied().map(f64::from);
        let highest = wide().fold(f64::NEG_INFINITY, f64::max);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(ids.len());
        if top > 0 && top < ids.len() {
            ids.select_nth_unstable_by(top - 1, order);
        }
        ids.truncate(top);
        ids.sort_unstable_by(order);
        Self {
            l2: wide().map(|logit| logit * logit).sum::<f64>().sqrt(),
            mean: wide().sum::<f64>() / logits.len() as f64,
            log_sum: highest + wide().map(|logit| (logit - highest).exp()).sum::<f64>().ln(),
            top: ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_every_shape() {
        for text in ["1,2,3", "1 2 3\n", "[1, 2,\n3]\n", "1,\t2,,3,"] {
            assert_eq!(parse_ids(text), Ok(vec![1, 2, 3]), "{text:?}");
        }
        assert_eq!(parse_ids("1,-2"), Err("-2".into()));
        assert_eq!(parse_ids("[1,2"), Err("[1".into()));
    }

    #[test]
    fn figures() {
        let summary = Summary::of(&[1.0, 3.0, -2.0, 3.0], 3);
        assert_eq!(summary.top, [1, 3, 0]);
        assert!((summary.l2 - 23f64.sqrt()).abs() < 1e-12);
        assert!((summary.mean - 1.25).abs() < 1e-12);
        let sum: f64 = [1.0f64, 3.0, -2.0, 3.0].iter().map(|logit| (logit - summary.log_sum).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "probabilities sum to one");
        assert_eq!(Summary::of(&[0.5; 4], 0).top.len(), 0);
        assert_eq!(Summary::of(&[0.5; 4], 9).top.len(), 4);
    }
}
