//! How probable a model thought the tokens that really came.

/// The natural logarithm of the probability that softmax(`logits`) gives to `token`.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_sum_exp(logits)
}

/// The logarithm of the sum of the exponentials of `logits`; terms are single, the sum double precision.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - highest).exp())).sum();
    f64::from(highest) + sum.ln()
}

/// Calls `f` with the number and the content of each row of `rows`, [n, columns], on `threads` threads; results in order.
pub fn map_rows<T: Send>(
    rows: &[f32],
    columns: usize,
    threads: usize,
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> Vec<T> {
    let count = rows.len() / columns;
    let share = count.div_ceil(threads.max(1)).max(1);
    let f = &f;
    let part = move |first: usize, rows: &[f32]| -> Vec<T> {
        rows.chunks_exact(columns).enumerate().map(|(row, values)| f(first + row, values)).collect()
    };
    if count <= share {
        return part(0, rows);
    }
    std::thread::scope(|scope| {
        let shares = rows.chunks(share * columns).enumerate();
        let workers: Vec<_> = shares.map(|(n, rows)| scope.spawn(move || part(n * share, rows))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a row's function panicked")).collect()
    })
}

/// Sums of what a model paid for tokens, negative log probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    sum: f64,
    squares: f64,
    /// Tokens scored.
    pub count: usize,
}

impl Likelihood {
    /// Adds a token of this log probability.
    pub fn add(&mut self, log_probability: f64) {
        self.sum -= log_probability;
        self.squares += log_probability * log_probability;
        self.count += 1;
    }

    /// The exponential of the mean; NaN without tokens.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The mean negative log probability.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The standard error of [`Self::mean`]; `None` where it is not defined.
    pub fn mean_error(&self) -> Option<f64> {
        let variance = self.squares / self.count as f64 - self.mean().powi(2);
        (self.count > 1 && variance > 0.0).then(|| (variance / (self.count - 1) as f64).sqrt())
    }

    /// The standard error of [`Self::perplexity`].
    pub fn perplexity_error(&self) -> Option<f64> {
        self.mean_error().map(|error| error * self.perplexity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [1.0, -2.0, 3.5, 0.0];
        let sum: f64 = (0..4).map(|token| log_probability(&logits, token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2_f64.ln())).abs() < 1e-9);
    }

    #[test]
    fn rows_keep_their_order_on_any_number_of_threads() {
        let rows: Vec<f32> = (0..21).map(|n| n as f32).collect();
        for threads in [0, 1, 2, 3, 7, 50] {
            let got = map_rows(&rows, 3, threads, |n, row| (n, row[0]));
            let expected: Vec<_> = (0..7).map(|n| (n, (3 * n) as f32)).collect();
            assert_eq!(got, expected, "{threads} threads");
        }
    }

    #[test]
    fn perplexity_and_its_error() {
        let mut all = Likelihood::default();
        assert!(all.perplexity().is_nan() && all.perplexity_error().is_none());
        for p in [0.5_f64, 0.25] {
            all.add(p.ln());
        }
        assert!((all.perplexity() - 8_f64.sqrt()).abs() < 1e-12);
        let error = 2_f64.ln() / 2.0;
        assert!((all.mean_error().unwrap() - error).abs() < 1e-12);
    }
}
