//! `phi split` and `phi merge`: one model in several files, and back.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use crate::fs::human_bytes;
use crate::gguf::{Gguf, TensorInfo};
use crate::quantize::split::{self, Limit, SplitOptions, parse_size};

/// Split a GGUF file into parts, as llama-gguf-split does.
#[derive(clap::Args, Debug)]
pub struct SplitArgs {
    /// The GGUF file to split
    input: PathBuf,
    /// What the parts' names begin with: PREFIX-00001-of-00003.gguf
    prefix: PathBuf,
    /// Tensors in a part at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    split_max_tensors: u32,
    /// Tensor bytes in a part at most: 300M, 2G
    #[arg(long, value_name = "SIZE", conflicts_with = "split_max_tensors", value_parser = parse_size)]
    split_max_size: Option<u64>,
    /// Put no tensors into the first part
    #[arg(long)]
    no_tensor_first_split: bool,
    /// Only show what would be written
    #[arg(long)]
    dry_run: bool,
}

/// Merge the parts of a split model into one GGUF file.
#[derive(clap::Args, Debug)]
pub struct MergeArgs {
    /// Any part of the split model
    input: PathBuf,
    /// The file to write
    output: PathBuf,
}

/// Runs `phi split`.
pub fn split(args: SplitArgs) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let limit = args.split_max_size.map_or(Limit::Tensors(args.split_max_tensors as usize), Limit::Bytes);
    let options = SplitOptions { limit, no_tensor_first: args.no_tensor_first_split };
    if args.dry_run {
        let mut out = std::io::stdout().lock();
        let parts = split::parts(&gguf, options);
        for (index, tensors) in parts.iter().enumerate() {
            let infos = gguf.tensors().get(tensors.clone()).unwrap_or_default();
            let bytes = infos.iter().map(TensorInfo::bytes).sum();
            let path = split::part_path(&args.prefix, index, parts.len());
            writeln!(out, "{}: {} tensors, {}", path.display(), infos.len(), human_bytes(bytes))?;
        }
        return Ok(());
    }
    let bar = bar(&gguf);
    let paths = split::split(&gguf, &args.prefix, options, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let plural = if paths.len() == 1 { "" } else { "s" };
    eprintln!("{} part{plural}, {} tensors", paths.len(), gguf.tensors().len());
    Ok(())
}

/// Runs `phi merge`.
pub fn merge(args: MergeArgs) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let bar = bar(&gguf);
    split::merge(&gguf, &args.output, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let plural = if gguf.files().len() == 1 { "" } else { "s" };
    let (tensors, files) = (gguf.tensors().len(), gguf.files().len());
    eprintln!("{}: {tensors} tensors of {files} part{plural}", args.output.display());
    Ok(())
}

/// A bar on stderr, hidden where that is no terminal.
fn bar(gguf: &Gguf) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bytes = gguf.tensors().iter().map(TensorInfo::bytes).sum();
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
