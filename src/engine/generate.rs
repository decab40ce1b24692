//! The generation loop: read the prompt, sample, decide when to stop.
//!
//! Text leaves as a stream of whole characters; end-of-generation tokens and stop strings are never part of it.

mod replay;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub(crate) use replay::Replay;

use super::{Engine, Logits, Sequence, Speculator};
use crate::text::{Detokenizer, Sampler, Tokenizer};
use crate::{Error, Result};

/// A sequence that tokens can be fed to. The engine's own is [`Live`]; tests script theirs.
pub(crate) trait Decoder {
    /// The tokens fed so far.
    fn tokens(&self) -> &[u32];
    /// Tokens that may still be fed.
    fn room(&self) -> usize;
    /// Forgets everything after the first `length` tokens.
    fn truncate(&mut self, length: usize);
    /// Appends `tokens` and returns the logits of the last of them: all, or as many of the `highest` as are enough.
    fn feed(
        &mut self,
        tokens: &[u32],
        highest: Option<usize>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Logits>;
    /// Bytes that feeding one more token reads from memory.
    fn bytes_per_token(&self) -> u64;

    /// Appends `tokens` in one batch and returns the logits of each.
    fn feed_each(&mut self, tokens: &[u32], highest: Option<usize>) -> Result<Vec<Logits>>;
    /// Tokens that may be fed in one batch with the same logits as one by one.
    fn stretch(&self) -> usize;
    /// The time by which passes are measured.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Picks the next token from logits and remembers what was said.
pub(crate) trait Chooser {
    /// How many of the highest logits the next choice depends on; all, if none.
    fn needs(&self) -> Option<usize>;
    /// Fails on logits that no token can be chosen from.
    fn choose(&mut self, logits: &mut Logits) -> Result<u32>;
    fn accept(&mut self, id: u32);
}

/// Turns tokens into text, a stream at a time.
pub(crate) trait Speller {
    /// Whether the model says with this token that it has finished.
    fn is_end(&self, id: u32) -> bool;
    /// The characters that `id` completes.
    fn push(&mut self, id: u32) -> String;
    /// What is left when no more tokens come; starts anew.
    fn finish(&mut self) -> String;
}

/// An engine and one of its sequences.
pub(crate) struct Live<'a> {
    pub engine: &'a Engine,
    pub sequence: Sequence,
}

impl Decoder for Live<'_> {
    fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    fn room(&self) -> usize {
        self.sequence.room()
    }

    fn truncate(&mut self, length: usize) {
        self.sequence.truncate(length);
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        highest: Option<usize>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Logits> {
        let mut rows = self.engine.feed_for(&mut self.sequence, tokens, 1, highest, progress)?;
        Ok(rows.pop().expect("one row was asked for"))
    }

    fn bytes_per_token(&self) -> u64 {
        self.engine.bytes_per_token(&self.sequence)
    }

    fn feed_each(&mut self, tokens: &[u32], highest: Option<usize>) -> Result<Vec<Logits>> {
        let go_on = &mut |_| ControlFlow::Continue(());
        self.engine.feed_for(&mut self.sequence, tokens, tokens.len(), highest, go_on)
    }

    fn stretch(&self) -> usize {
        self.engine.stretch(&self.sequence)
    }
}

impl Chooser for Sampler {
    fn needs(&self) -> Option<usize> {
        Sampler::needs(self)
    }

    fn choose(&mut self, logits: &mut Logits) -> Result<u32> {
        match logits {
            Logits::All(all) => self.sample(all),
            Logits::Highest(highest) => self.sample_highest(highest),
        }
    }

    fn accept(&mut self, id: u32) {
        Sampler::accept(self, id);
    }
}

/// A tokenizer and the incremental detokenizer over it.
pub(crate) struct Spelling<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer<'a>,
}

impl<'a> Spelling<'a> {
    /// For an answer: a text of its own, whose leading space is dropped.
    pub(crate) fn answer(tokenizer: &'a Tokenizer, show_special: bool) -> Self {
        Self { tokenizer, detokenizer: Detokenizer::new(tokenizer, show_special) }
    }

    /// For what goes on where the prompt ends.
    pub(crate) fn continuation(tokenizer: &'a Tokenizer, show_special: bool) -> Self {
        Self { tokenizer, detokenizer: Detokenizer::continuing(tokenizer, show_special) }
    }
}

impl Speller for Spelling<'_> {
    fn is_end(&self, id: u32) -> bool {
        self.tokenizer.is_eog(id)
    }

    fn push(&mut self, id: u32) -> String {
        self.detokenizer.push(id)
    }

    fn finish(&mut self) -> String {
        self.detokenizer.finish()
    }
}

/// What to generate from, and when to stop short of the model's own end.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// The whole sequence to answer, at least one token; what the KV cache already holds of it is not fed again.
    pub prompt: &'a [u32],
    /// Tokens to generate at most; `None` leaves it to the model and the context.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer wherever they appear in it; not part of it.
    pub stops: &'a [String],
}

/// What happens while an answer is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// So many of the `total` new prompt tokens have been read.
    Reading { done: usize, total: usize },
    /// A token was sampled; its text follows when it completes a character and cannot begin a stop string.
    Token(u32),
    /// The next piece of the answer, whole characters, never empty.
    Text(&'a str),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it with this end-of-generation token.
    End(u32),
    /// This one of the stop strings came up.
    String(String),
    /// `max_tokens` were generated.
    Limit,
    /// The context has no room for another token.
    ContextFull,
    /// The event handler asked for it.
    Interrupted,
}

/// An answer and how long it took.
#[derive(Clone, Debug)]
pub struct Answer {
    /// All of the text, also handed out as [`Event::Text`].
    pub text: String,
    pub stop: Stop,
    /// Prompt tokens read now (those already in the KV cache not counted).
    pub prompt_tokens: usize,
    pub prompt_time: Duration,
    /// Tokens sampled, the end-of-generation token not counted.
    pub tokens: usize,
    /// Sampled tokens fed back, the work that `time` measures: the first token comes with the prompt.
    pub steps: usize,
    /// Time from the first sampled token to the end.
    pub time: Duration,
    /// Bytes that the steps read from memory.
    pub bytes: u64,
    /// Tokens that were guessed and checked by the model, and those of them that were right.
    pub drafted: usize,
    pub accepted: usize,
}

/// Generates an answer to `request.prompt` and hands it out through `on_event`, whose `Break` stops it.
///
/// The sequence then holds the prompt and every generated token but the last. `speculator` makes it faster where its
/// guesses are right; the answer is the same. Fails if the prompt is empty or longer than the context.
pub(crate) fn generate(
    decoder: &mut dyn Decoder,
    chooser: &mut dyn Chooser,
    speller: &mut dyn Speller,
    mut speculator: Option<&mut Speculator>,
    request: &Request<'_>,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Answer> {
    let fresh = rewind(decoder, request.prompt)?;
    for &id in fresh {
        chooser.accept(id);
    }

    let start = Instant::now();
    let total = fresh.len();
    if let Some(speculator) = &mut speculator {
        speculator.begin(request.prompt)?;
    }
    let mut reading = |done| on_event(Event::Reading { done, total });
    let read = decoder.feed(fresh, chooser.needs(), &mut reading);
    let mut answer = Answer {
        text: String::new(),
        stop: Stop::Interrupted,
        prompt_tokens: total,
        prompt_time: start.elapsed(),
        tokens: 0,
        steps: 0,
        time: Duration::ZERO,
        bytes: 0,
        drafted: 0,
        accepted: 0,
    };
    let mut ahead = match read {
        Ok(logits) => Ahead::new(vec![logits], &[]),
        Err(Error::Interrupted) => {
            answer.prompt_tokens = decoder.tokens().len() - (request.prompt.len() - total);
            return Ok(answer);
        }
        Err(error) => return Err(error),
    };

    let start = Instant::now();
    let mut gate = StopGate::new(request.stops);
    answer.stop = loop {
        if request.max_tokens.is_some_and(|most| answer.tokens >= most) {
            break Stop::Limit;
        }
        let id = chooser.choose(ahead.logits())?;
        if speller.is_end(id) {
            break Stop::End(id);
        }
        chooser.accept(id);
        answer.tokens += 1;
        if on_event(Event::Token(id)).is_break() {
            break Stop::Interrupted;
        }
        if let Some(stop) = emit(gate.push(&speller.push(id)), &mut answer.text, on_event) {
            break stop;
        }
        if request.max_tokens.is_some_and(|most| answer.tokens >= most) {
            break Stop::Limit;
        }
        if let Some(speculator) = &mut speculator {
            speculator.push(id);
        }
        if ahead.take(id) {
            answer.accepted += 1;
            answer.steps += 1;
            continue;
        }
        ahead.drop_rest(decoder, &mut speculator);
        if decoder.room() == 0 {
            break Stop::ContextFull;
        }
        answer.bytes += decoder.bytes_per_token();
        match Ahead::feed(decoder, id, chooser.needs(), &mut speculator) {
            Ok(next) => ahead = next,
            Err(Error::Interrupted) => break Stop::Interrupted,
            Err(error) => return Err(error),
        }
        answer.drafted += ahead.guess.len();
        answer.steps += 1;
    };
    ahead.drop_rest(decoder, &mut speculator);
    answer.time = start.elapsed();

    let rest = speller.finish();
    if !matches!(answer.stop, Stop::String(_)) {
        let mut released = gate.push(&rest);
        if released.hit.is_none() {
            released.text.push_str(&gate.finish());
        }
        if let Some(stop) = emit(released, &mut answer.text, on_event) {
            answer.stop = stop;
        }
    }
    Ok(answer)
}

/// Logits of the token fed last and of guesses fed after it.
struct Ahead {
    /// Of `1 + guess` tokens.
    logits: Vec<Logits>,
    guess: Vec<u32>,
    /// Tokens of the guess that turned out right.
    right: usize,
}

impl Ahead {
    fn new(logits: Vec<Logits>, guess: &[u32]) -> Self {
        Self { logits, guess: guess.to_vec(), right: 0 }
    }

    /// Feeds `id` and a guess at what follows it.
    fn feed(
        decoder: &mut dyn Decoder,
        id: u32,
        highest: Option<usize>,
        speculator: &mut Option<&mut Speculator>,
    ) -> Result<Self> {
        let Some(speculator) = speculator else {
            let logits = decoder.feed(&[id], highest, &mut |_| ControlFlow::Continue(()))?;
            return Ok(Self::new(vec![logits], &[]));
        };
        let start = decoder.now();
        let most = decoder.stretch().min(decoder.room());
        let guess = speculator.draft(most.saturating_sub(1))?;
        let tokens = [&[id], guess].concat();
        let logits = decoder.feed_each(&tokens, highest)?;
        speculator.fed(decoder.now() - start);
        Ok(Self::new(logits, &tokens[1..]))
    }

    /// The logits that the next token is chosen from.
    fn logits(&mut self) -> &mut Logits {
        &mut self.logits[self.right]
    }

    /// Whether `id` is what was guessed: then its logits are there already.
    fn take(&mut self, id: u32) -> bool {
        let is_right = self.guess.get(self.right) == Some(&id);
        self.right += usize::from(is_right);
        is_right
    }

    /// Takes wrong guesses out of the sequence.
    fn drop_rest(&mut self, decoder: &mut dyn Decoder, speculator: &mut Option<&mut Speculator>) {
        if let Some(speculator) = speculator {
            speculator.verified(self.right);
        }
        let wrong = self.guess.len() - self.right;
        if wrong > 0 {
            decoder.truncate(decoder.tokens().len() - wrong);
        }
        self.guess.truncate(self.right);
    }
}

/// Cuts the sequence back to what it shares with `prompt` and returns the tokens of it that are to be fed: at
/// least the last, whose logits are wanted.
fn rewind<'a>(decoder: &mut dyn Decoder, prompt: &'a [u32]) -> Result<&'a [u32]> {
    let shared = decoder.tokens().iter().zip(prompt).take_while(|(held, new)| held == new).count();
    let shared = shared.min(prompt.len().saturating_sub(1));
    if shared < decoder.tokens().len() {
        decoder.truncate(shared);
    }
    let fresh = &prompt[shared..];
    if fresh.is_empty() {
        return Err(Error::Usage("the prompt is empty: give at least one token to go on from".into()));
    }
    if fresh.len() > decoder.room() {
        return Err(Error::Usage(format!(
            "the prompt has {} tokens, but the context holds {}: give a larger context (-c) or a shorter prompt",
            prompt.len(),
            shared + decoder.room(),
        )));
    }
    Ok(fresh)
}

/// Hands out released text; `Some` if that ends the answer.
fn emit(
    released: Released,
    all: &mut String,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Option<Stop> {
    all.push_str(&released.text);
    let flow = match released.text.as_str() {
        "" => ControlFlow::Continue(()),
        text => on_event(Event::Text(text)),
    };
    match released.hit {
        Some(stop) => Some(Stop::String(stop)),
        None => flow.is_break().then_some(Stop::Interrupted),
    }
}

/// Holds back text that may turn out to be a stop string.
struct StopGate<'a> {
    stops: &'a [String],
    held: String,
}

/// What a [`StopGate`] lets through.
#[derive(Debug, Default, PartialEq)]
struct Released {
    text: String,
    /// The stop string that came up right after `text`.
    hit: Option<String>,
}

impl<'a> StopGate<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text and releases what can no longer be part of a stop string.
    fn push(&mut self, text: &str) -> Released {
        self.held.push_str(text);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        let hit =
            stops.filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min_by_key(|hit| hit.0);
        if let Some((at, stop)) = hit {
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Released { text, hit: Some(stop.clone()) };
        }
        let text = self.held.drain(..self.held.len() - self.unsure()).collect();
        Released { text, hit: None }
    }

    /// Bytes at the end of what is held that a stop string begins with.
    fn unsure(&self) -> usize {
        let held = self.held.as_str();
        let starts = held.char_indices().map(|(at, _)| &held[at..]);
        starts
            .filter(|tail| self.stops.iter().any(|stop| stop.starts_with(tail)))
            .map(str::len)
            .next()
            .unwrap_or(0)
    }

    /// What was held back, when no more text comes.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests;
