//! From logits to the next token.
//!
//! The steps and their order are llama.cpp's: logit bias, penalties, top-k, locally typical, top-p, min-p, temperature,
//! and a draw. All arithmetic is plain IEEE (no libm), so that a seed gives the same tokens on every machine that
//! computes the same logits.

mod candidates;
mod random;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};

use self::candidates::Candidates;
use self::random::Xoshiro256;
use crate::{Error, Result};

/// How to choose. The default is llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0 (or less) always takes the best token, whatever the filters say.
    pub temperature: f32,
    /// Keep this many best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the best tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this times the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest the expected one, until they add up to this; 1 keeps all.
    pub typical_p: f32,
    /// Logits of recent tokens are divided by this (multiplied if negative); 1 changes nothing.
    pub repeat_penalty: f32,
    /// Tokens that count as recent; 0 switches all three penalties off.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of each recent token.
    pub presence_penalty: f32,
    /// Subtracted as often as a token was said recently.
    pub frequency_penalty: f32,
    /// Start of the random numbers; `None` takes one that differs each time.
    pub seed: Option<u32>,
    /// Added to the logits of these tokens; minus infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplerOptions {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// Chooses tokens and remembers what was said.
pub struct Sampler {
    options: SamplerOptions,
    seed: u32,
    random: Xoshiro256,
    /// The last `repeat_last_n` tokens, oldest first, and how often each is in there.
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for a model of `vocabulary` tokens. Fails on options that make no sense.
    pub fn new(options: SamplerOptions, vocabulary: usize) -> Result<Self> {
        check(&options, vocabulary)?;
        let seed = options.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() as u32);
        Ok(Self {
            random: Xoshiro256::new(seed.into()),
            seed,
            recent: VecDeque::new(),
            counts: HashMap::new(),
            candidates: Candidates::default(),
            options,
        })
    }

    /// The seed in use, for saying how to get the same answer again.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// The next token for `logits` `[vocabulary]`, which biases and penalties change in place.
    ///
    /// Fails if a logit is NaN or plus infinity, or none is above minus infinity.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        self.adjust(logits);
        self.candidates.fill(logits, self.keep()).map_err(|fault| Error::Unsupported(fault.to_string()))?;
        Ok(self.choose())
    }

    /// How many of the highest logits decide on the next token: [`Self::sample_highest`] then chooses from these as
    /// [`Self::sample`] does from all. `None` if a bias, a penalty or the lack of a limit may bring in any other.
    pub fn needs(&self) -> Option<usize> {
        let SamplerOptions {
            repeat_penalty,
            repeat_last_n,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            ..
        } = &self.options;
        let penalizes = *repeat_last_n > 0
            && (*repeat_penalty != 1.0 || *presence_penalty != 0.0 || *frequency_penalty != 0.0);
        Some(self.keep()).filter(|&keep| keep > 0 && !penalizes && logit_bias.is_empty())
    }

    /// The next token, as [`Self::sample`] chooses it, from the [`Self::needs`] highest logits of a larger vocabulary:
    /// tokens and their logits, highest first, of equals the lower token first, NaN before anything.
    ///
    /// Fails as [`Self::sample`] does.
    pub fn sample_highest(&mut self, highest: &[(u32, f32)]) -> Result<u32> {
        self.candidates.take(highest).map_err(|fault| Error::Unsupported(fault.to_string()))?;
        Ok(self.choose())
    }

    /// Candidates that the first filter leaves; 0 for all.
    fn keep(&self) -> usize {
        if self.options.temperature <= 0.0 { 1 } else { self.options.top_k }
    }

    /// A token of the candidates.
    fn choose(&mut self) -> u32 {
        let options = &self.options;
        if options.temperature <= 0.0 {
            return self.candidates.best();
        }
        self.candidates.keep_typical(options.typical_p);
        self.candidates.keep_top_p(options.top_p);
        self.candidates.keep_min_p(options.min_p);
        self.candidates.draw(options.temperature, self.random.unit())
    }

    /// Takes note that `id` is part of the text, for the penalties.
    pub fn accept(&mut self, id: u32) {
        if self.options.repeat_last_n == 0 {
            return;
        }
        if self.recent.len() == self.options.repeat_last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.recent.push_back(id);
        *self.counts.entry(id).or_default() += 1;
    }

    /// Forgets what was said and starts the random numbers anew.
    pub fn reset(&mut self) {
        self.recent.clear();
        self.counts.clear();
        self.random = Xoshiro256::new(self.seed.into());
    }

    /// Applies biases and penalties.
    fn adjust(&self, logits: &mut [f32]) {
        let options = &self.options;
        for (id, bias) in &options.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                // A bias of plus infinity means "this one", not an undefined softmax.
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
        for (id, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*id as usize) {
                let scaled = if *logit <= 0.0 {
                    *logit * options.repeat_penalty
                } else {
                    *logit / options.repeat_penalty
                };
                *logit = scaled - *count as f32 * options.frequency_penalty - options.presence_penalty;
            }
        }
    }
}

fn check(options: &SamplerOptions, vocabulary: usize) -> Result<()> {
    let refuse = |name: &str, value: f32, expected: &str| {
        Err(Error::Usage(format!("{name} is {value}; expected {expected}")))
    };
    if !options.temperature.is_finite() {
        return refuse(
            "the temperature",
            options.temperature,
            "0 (always the best token) or a positive number",
        );
    }
    for (name, value) in [("top-p", options.top_p), ("min-p", options.min_p), ("typical", options.typical_p)]
    {
        if value.is_nan() {
            return refuse(name, value, "a number from 0 to 1");
        }
    }
    if !(options.repeat_penalty > 0.0
        && options.repeat_penalty.is_finite()
        && options.repeat_penalty.recip().is_finite())
    {
        return refuse("the repeat penalty", options.repeat_penalty, "a positive number (1 changes nothing)");
    }
    for (name, value) in [("presence", options.presence_penalty), ("frequency", options.frequency_penalty)] {
        if !value.is_finite() {
            return refuse(&format!("the {name} penalty"), value, "a finite number");
        }
    }
    for (id, bias) in &options.logit_bias {
        if *id as usize >= vocabulary {
            return Err(Error::Usage(format!(
                "the logit bias names token {id}, but the vocabulary has {vocabulary} entries"
            )));
        }
        if bias.is_nan() {
            return refuse(&format!("the logit bias of token {id}"), *bias, "a number, inf or -inf");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(change: impl FnOnce(&mut SamplerOptions)) -> SamplerOptions {
        let mut options = SamplerOptions {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.0,
            seed: Some(1),
            ..Default::default()
        };
        change(&mut options);
        options
    }

    /// How often each token comes in 20,000 draws, as a fraction.
    fn frequencies(options: SamplerOptions, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(options, logits.len()).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut logits.to_vec()).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        for (found_one, expected_one) in found.iter().zip(expected) {
            assert!(
                (found_one - expected_one).abs() < 0.015 && (*expected_one > 0.0 || *found_one == 0.0),
                "{found:?} {expected:?}"
            );
        }
    }

    // Logits of probabilities 0.1, 0.5, 0.2, 0.15, 0.05.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.5, 0.2, 0.15, 0.05].map(f32::ln).to_vec()
    }

    #[test]
    fn draws_follow_the_distribution() {
        assert_near(&frequencies(options(|_| ()), &logits()), &[0.1, 0.5, 0.2, 0.15, 0.05]);
    }

    #[test]
    fn temperature_sharpens() {
        // Squared and normalised: 0.01, 0.25, 0.04, 0.0225, 0.0025 over 0.325.
        let expected = [0.0308, 0.7692, 0.1231, 0.0692, 0.0077];
        assert_near(&frequencies(options(|o| o.temperature = 0.5), &logits()), &expected);
    }

    #[test]
    fn each_filter_keeps_what_it_should() {
        let kept = |change: fn(&mut SamplerOptions)| frequencies(options(change), &logits());
        assert_near(&kept(|o| o.top_k = 2), &[0.0, 0.714, 0.286, 0.0, 0.0]);
        assert_near(&kept(|o| o.top_p = 0.6), &[0.0, 0.714, 0.286, 0.0, 0.0]);
        assert_near(&kept(|o| o.top_p = 0.0), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        // 0.3 × 0.5 = 0.15: 0.1 and 0.05 go.
        assert_near(&kept(|o| o.min_p = 0.299), &[0.0, 0.588, 0.235, 0.176, 0.0]);
        // The entropy is 1.333 nats; surprises 2.303, 0.693, 1.609, 1.897, 2.996; nearest first: 0.2, 0.15, 0.5, 0.1, 0.05.
        assert_near(&kept(|o| o.typical_p = 0.3), &[0.0, 0.0, 0.571, 0.429, 0.0]);
        assert_near(&kept(|o| o.typical_p = 0.4), &[0.0, 0.588, 0.235, 0.176, 0.0]);
    }

    #[test]
    fn filters_work_on_what_the_earlier_ones_left() {
        // After top-k 3 the best has 0.5 / 0.85 = 0.588 of what is left, enough for top-p 0.55.
        let kept = frequencies(options(|o| (o.top_k, o.top_p) = (3, 0.55)), &logits());
        assert_near(&kept, &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(SamplerOptions::greedy(), 4).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap(), 1);
        let mut long = vec![0.0; 100_000];
        (long[77_777], long[99_999]) = (2.0, 2.0);
        assert_eq!(
            Sampler::new(SamplerOptions::greedy(), 100_000).unwrap().sample(&mut long).unwrap(),
            77_777
        );
    }

    #[test]
    fn the_highest_logits_alone_give_the_same_tokens() {
        let mut state = 7u32;
        // Few distinct values, so that there are ties; both zeros are among them.
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as f32 - 250.0) * if state & 4096 == 0 { 0.25 } else { -0.25 }
        };
        let changes: [fn(&mut SamplerOptions); 4] = [
            |o| o.temperature = 0.0,
            |o| (o.top_k, o.temperature) = (40, 3.0),
            |o| (o.top_k, o.top_p, o.min_p, o.temperature) = (50, 0.9, 0.05, 2.0),
            |o| (o.top_k, o.typical_p, o.repeat_last_n, o.repeat_penalty) = (20, 0.8, 0, 1.5),
        ];
        for change in changes {
            let sampler = || Sampler::new(options(change), 3000).unwrap();
            let (mut all, mut few) = (sampler(), sampler());
            let count = few.needs().unwrap();
            for _ in 0..40 {
                let mut logits: Vec<f32> = (0..3000).map(|_| next()).collect();
                (logits[5], logits[6]) = (f32::NEG_INFINITY, f32::MIN);
                let mut highest: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| x + 0.0)).collect();
                highest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                highest.truncate(count);
                let id = all.sample(&mut logits).unwrap();
                assert_eq!(few.sample_highest(&highest).unwrap(), id);
                all.accept(id);
                few.accept(id);
            }
        }
    }

    #[test]
    fn what_may_bring_in_any_token_needs_all_logits() {
        let changes: [fn(&mut SamplerOptions); 5] = [
            |_| (),
            |o| (o.top_k, o.repeat_penalty) = (40, 1.1),
            |o| (o.top_k, o.presence_penalty) = (40, 0.1),
            |o| (o.temperature, o.frequency_penalty) = (0.0, -0.1),
            |o| (o.temperature, o.logit_bias) = (0.0, vec![(1, 2.0)]),
        ];
        for change in changes {
            assert_eq!(Sampler::new(options(change), 5).unwrap().needs(), None);
        }
        assert_eq!(Sampler::new(SamplerOptions::default(), 5).unwrap().needs(), Some(40));
        assert_eq!(Sampler::new(SamplerOptions::greedy(), 5).unwrap().needs(), Some(1));
        let mut sampler = Sampler::new(SamplerOptions::greedy(), 5).unwrap();
        let cases: [(&[(u32, f32)], &str); 4] = [
            (&[(3, f32::NAN)], "token 3 is NaN"),
            (&[(2, f32::INFINITY)], "token 2 is infinite"),
            (&[(0, f32::NEG_INFINITY)], "no token"),
            (&[], "no token"),
        ];
        for (highest, what) in cases {
            let error = sampler.sample_highest(highest).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn penalties_are_applied_to_recent_tokens() {
        let mut sampler = Sampler::new(
            options(|o| {
                (o.repeat_penalty, o.presence_penalty, o.frequency_penalty, o.repeat_last_n) =
                    (2.0, 0.25, 0.5, 3);
            }),
            4,
        )
        .unwrap();
        [3, 0, 1, 0].into_iter().for_each(|id| sampler.accept(id));
        let mut logits = [4.0, -1.0, 1.0, 5.0];
        sampler.sample(&mut logits).unwrap();
        // Token 3 was said four tokens ago, which is no longer recent.
        assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.5 - 0.25, -2.0 - 0.5 - 0.25, 1.0, 5.0]);
        sampler.reset();
        let mut logits = [4.0, -1.0, 1.0, 5.0];
        sampler.sample(&mut logits).unwrap();
        assert_eq!(logits, [4.0, -1.0, 1.0, 5.0]);
    }

    #[test]
    fn biases_forbid_and_force() {
        let found = frequencies(options(|o| o.logit_bias = vec![(1, f32::NEG_INFINITY)]), &logits());
        assert_near(&found, &[0.2, 0.0, 0.4, 0.3, 0.1]);
        let found = frequencies(options(|o| o.logit_bias = vec![(4, f32::INFINITY)]), &logits());
        assert_near(&found, &[0.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_again() {
        let draw = |seed| {
            let mut sampler =
                Sampler::new(SamplerOptions { seed: Some(seed), ..options(|_| ()) }, 5).unwrap();
            (0..20).map(|_| sampler.sample(&mut logits()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The same on every machine and in every version: change this only on purpose.
        assert_eq!(draw(42)[..10], [3, 1, 4, 2, 2, 1, 1, 2, 1, 3]);
    }

    #[test]
    fn impossible_logits_are_errors() {
        let cases: [&mut [f32]; 4] =
            [&mut [0.0, f32::NAN], &mut [f32::INFINITY, 0.0], &mut [f32::NEG_INFINITY; 3], &mut []];
        for logits in cases {
            for options in [SamplerOptions::greedy(), SamplerOptions::default(), options(|_| ())] {
                let error = Sampler::new(options, 3).unwrap().sample(logits).unwrap_err().to_string();
                assert!(error.contains("logit"), "{error}");
            }
        }
    }

    #[test]
    fn senseless_options_are_refused() {
        let cases: [fn(&mut SamplerOptions); 6] = [
            |o| o.temperature = f32::NAN,
            |o| o.top_p = f32::NAN,
            |o| o.repeat_penalty = 0.0,
            |o| o.presence_penalty = f32::INFINITY,
            |o| o.logit_bias = vec![(5, 1.0)],
            |o| o.logit_bias = vec![(0, f32::NAN)],
        ];
        for change in cases {
            assert!(matches!(Sampler::new(options(change), 5), Err(Error::Usage(_))));
        }
    }
}
