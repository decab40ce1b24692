//! Measuring: how fast a model runs here, and how fast the machine would let it.

mod probe;
mod synthetic;

use std::time::{Duration, Instant};

pub use probe::Limits;
pub use synthetic::{SHAPES, Shape, synthetic};

use crate::Result;
use crate::engine::{Cost, Engine, Sequence};

/// What is measured: a prompt, generation, or one after the other, at some depth of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Prompt tokens to read.
    pub prompt: usize,
    /// Tokens to generate.
    pub generate: usize,
    /// Tokens that are in the context before; reading them is not measured.
    pub depth: usize,
    /// Sequences of all that, generated side by side.
    pub parallel: usize,
}

impl Test {
    /// Tokens that a repetition computes.
    pub fn tokens(&self) -> usize {
        (self.prompt + self.generate) * self.parallel
    }

    /// Tokens that each sequence comes to hold.
    pub fn context(&self) -> usize {
        self.depth + self.prompt + self.generate
    }

    /// The forward passes of a repetition, as [`Engine::cost`] wants them.
    fn passes(&self, batch: usize) -> Vec<Vec<(usize, usize)>> {
        let mut passes = Vec::new();
        let end = self.depth + self.prompt;
        for _ in 0..self.parallel {
            let starts = (self.depth..end).step_by(batch);
            passes.extend(starts.map(|start| vec![(start, batch.min(end - start))]));
        }
        passes.extend((end..end + self.generate).map(|position| vec![(position, 1); self.parallel]));
        passes
    }
}

/// How long the repetitions of a test took, and what they did.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub times: Vec<Duration>,
    /// Work of one repetition.
    pub cost: Cost,
    /// The time that one repetition would take if it met the machine's limits in every pass.
    pub least: Duration,
}

/// Runs `test` `repetitions` times, after an unmeasured first time if `warm_up`; `progress` is told the number of
/// each repetition before it starts, the unmeasured one being 0.
///
/// # Errors
/// A test beyond the model's context, too little memory.
pub fn measure(
    engine: &Engine,
    test: &Test,
    repetitions: usize,
    warm_up: bool,
    limits: &Limits,
    progress: &mut dyn FnMut(usize),
) -> Result<Measurement> {
    engine.check_context(test.context())?;
    let mut tokens = Tokens::new(engine.vocab_size());
    let mut sequences =
        (0..test.parallel).map(|_| engine.sequence(test.context())).collect::<Result<Vec<_>>>()?;
    for sequence in sequences.iter_mut().filter(|_| test.depth > 0) {
        feed(engine, sequence, &tokens.take(test.depth))?;
    }
    let mut times = Vec::with_capacity(repetitions);
    for repetition in usize::from(!warm_up)..=repetitions {
        progress(repetition);
        for sequence in &mut sequences {
            rewind(engine, sequence, test, &mut tokens)?;
        }
        let warming = repetition == 0;
        // One token is enough to warm generation up.
        let steps = if warming { test.generate.min(1) } else { test.generate };
        let start = Instant::now();
        for sequence in sequences.iter_mut().filter(|_| test.prompt > 0) {
            feed(engine, sequence, &tokens.take(test.prompt))?;
        }
        for _ in 0..steps {
            let ids = tokens.take(test.parallel);
            let mut batch: Vec<_> = sequences.iter_mut().zip(ids.chunks(1)).collect();
            engine.step(&mut batch)?;
        }
        if !warming {
            times.push(start.elapsed());
        }
    }
    let costs: Vec<Cost> = test.passes(engine.batch()).iter().map(|parts| engine.cost(parts)).collect();
    Ok(Measurement {
        times,
        cost: costs.iter().fold(Cost::default(), |sum, &cost| sum + cost),
        least: costs.iter().map(|cost| limits.least_time(cost)).sum(),
    })
}

/// Brings a sequence back to the test's depth.
fn rewind(engine: &Engine, sequence: &mut Sequence, test: &Test, tokens: &mut Tokens) -> Result<()> {
    sequence.truncate(test.depth);
    // Where the test's first tokens cross the LongRoPE limit, or going back crossed it, the cache is computed anew
    // now: what is to be measured is speed at a depth, not the one time that a conversation gets there.
    let first = if test.prompt > 0 { test.prompt } else { 1 };
    if engine.recomputes(sequence, first) {
        feed(engine, sequence, &tokens.take(first))?;
        sequence.truncate(test.depth);
    }
    Ok(())
}

fn feed(engine: &Engine, sequence: &mut Sequence, ids: &[u32]) -> Result<()> {
    engine.feed(sequence, ids, 1, &mut |_| std::ops::ControlFlow::Continue(())).map(|_| ())
}

/// Token ids without end, the same ones each time.
struct Tokens {
    random: Random,
    vocabulary: u64,
}

impl Tokens {
    fn new(vocabulary: usize) -> Self {
        Self { random: Random(0x9e37_79b9_7f4a_7c15), vocabulary: vocabulary as u64 }
    }

    fn take(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| (self.random.next() % self.vocabulary) as u32).collect()
    }
}

/// Marsaglia's xorshift64*: good enough to look random to a cache.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_those_that_the_engine_makes() {
        let test = Test { prompt: 5, generate: 2, depth: 3, parallel: 2 };
        let prompt = [vec![(3, 4)], vec![(7, 1)]];
        let generation = [vec![(8, 1); 2], vec![(9, 1); 2]];
        assert_eq!(test.passes(4), [&prompt[..], &prompt[..], &generation[..]].concat());
        assert_eq!((test.tokens(), test.context()), (14, 10));
    }
}
