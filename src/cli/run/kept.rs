//! `--prompt-cache`: what a run takes from the file, and what it leaves in it.

use std::path::PathBuf;

use super::args::PromptArgs;
use crate::Result;
use crate::engine::Useless;
use crate::engine::generate::Live;

/// The file, and what is to be done with it.
pub struct Kept {
    path: PathBuf,
    /// Save the answers too.
    all: bool,
    read_only: bool,
    /// Tokens that were taken from the file; `None` before it was looked at.
    taken: Option<usize>,
    /// Length of the first prompt in tokens.
    prompt: usize,
}

impl Kept {
    /// By the flags; `None` if there is no such file wanted.
    pub fn new(args: &PromptArgs) -> Option<Self> {
        let path = args.prompt_cache.clone()?;
        let (all, read_only) = (args.prompt_cache_all, args.prompt_cache_ro);
        Some(Self { path, all, read_only, taken: None, prompt: 0 })
    }

    /// Before the first prompt is read: takes what the file has of it.
    pub fn take(&mut self, live: &mut Live<'_>, prompt: &[u32], verbose: bool) -> Result<()> {
        if self.taken.is_some() {
            return Ok(());
        }
        self.prompt = prompt.len();
        let taken = live.engine.restore(&self.path, &mut live.sequence, prompt)?;
        let path = self.path.display();
        match &taken {
            Ok(tokens) if verbose => eprintln!("phi: {tokens} of {} tokens come from {path}", prompt.len()),
            Ok(_) => {}
            // That is how a first run goes.
            Err(Useless::Missing) if !self.read_only => {}
            Err(why) => eprintln!("phi: the prompt is computed without {path}: {why}"),
        }
        self.taken = Some(taken.unwrap_or(0));
        Ok(())
    }

    /// At the end of the run: writes the file, unless nothing in it would be new.
    pub fn leave(&mut self, live: &mut Live<'_>) -> Result<()> {
        let Some(taken) = self.taken.filter(|_| !self.read_only) else { return Ok(()) };
        let held = live.sequence.tokens().len();
        let count = if self.all { held } else { self.prompt.min(held) };
        if count <= taken {
            return Ok(());
        }
        live.engine.save(&self.path, &mut live.sequence, count)
    }
}
