//! A model, a sequence and where its answers go.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::{Args, When};
use super::kept::Kept;
use super::prompt::Mode;
use super::timings::Timings;
use crate::cli::input;
use crate::cli::signal::Watch;
use crate::engine::Speculator;
use crate::engine::generate::{
    Answer, Chooser, Decoder, Event, Live, Replay, Request, Spelling, Stop, generate,
};
use crate::engine::shift::Sliding;
use crate::text::{ChatTemplate, Message, Sampler, Special, Tokenizer};
use crate::{Error, Result};

/// All that answering takes.
pub struct Session<'a> {
    live: Live<'a>,
    tokenizer: &'a Tokenizer,
    /// The model's file, for messages.
    source: PathBuf,
    sampler: Sampler,
    /// Says what is to be said, if that is known.
    replay: Option<Replay>,
    speculator: Option<Speculator>,
    kept: Option<Kept>,
    stops: Vec<String>,
    max_tokens: Option<usize>,
    context: usize,
    /// With --context-shift, tokens that stay when the context slides; a negative number keeps the whole prompt.
    slide: Option<i64>,
    show_special: bool,
    display_prompt: bool,
    perf: bool,
    verbose: bool,
    color: bool,
    timings: Timings,
}

impl<'a> Session<'a> {
    /// `load` is the time it took until now.
    pub fn new(
        live: Live<'a>,
        tokenizer: &'a Tokenizer,
        source: PathBuf,
        args: &Args,
        context: usize,
        load: Duration,
    ) -> Result<Self> {
        let vocabulary = live.engine.vocab_size();
        let unescape = !args.prompt.no_escape;
        let stops = args.sampling.reverse_prompt.iter();
        let stops =
            stops.map(|text| Ok(input::escaped(text, unescape)?.into_owned())).collect::<Result<_>>()?;
        Ok(Self {
            sampler: Sampler::new(args.sampling.options(&tokenizer.eog_tokens(), context), vocabulary)?,
            live,
            replay: None,
            speculator: None,
            kept: Kept::new(&args.prompt),
            tokenizer,
            source,
            stops,
            max_tokens: args.sampling.max_tokens(),
            context,
            slide: args.machine.context_shift.then_some(args.machine.keep),
            show_special: args.output.special,
            display_prompt: args.output.display_prompt,
            perf: !args.output.no_perf,
            verbose: args.output.verbose,
            color: match args.output.color {
                When::On => true,
                When::Off => false,
                When::Auto => io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            },
            timings: Timings { load, ..Timings::default() },
        })
    }

    /// Has answers made with the help of guesses.
    pub fn speculate(&mut self, speculator: Speculator) {
        self.speculator = Some(speculator);
    }

    /// Has `answer` said, whatever the model would say.
    pub fn replay(&mut self, answer: &str) -> anyhow::Result<()> {
        let ends = self.tokenizer.eog_tokens();
        let end = *ends.first().context("--replay needs a model that has an end-of-generation token")?;
        self.replay = Some(Replay::new(self.tokenizer.encode(answer, Special::Text), end));
        Ok(())
    }

    /// Whether the conversation is to be in colour.
    pub fn color(&self) -> bool {
        self.color
    }

    /// Says what is about to run.
    pub fn describe(&self, mode: Mode) {
        let mode = match mode {
            Mode::Raw => "the prompt as it is",
            Mode::Once => "one question through the chat template",
            Mode::Conversation => "a conversation",
        };
        eprintln!("phi: {}, context of {} tokens; {mode}", self.source.display(), self.context);
    }

    /// The tokens of a conversation up to where the model is to answer.
    pub fn tokens(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>> {
        let segments =
            template.render(messages, true).map_err(|fault| Error::invalid(&self.source, fault))?;
        Ok(self.tokenizer.encode_segments(&segments))
    }

    /// Answers a lone prompt, the text of `ids`, and reports.
    pub fn once(&mut self, text: &str, ids: &[u32]) -> anyhow::Result<()> {
        if self.display_prompt {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        let answer = self.answer(ids)?;
        if io::stdout().is_terminal() && !answer.text.ends_with('\n') {
            println!();
        }
        self.finish()?;
        match answer.stop {
            Stop::Interrupted => Err(Error::Interrupted.into()),
            _ => Ok(()),
        }
    }

    /// Streams the answer to `ids` to stdout; only what the KV cache lacks of them is read.
    pub fn answer(&mut self, ids: &[u32]) -> anyhow::Result<Answer> {
        if let Some(kept) = &mut self.kept {
            kept.take(&mut self.live, ids, self.verbose)?;
        }
        if self.verbose {
            self.list(ids);
        }
        let watch = Watch::start();
        let mut bar = Reading::default();
        let mut failed = None;
        let answers = ids.last().is_none_or(|&id| self.tokenizer.is_control(id));
        let start = if answers { Spelling::answer } else { Spelling::continuation };
        let mut speller = start(self.tokenizer, self.show_special);
        let request = Request { prompt: ids, max_tokens: self.max_tokens, stops: &self.stops };
        let mut on_event = |event: Event<'_>| {
            match event {
                Event::Reading { done, total } => bar.show(done, total),
                Event::Token(_) => bar.clear(),
                Event::Text(text) => {
                    let mut out = io::stdout().lock();
                    failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
                }
            }
            if failed.is_some() || watch.stopped() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let chooser: &mut dyn Chooser = match &mut self.replay {
            Some(replay) => {
                replay.reset();
                replay
            }
            None => &mut self.sampler,
        };
        let (live, speller) = (&mut self.live, &mut speller);
        let speculator = self.speculator.as_mut();
        let mut dropped = 0;
        let answer = match self.slide {
            None => generate(live, chooser, speller, speculator, &request, &mut on_event),
            Some(keep) => {
                let keep = usize::try_from(keep).unwrap_or(ids.len());
                let mut sliding = Sliding::new(live, keep);
                let answer = generate(&mut sliding, chooser, speller, speculator, &request, &mut on_event);
                dropped = sliding.dropped();
                answer
            }
        };
        bar.clear();
        if dropped > 0 {
            eprintln!(
                "\nphi: the context of {} tokens was full: {dropped} older tokens were dropped",
                self.context
            );
        }
        if let Some(error) = failed {
            return Err(anyhow::Error::from(error).context("cannot write the answer"));
        }
        let answer = answer?;
        self.timings.add(&answer);
        self.explain(&answer);
        Ok(answer)
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.live.truncate(0);
        self.sampler.reset();
    }

    /// Ends the run: prints the timings and keeps what is to be kept.
    pub fn finish(&mut self) -> Result<()> {
        if self.perf {
            eprintln!("\n{}", self.timings);
        }
        match &mut self.kept {
            Some(kept) => kept.leave(&mut self.live),
            None => Ok(()),
        }
    }

    fn explain(&self, answer: &Answer) {
        match &answer.stop {
            Stop::ContextFull => eprintln!(
                "\nphi: the context of {} tokens is full, so the answer ends here; -c sets its size, --context-shift goes on",
                self.context
            ),
            stop if self.verbose => eprintln!("\nphi: ended by {stop:?} after {} tokens", answer.tokens),
            _ => {}
        }
    }

    fn list(&self, ids: &[u32]) {
        let held = self.live.tokens().iter().zip(ids).take_while(|(a, b)| a == b).count();
        eprintln!("phi: {} tokens, {held} of them in the cache", ids.len());
        for &id in &ids[held..] {
            eprintln!("{id:7} {:?}", self.tokenizer.piece(id));
        }
    }
}

/// A progress bar for prompts that take more than one batch; only on a terminal.
#[derive(Default)]
struct Reading(Option<ProgressBar>);

impl Reading {
    fn show(&mut self, done: usize, total: usize) {
        if self.0.is_none() && done < total {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("reading the prompt {wide_bar} {pos}/{len} tokens {eta}");
            bar.set_style(style.expect("the template is well-formed"));
            self.0 = Some(bar);
        }
        if let Some(bar) = &self.0 {
            bar.set_position(done as u64);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
