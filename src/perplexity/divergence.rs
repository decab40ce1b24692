//! How far a model's distributions are from a base model's: Kullback-Leibler divergence and what goes with it.

use std::ops::ControlFlow;

use super::base::{Base, LogProbabilities};
use super::{Chunking, Progress, Setup};
use crate::engine::score::log_sum_exp;
use crate::{Error, Result};

/// Base probabilities below e to this count as none.
const NEGLIGIBLE: f32 = -16.0;

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    pub value: f64,
    pub error: f64,
}

/// What was found at one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Negative log probability of the token that came, by the model and by the base.
    pub cost: f64,
    pub base_cost: f64,
    /// Divergence from the base's distribution, in nats.
    pub divergence: f64,
    /// Probability of the token that came, the base's subtracted.
    pub probability_change: f64,
    /// Whether both think the same token most probable.
    pub same_top: bool,
}

impl Comparison {
    /// Compares the model's `logits` with the base's distribution, where `token` came.
    pub fn new(logits: &[f32], base: &LogProbabilities<'_>, token: u32) -> Self {
        let log_sum = log_sum_exp(logits) as f32;
        let cost = log_sum - logits[token as usize];
        let base_cost = -base.get(token as usize);
        let (mut divergence, mut top, mut base_top) = (0.0, 0, 0);
        let mut base_highest = f32::NEG_INFINITY;
        for (id, (&logit, log_base)) in logits.iter().zip(base.iter()).enumerate() {
            if logit > logits[top] {
                top = id;
            }
            if log_base > base_highest {
                (base_highest, base_top) = (log_base, id);
            }
            if log_base > NEGLIGIBLE {
                divergence += f64::from(log_base.exp() * (log_base - logit + log_sum));
            }
        }
        Self {
            cost: cost.into(),
            base_cost: base_cost.into(),
            divergence,
            probability_change: f64::from((-cost).exp() - (-base_cost).exp()),
            same_top: top == base_top,
        }
    }
}

/// All comparisons so far.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    all: Vec<Comparison>,
}

impl Divergence {
    /// Tokens compared.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    fn mean(&self, of: impl Fn(&Comparison) -> f64) -> Estimate {
        let n = self.all.len() as f64;
        if self.all.is_empty() {
            return Estimate::default();
        }
        let value = self.all.iter().map(&of).sum::<f64>() / n;
        let variance = self.all.iter().map(|one| of(one).powi(2)).sum::<f64>() / n - value * value;
        let error = if variance > 0.0 && n > 10.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        Estimate { value, error }
    }

    /// Mean negative log probability by the model.
    fn cost(&self) -> Estimate {
        self.mean(|one| one.cost)
    }

    fn base_cost(&self) -> Estimate {
        self.mean(|one| one.base_cost)
    }

    /// Covariance of the two means.
    fn covariance(&self) -> f64 {
        let n = self.all.len() as f64;
        if n < 10.0 {
            return 0.0;
        }
        let product = self.all.iter().map(|one| one.cost * one.base_cost).sum::<f64>() / n;
        (product - self.cost().value * self.base_cost().value) / (n - 1.0)
    }

    /// Perplexity by the model.
    pub fn perplexity(&self) -> Estimate {
        exponential(self.cost())
    }

    /// Perplexity by the base.
    pub fn base_perplexity(&self) -> Estimate {
        exponential(self.base_cost())
    }

    /// Correlation of the two negative log probabilities.
    pub fn correlation(&self) -> f64 {
        self.covariance() / (self.cost().error * self.base_cost().error)
    }

    /// Logarithm of the ratio of the perplexities.
    pub fn log_ratio(&self) -> Estimate {
        let (cost, base) = (self.cost(), self.base_cost());
        let variance = cost.error.powi(2) + base.error.powi(2) - 2.0 * self.covariance();
        Estimate { value: cost.value - base.value, error: variance.max(0.0).sqrt() }
    }

    /// Ratio of the perplexities.
    pub fn ratio(&self) -> Estimate {
        exponential(self.log_ratio())
    }

    /// Difference of the perplexities.
    pub fn difference(&self) -> Estimate {
        let (one, base) = (self.perplexity(), self.base_perplexity());
        let covariance = one.value * base.value * self.covariance();
        let variance = one.error.powi(2) + base.error.powi(2) - 2.0 * covariance;
        Estimate { value: one.value - base.value, error: variance.max(0.0).sqrt() }
    }

    /// Mean divergence.
    pub fn divergence(&self) -> Estimate {
        self.mean(|one| one.divergence)
    }

    /// Mean change of the probability of the token that came.
    pub fn probability_change(&self) -> Estimate {
        self.mean(|one| one.probability_change)
    }

    /// Root of the mean squared change of that probability.
    pub fn root_mean_square(&self) -> Estimate {
        let squares = self.mean(|one| one.probability_change.powi(2));
        let value = squares.value.sqrt();
        let error = if value > 0.0 { 0.5 / value * squares.error } else { 0.0 };
        Estimate { value, error }
    }

    /// Share of tokens where both think the same most probable.
    pub fn same_top(&self) -> Estimate {
        let n = self.all.len() as f64;
        let value = self.all.iter().filter(|one| one.same_top).count() as f64 / n;
        Estimate { value, error: (value * (1.0 - value) / (n - 1.0)).sqrt() }
    }

    /// Every token's divergence, ascending.
    pub fn divergences(&self) -> Sorted {
        Sorted::new(self.all.iter().map(|one| one.divergence).collect())
    }

    /// Every token's change of probability, ascending.
    pub fn probability_changes(&self) -> Sorted {
        Sorted::new(self.all.iter().map(|one| one.probability_change).collect())
    }
}

/// The exponential of a figure, with its error carried along.
fn exponential(of: Estimate) -> Estimate {
    Estimate { value: of.value.exp(), error: of.value.exp() * of.error }
}

/// Numbers in ascending order.
pub struct Sorted(Vec<f64>);

impl Sorted {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that a `fraction` (0 to 1) of the numbers lies below, interpolated; 0 without numbers.
    pub fn at(&self, fraction: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let place = fraction.clamp(0.0, 1.0) * last as f64;
        let below = place as usize;
        let value = |index: usize| self.0.get(index.min(last)).copied().unwrap_or(0.0);
        let part = place - below as f64;
        (1.0 - part) * value(below) + part * value(below + 1)
    }
}

/// Runs the base's chunks (at most `most`) through the model and compares.
///
/// # Errors
/// A base with another vocabulary, too little memory; [`Error::Interrupted`] if `progress` breaks.
pub fn compare(
    setup: &Setup<'_>,
    base: &Base,
    most: Option<usize>,
    progress: &mut dyn FnMut(Progress<&Divergence>) -> ControlFlow<()>,
) -> Result<Divergence> {
    let vocabulary = setup.model.vocabulary();
    if base.vocabulary != vocabulary {
        return Err(Error::Usage(format!(
            "the base was made with a vocabulary of {} tokens and this model has {vocabulary}: only models with the \
             same vocabulary can be compared",
            base.vocabulary
        )));
    }
    setup.check(&base.tokens)?;
    let chunking = Chunking::halves(base.context);
    let chunks = chunking.cut(&base.tokens, most.map_or(base.chunks, |most| base.chunks.min(most)));
    let outputs = chunking.outputs();
    let first = outputs.start;
    let score = |chunk: usize, token: usize, logits: &[f32]| {
        Comparison::new(logits, &base.row(chunk, token - first), chunks[chunk][token + 1])
    };
    let mut divergence = Divergence::default();
    let mut number = 0;
    let mut done = |group: Vec<Vec<Comparison>>| {
        for chunk in group {
            divergence.all.extend(chunk);
            number += 1;
            if progress(Progress { done: number, so_far: &divergence }).is_break() {
                return Err(Error::Interrupted);
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    let mut evaluator = setup.evaluator(chunks.len(), chunking.chunk)?;
    evaluator.run_chunks(&chunks, &setup.job(outputs), score, &mut done)?;
    Ok(divergence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_interpolated() {
        let sorted = Sorted::new(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((sorted.at(0.0), sorted.at(1.0), sorted.at(0.5)), (1.0, 10.0, 2.5));
        assert!((sorted.at(0.9) - 7.9).abs() < 1e-12);
        assert_eq!(Sorted::new(Vec::new()).at(0.5), 0.0);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let logits = [0.5_f32, 2.0, -1.0, 0.0];
        let row = super::super::base::encode_row(&logits);
        let same = Comparison::new(&logits, &LogProbabilities::new(&row, 4), 1);
        assert!(same.divergence.abs() < 1e-4 && same.probability_change.abs() < 1e-4 && same.same_top);
        let other = Comparison::new(&[2.0, 0.5, -1.0, 0.0], &LogProbabilities::new(&row, 4), 1);
        assert!(other.divergence > 0.1 && other.probability_change < -0.1 && !other.same_top);
        let of = |values: &[Comparison]| Divergence { all: values.to_vec() };
        let all = of(&[same; 20]);
        assert!((all.ratio().value - 1.0).abs() < 1e-4);
        assert_eq!(all.same_top(), Estimate { value: 1.0, error: 0.0 });
        assert_eq!(of(&[same, other]).same_top().value, 0.5);
    }
}
