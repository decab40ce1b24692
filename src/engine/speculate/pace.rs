//! How far to guess: as far as the odds and the measured times say that it pays.

use std::time::Duration;

use super::SORTS;

/// Time of one more token in a pass, relative to the pass with one, before it was measured.
const FIRST_EXTRA: f64 = 0.2;
/// Weight of a new observation in a moving average.
const WEIGHT: f64 = 0.125;
/// Passes after which one is made without a guess, so that what is compared with stays current.
const RECHECK: usize = 64;
/// Passes after which a guess that is not free is tried although it did not pay before, and guesses that did not pay after which the times
/// of passes are measured anew.
const RETRY: usize = 32;
/// Passes after which one more token is guessed than seems best, if such a pass was not measured yet.
const EXPLORE: usize = 8;
/// The least gain that is worth the trouble.
const GAIN: f64 = 1.02;

/// What was learnt about guesses.
#[derive(Debug)]
pub struct Pace {
    /// Seconds of a pass with so many guessed tokens, their guessing included, where it was measured. They do not grow evenly:
    /// kernels take tokens in tiles, and few of them cost hardly more than one, for which all weights are read, too.
    times: Vec<Option<f64>>,
    /// By sort of guess: how often a guessed token is right if those before it are.
    odds: [f64; SORTS],
    /// Passes since the last without a guess, and since the last with one.
    since_plain: usize,
    since_guess: usize,
    /// Guesses that did not pay, since times were measured anew.
    declined: usize,
}

impl Pace {
    /// Nothing is known yet but the `odds` of each sort that its drafter expects.
    pub fn new(odds: [f64; SORTS]) -> Self {
        Self { times: Vec::new(), odds, since_plain: 0, since_guess: 0, declined: 0 }
    }

    /// Tokens to guess now, at most `most`.
    pub fn length(&mut self, sort: usize, most: usize, free: bool) -> usize {
        let Some(plain) = self.measured(0) else { return 0 };
        if self.since_plain >= RECHECK {
            return 0;
        }
        let odds = self.odds[sort.min(SORTS - 1)];
        let (mut best, mut length) = (GAIN, 0);
        // Tokens that a pass is expected to give: 1 + p + p² + …
        let (mut tokens, mut chance) = (1.0, 1.0);
        for guessed in 1..=most {
            chance *= odds;
            tokens += chance;
            let gain = tokens * plain / self.time(guessed, plain);
            if gain > best {
                (best, length) = (gain, guessed);
            }
        }
        if length > 0 {
            let is_known = length == most || self.measured(length + 1).is_some();
            let explores = !is_known && self.since_plain % EXPLORE == EXPLORE - 1;
            return length + usize::from(explores);
        }
        self.declined += 1;
        if self.declined >= RETRY {
            // Times may have been taken in a bad moment.
            self.times.truncate(1);
            self.declined = 0;
        }
        if !free && self.since_guess >= RETRY { most.min(1) } else { 0 }
    }

    fn measured(&self, guessed: usize) -> Option<f64> {
        self.times.get(guessed).copied().flatten()
    }

    /// Seconds that a pass with `guessed` tokens is expected to take if one without takes `plain`: as measured, or on a straight line
    /// between the next that were, or the last ones; not more than one with more tokens took.
    fn time(&self, guessed: usize, plain: f64) -> f64 {
        let below = (1..=guessed).rev().find_map(|n| Some((n, self.measured(n)?)));
        let above = (guessed..self.times.len()).find_map(|n| Some((n, self.measured(n)?)));
        let (from, start) = below.unwrap_or((0, plain));
        let each = match above {
            Some((to, end)) if to > from => (end - start) / (to - from) as f64,
            _ if from > 0 => (start - plain) / from as f64,
            _ => plain * FIRST_EXTRA,
        };
        let line = start + each.max(0.0) * (guessed - from) as f64;
        self.times.iter().skip(guessed).flatten().fold(line, |least, &time| least.min(time))
    }

    /// A pass with `guessed` tokens took `time`.
    pub fn fed(&mut self, guessed: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if guessed == 0 {
            self.since_plain = 0;
            self.since_guess += 1;
        } else {
            self.since_plain += 1;
            self.since_guess = 0;
        }
        if self.times.len() <= guessed {
            self.times.resize(guessed + 1, None);
        }
        let held = &mut self.times[guessed];
        *held = Some(held.map_or(seconds, |held| held + WEIGHT * (seconds - held)));
    }

    /// Of `guessed` tokens the first `right` were.
    pub fn checked(&mut self, sort: usize, guessed: usize, right: usize) {
        let odds = &mut self.odds[sort.min(SORTS - 1)];
        for outcome in (0..guessed.min(right + 1)).map(|i| if i < right { 1.0 } else { 0.0 }) {
            *odds += WEIGHT * (outcome - *odds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::speculate::FIRST_ODDS;

    fn pace(extra: u64) -> Pace {
        let mut pace = Pace::new([FIRST_ODDS; SORTS]);
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
    fn sizes_that_cost_next_to_nothing_are_found() {
        // In tiles of four tokens, the pass's own included; from eight on each costs as much as a pass.
        let time = |guessed: usize| match guessed {
            0..4 => 100 + 5 * guessed as u64,
            4..8 => 140,
            _ => 100 * guessed as u64,
        };
        let mut pace = pace(5);
        for _ in 0..50 {
            let length = pace.length(0, 16, true);
            pace.fed(length, Duration::from_millis(time(length)));
            pace.checked(0, length, length);
        }
        assert_eq!(pace.length(0, 16, true), 7);
        assert_eq!(pace.length(0, 3, true), 3);
    }

    #[test]
    fn times_lie_between_what_was_measured() {
        let mut pace = pace(20);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        near(pace.time(3, 0.1), 0.16);
        pace.fed(5, Duration::from_millis(140));
        near(pace.time(1, 0.1), 0.12);
        near(pace.time(3, 0.1), 0.13);
        near(pace.time(10, 0.1), 0.18);
        // One of more tokens that took less: the others were measured in a bad moment.
        pace.fed(8, Duration::from_millis(110));
        near(pace.time(1, 0.1), 0.11);
        near(pace.time(6, 0.1), 0.11);
    }

    #[test]
    fn a_bad_moment_is_forgotten() {
        let mut pace = pace(1000);
        for _ in 0..20 {
            pace.checked(0, 4, 4);
        }
        for _ in 0..RETRY {
            assert_eq!(pace.length(0, 16, true), 0);
            pace.fed(0, Duration::from_millis(100));
        }
        assert!(pace.length(0, 16, true) > 0);
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
