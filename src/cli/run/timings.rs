//! What a run says at its end: how long it took, how fast it was.

use std::fmt;
use std::time::Duration;

use crate::engine::generate::Answer;

/// Sums over the answers of a run.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// From the start of the process until the model was ready.
    pub load: Duration,
    pub prompt_tokens: usize,
    pub prompt_time: Duration,
    /// Tokens generated.
    pub tokens: usize,
    /// Generated tokens that were fed back, which `time` measures.
    pub steps: usize,
    pub time: Duration,
    /// Bytes that the steps read from memory.
    pub bytes: u64,
    /// Tokens that were guessed and checked, and those of them that were right.
    pub drafted: usize,
    pub accepted: usize,
}

impl Timings {
    /// Adds an answer's figures.
    pub fn add(&mut self, answer: &Answer) {
        self.prompt_tokens += answer.prompt_tokens;
        self.prompt_time += answer.prompt_time;
        self.tokens += answer.tokens;
        self.steps += answer.steps;
        self.time += answer.time;
        self.bytes += answer.bytes;
        self.drafted += answer.drafted;
        self.accepted += answer.accepted;
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "load     {:8.2} s", self.load.as_secs_f64())?;
        write!(f, "prompt   {:8.2} s  {:6} tokens", self.prompt_time.as_secs_f64(), self.prompt_tokens)?;
        if let Some(rate) = rate(self.prompt_tokens as f64, self.prompt_time) {
            write!(f, "  {rate:8.2} tokens/s")?;
        }
        write!(f, "\ngenerate {:8.2} s  {:6} tokens", self.time.as_secs_f64(), self.tokens)?;
        if let Some(rate) = rate(self.steps as f64, self.time).filter(|_| self.steps > 0) {
            write!(f, "  {rate:8.2} tokens/s")?;
        }
        if let Some(rate) = rate(self.bytes as f64 / 1e9, self.time).filter(|_| self.steps > 0) {
            write!(f, "  {rate:6.2} GB/s")?;
        }
        if self.drafted > 0 {
            let share = 100.0 * self.accepted as f64 / self.drafted as f64;
            write!(
                f,
                "\nguessed              {:6} tokens  {:8} right ({share:.1} %)",
                self.drafted, self.accepted
            )?;
        }
        Ok(())
    }
}

fn rate(amount: f64, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| amount / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_steps() {
        let timings = Timings {
            load: Duration::from_millis(1500),
            prompt_tokens: 100,
            prompt_time: Duration::from_secs(2),
            tokens: 11,
            steps: 10,
            time: Duration::from_secs(1),
            bytes: 23_400_000_000,
            drafted: 8,
            accepted: 5,
        };
        let text = timings.to_string();
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "load 1.50 s",
                "prompt 2.00 s 100 tokens 50.00 tokens/s",
                "generate 1.00 s 11 tokens 10.00 tokens/s 23.40 GB/s",
                "guessed 8 tokens 5 right (62.5 %)",
            ]
        );
    }

    #[test]
    fn nothing_generated_has_no_rate() {
        let text = Timings::default().to_string();
        assert!(!text.contains("/s") && !text.contains("NaN"), "{text}");
    }
}
