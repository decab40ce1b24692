//! The tokens that are still in the running, and the filters that thin them out.

use std::cmp::Ordering;

/// Why no token can be chosen.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(super) enum Fault {
    #[error("the model's logit for token {0} is NaN; the weights or their quantization are damaged")]
    NotANumber(usize),
    #[error("the model's logit for token {0} is infinite; the weights or their quantization are damaged")]
    Infinite(usize),
    #[error(
        "no token has a logit above minus infinity, so there is none to choose (is everything forbidden by a bias?)"
    )]
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Probability in proportion to the best candidate's, which has 1; valid after [`Candidates::weigh`].
    weight: f64,
}

/// Tokens with their logits; after sorting, best first and of equals the lower id first.
#[derive(Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    /// How many of `list`, from the start, are the best ones in order.
    sorted: usize,
}

/// Logits looked at together.
const CHUNK: usize = 32;

fn better_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

impl Candidates {
    /// The `keep` best tokens (0: all) with a logit above minus infinity, of which there must be one.
    pub fn fill(&mut self, logits: &[f32], keep: usize) -> Result<(), Fault> {
        self.list.clear();
        self.sorted = 0;
        let keep = if keep == 0 { logits.len() } else { keep.min(logits.len()) };
        // Whatever does not exceed the threshold cannot be among the best; it rises whenever the list is thinned out.
        let mut threshold = f32::NEG_INFINITY;
        let limit = keep.saturating_mul(2).max(256);
        for (index, chunk) in logits.chunks(CHUNK).enumerate() {
            if chunk.iter().fold(false, |any, logit| any | (*logit > threshold) | logit.is_nan()) {
                for (id, logit) in (index * CHUNK..).zip(chunk) {
                    if *logit > threshold {
                        // -0 becomes 0, which it is equal to.
                        self.list.push(Candidate { id: id as u32, logit: *logit + 0.0, weight: 0.0 });
                    } else if logit.is_nan() {
                        return Err(Fault::NotANumber(id));
                    }
                }
                if self.list.len() >= limit && keep < logits.len() {
                    self.list.select_nth_unstable_by(keep - 1, better_first);
                    self.list.truncate(keep);
                    threshold =
                        self.list.iter().map(|candidate| candidate.logit).fold(f32::INFINITY, f32::min);
                }
            }
        }
        if self.list.len() > keep {
            self.list.select_nth_unstable_by(keep - 1, better_first);
            self.list.truncate(keep);
        }
        if keep < logits.len() {
            self.sort(self.list.len());
        }
        self.check()
    }

    /// The same from the best tokens and their logits, best first and of equals the lower id first, NaN before all.
    pub fn take(&mut self, best: &[(u32, f32)]) -> Result<(), Fault> {
        self.list.clear();
        if let Some((id, _)) = best.first().filter(|(_, logit)| logit.is_nan()) {
            return Err(Fault::NotANumber(*id as usize));
        }
        let possible = best.iter().filter(|(_, logit)| *logit > f32::NEG_INFINITY);
        self.list.extend(possible.map(|&(id, logit)| Candidate { id, logit, weight: 0.0 }));
        self.sorted = self.list.len();
        self.check()
    }

    /// Whether there is something to choose from.
    fn check(&self) -> Result<(), Fault> {
        match self.list.iter().find(|candidate| candidate.logit == f32::INFINITY) {
            Some(candidate) => Err(Fault::Infinite(candidate.id as usize)),
            None if self.list.is_empty() => Err(Fault::Nothing),
            None => Ok(()),
        }
    }

    /// The best token.
    pub fn best(&self) -> u32 {
        self.list.iter().min_by(|a, b| better_first(a, b)).map_or(0, |candidate| candidate.id)
    }

    /// Puts the `count` best in order at the front.
    fn sort(&mut self, count: usize) {
        let count = count.min(self.list.len());
        if count <= self.sorted {
            return;
        }
        if count < self.list.len() {
            self.list.select_nth_unstable_by(count, better_first);
        }
        self.list[..count].sort_unstable_by(better_first);
        self.sorted = count;
    }

    /// Sets the weights for `logit / temperature` and returns their sum.
    fn weigh(&mut self, temperature: f32) -> f64 {
        let best = self.list.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for candidate in &mut self.list {
            candidate.weight = exp((f64::from(candidate.logit) - f64::from(best)) / f64::from(temperature));
            sum += candidate.weight;
        }
        sum
    }

    /// Keeps the best tokens whose probabilities add up to `p`, at least one.
    pub fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let enough = self.weigh(1.0) * f64::from(p);
        let (mut total, mut kept) = (0.0, 0);
        while kept < self.list.len() {
            if kept >= self.sorted {
                // The few that are enough are seldom more than these: the rest need not be sorted.
                self.sort((kept * 8).max(256));
            }
            total += self.list[kept].weight;
            kept += 1;
            if total >= enough {
                break;
            }
        }
        self.list.truncate(kept);
        self.sorted = self.list.len();
    }

    /// Drops tokens less likely than `p` times the best one's probability.
    pub fn keep_min_p(&mut self, p: f32) {
        if p <= 0.0 {
            return;
        }
        self.weigh(1.0);
        // Above 1 nothing would be left but the best.
        let least = f64::from(p.min(1.0));
        self.list.retain(|candidate| candidate.weight >= least);
        self.sorted = self.sorted.min(self.list.len());
    }

    /// Keeps the tokens whose surprise is nearest the entropy until their probabilities exceed `p`, at least one.
    pub fn keep_typical(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        self.sort(self.list.len());
        let sum = self.weigh(1.0);
        // Surprise and entropy both contain ln(sum), which cancels: only distances from the best logit matter.
        let best = f64::from(self.list[0].logit);
        let distance = |candidate: &Candidate| best - f64::from(candidate.logit);
        let entropy =
            self.list.iter().map(|candidate| candidate.weight / sum * distance(candidate)).sum::<f64>();
        self.list.sort_by(|a, b| (distance(a) - entropy).abs().total_cmp(&(distance(b) - entropy).abs()));
        self.sorted = 0;
        let (mut total, enough) = (0.0, sum * f64::from(p));
        let last = self.list.iter().position(|candidate| {
            total += candidate.weight;
            total > enough
        });
        self.list.truncate(last.map_or(self.list.len(), |last| last + 1));
    }

    /// The token at `unit` (from 0 to 1) of the distribution at `temperature`.
    pub fn draw(&mut self, temperature: f32, unit: f64) -> u32 {
        let target = self.weigh(temperature) * unit;
        let mut total = 0.0;
        let chosen = self.list.iter().find(|candidate| {
            total += candidate.weight;
            total > target
        });
        chosen.map_or_else(|| self.best(), |candidate| candidate.id)
    }
}

/// 1/1, 1/2, … 1/13.
const RECIPROCALS: [f64; 13] = {
    let mut table = [1.0; 13];
    let mut n = 0;
    while n < table.len() {
        table[n] = 1.0 / (n + 1) as f64;
        n += 1;
    }
    table
};

/// e to the power of `x <= 0`, to 1e-15, with additions and multiplications only: the same bits on every machine.
fn exp(x: f64) -> f64 {
    // Half of the smallest normal number's exponent: far below any probability that matters.
    if x < -700.0 {
        return 0.0;
    }
    let steps = (x * std::f64::consts::LOG2_E).round();
    // ln 2 in two parts, of which the first has few enough bits to be multiplied exactly.
    let (high, low) = (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10);
    let rest = (x - steps * high) - steps * low;
    // Taylor: |rest| <= 0.347, so the 14th term is below 1e-17.
    let series = RECIPROCALS.iter().rev().fold(1.0, |sum, reciprocal| 1.0 + rest * reciprocal * sum);
    series * f64::from_bits(((1023 + steps as i64) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.list.iter().map(|candidate| candidate.id).collect()
    }

    #[test]
    fn exp_is_exact_enough() {
        for x in (0..70_000).map(|n| f64::from(n) * -0.01) {
            let expected = x.exp();
            assert!((exp(x) - expected).abs() <= expected * 4e-15, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_best_are_found_in_order_whatever_the_size() {
        let mut state = 1u32;
        let logits: Vec<f32> = (0..50_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Few distinct values, so that there are ties.
                (state >> 20) as f32 / 16.0
            })
            .collect();
        let mut expected: Vec<u32> = (0..50_000).collect();
        expected.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for keep in [1, 2, 40, 255, 256, 257, 1000, 49_999] {
            let mut candidates = Candidates::default();
            candidates.fill(&logits, keep).unwrap();
            assert_eq!(ids(&candidates), expected[..keep], "{keep}");
        }
        for p in [0.0, 0.3, 0.999] {
            let (mut all, mut all_sorted) = (Candidates::default(), Candidates::default());
            all.fill(&logits, 0).unwrap();
            all_sorted.fill(&logits, 49_999).unwrap();
            all.keep_top_p(p);
            all_sorted.keep_top_p(p);
            assert_eq!(ids(&all), ids(&all_sorted), "{p}");
        }
    }

    #[test]
    fn minus_infinity_is_never_a_candidate() {
        let mut candidates = Candidates::default();
        candidates.fill(&[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY], 3).unwrap();
        assert_eq!(ids(&candidates), [1]);
        assert_eq!(candidates.fill(&[f32::NEG_INFINITY; 2], 0), Err(Fault::Nothing));
        assert_eq!(candidates.fill(&[0.0, f32::NAN], 1), Err(Fault::NotANumber(1)));
        assert_eq!(candidates.fill(&[0.0, f32::INFINITY], 1), Err(Fault::Infinite(1)));
    }
}
