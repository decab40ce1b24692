//! How far to guess: as far as the odds and the measured times say that it pays.

use std::time::Duration;

use super::SORTS;

/// Odds of a guess before anything is known: just enough for a short one to be tried.
const FIRST_ODDS: f64 = 0.4;
/// Time of one more token in a pass, relative to the pass with one, before it was measured.
const FIRST_EXTRA: f64 = 0.3;
/// Weight of a new observation in a moving average.
const WEIGHT: f64 = 0.125;
/// Passes after which one is made without a guess, so that what is compared with stays current.
const RECHECK: usize = 64;
/// Passes after which a guess that is not free is tried although it did not pay before.
const RETRY: usize = 32;
/// The least gain that is worth the trouble.
const GAIN: f64 = 1.02;

/// What was learnt about guesses.
#[derive(Debug)]
pub struct Pace {
    /// Seconds of a pass of one token.
    plain: Option<f64>,
    /// Seconds that each further token adds, its guessing included.
    extra: Option<f64>,
    /// By sort of guess: how often a guessed token is right if those before it are.
    odds: [f64; SORTS],
    /// Passes since the last without a guess, and since the last with one.
    since_plain: usize,
    since_guess: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { plain: None, extra: None, odds: [FIRST_ODDS; SORTS], since_plain: 0, since_guess: 0 }
    }
}

impl Pace {
    /// Tokens to guess now, at most `most`.
    pub fn length(&self, sort: usize, most: usize, free: bool) -> usize {
        let Some(plain) = self.plain else { return 0 };
        if self.since_plain >= RECHECK {
            return 0;
        }
        let extra = self.extra.map_or(FIRST_EXTRA, |extra| extra / plain);
        let odds = self.odds[sort.min(SORTS - 1)];
        let (mut best, mut length) = (GAIN, 0);
        // Tokens that a pass is expected to give: 1 + p + p² + …
        let (mut tokens, mut chance) = (1.0, 1.0);
        for guessed in 1..=most {
            chance *= odds;
            tokens += chance;
            let gain = tokens / (1.0 + extra * guessed as f64);
            if gain > best {
                (best, length) = (gain, guessed);
            }
        }
        if length == 0 && !free && self.since_guess >= RETRY { most.min(1) } else { length }
    }

    /// A pass with `guessed` tokens took `time`.
    pub fn fed(&mut self, guessed: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if guessed == 0 {
            self.plain = Some(average(self.plain, seconds));
            self.since_plain = 0;
            self.since_guess += 1;
        } else if let Some(plain) = self.plain {
            let extra = ((seconds - plain) / guessed as f64).max(0.0);
            self.extra = Some(average(self.extra, extra));
            self.since_plain += 1;
            self.since_guess = 0;
        }
    }

    /// Of `guessed` tokens the first `right` were.
    pub fn checked(&mut self, sort: usize, guessed: usize, right: usize) {
        let odds = &mut self.odds[sort.min(SORTS - 1)];
        for outcome in (0..guessed.min(right + 1)).map(|i| if i < right { 1.0 } else { 0.0 }) {
            *odds += WEIGHT * (outcome - *odds);
        }
    }
}

fn average(held: Option<f64>, new: f64) -> f64 {
    held.map_or(new, |held| held + WEIGHT * (new - held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(extra: u64) -> Pace {
        let mut pace = Pace::default();
        assert_eq!(pace.length(0, 16, true), 0, "the first pass is the one to compare with");
        pace.fed(0, Duration::from_millis(100));
        pace.fed(1, Duration::from_millis(100 + extra));
        pace
    }

    #[test]
    fn good_guesses_get_longer_and_bad_ones_end() {
        let mut pace = pace(20);
        let first = pace.length(0, 16, true);
        assert!((1..16).contains(&first), "{first}");
        for _ in 0..20 {
            pace.checked(0, 4, 4);
        }
        assert_eq!(pace.length(0, 16, true), 16);
        assert_eq!(pace.length(0, 5, true), 5);
        assert_eq!(pace.length(1, 16, true), first, "another sort of guess is not concerned");
        for _ in 0..40 {
            pace.checked(0, 4, 0);
        }
        assert_eq!(pace.length(0, 16, true), 0);
    }

    #[test]
    fn guesses_that_cost_as_much_as_they_save_are_not_made() {
        let mut pace = pace(100);
        for _ in 0..20 {
            pace.checked(0, 4, 4);
        }
        assert_eq!(pace.length(0, 16, true), 0);
        // But now and then one that cannot be had for nothing is tried again.
        for _ in 0..RETRY {
            pace.fed(0, Duration::from_millis(100));
        }
        assert_eq!((pace.length(0, 16, true), pace.length(0, 16, false)), (0, 1));
    }

    #[test]
    fn now_and_then_a_pass_is_plain() {
        let mut pace = pace(1);
        for _ in 0..RECHECK {
            assert!(pace.length(0, 16, true) > 0 || pace.since_plain >= RECHECK);
            pace.fed(2, Duration::from_millis(102));
        }
        assert_eq!(pace.length(0, 16, true), 0);
        pace.fed(0, Duration::from_millis(100));
        assert!(pace.length(0, 16, true) > 0);
    }
}
