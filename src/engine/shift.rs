//! A context that slides: what is older is left out when it is full.

use std::ops::ControlFlow;

use super::Logits;
use super::generate::Decoder;
use crate::{Error, Result};

/// A decoder that never runs out of room: when its context is full, its first `keep` tokens stay, half of the others, the
/// older ones, are dropped, and what is left is computed anew at its new positions, as if nothing else had been said.
pub(crate) struct Sliding<'a> {
    decoder: &'a mut dyn Decoder,
    keep: usize,
    /// Tokens that were dropped so far.
    dropped: usize,
}

impl<'a> Sliding<'a> {
    pub fn new(decoder: &'a mut dyn Decoder, keep: usize) -> Self {
        Self { decoder, keep, dropped: 0 }
    }

    /// Tokens that were dropped so far.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
}

/// How many of `count` tokens to drop after the first `keep`, so that at most `capacity` are left; `None` if that cannot be.
fn to_drop(count: usize, keep: usize, capacity: usize) -> Option<usize> {
    let mut left = count;
    while left > capacity {
        let half = left.checked_sub(keep)? / 2;
        if half == 0 {
            return None;
        }
        left -= half;
    }
    Some(count - left)
}

impl Decoder for Sliding<'_> {
    fn tokens(&self) -> &[u32] {
        self.decoder.tokens()
    }

    fn room(&self) -> usize {
        usize::MAX
    }

    fn truncate(&mut self, length: usize) {
        self.decoder.truncate(length);
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        highest: Option<usize>,
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Logits> {
        if tokens.len() <= self.decoder.room() {
            return self.decoder.feed(tokens, highest, progress);
        }
        let capacity = self.decoder.tokens().len() + self.decoder.room();
        let mut all = self.decoder.tokens().to_vec();
        all.extend_from_slice(tokens);
        let drop = to_drop(all.len(), self.keep, capacity).ok_or_else(|| {
            Error::Usage(format!(
                "a context of {capacity} tokens cannot slide when {} of them are kept: give a larger one (-c) or keep fewer (--keep)",
                self.keep
            ))
        })?;
        all.drain(self.keep..self.keep + drop);
        self.dropped += drop;
        // Keys depend on their positions, so all that moved is computed again.
        let held = self.keep.min(self.decoder.tokens().len());
        self.decoder.truncate(held);
        let fresh = all.get(held..).unwrap_or_default();
        // To the caller it is `tokens` that are fed.
        let before = fresh.len().saturating_sub(tokens.len());
        let mut progress = |done: usize| progress(done.saturating_sub(before).min(tokens.len()));
        self.decoder.feed(fresh, highest, &mut progress)
    }

    fn bytes_per_token(&self) -> u64 {
        self.decoder.bytes_per_token()
    }

    fn feed_each(&mut self, tokens: &[u32], highest: Option<usize>) -> Result<Vec<Logits>> {
        if tokens.len() <= self.decoder.room() {
            return self.decoder.feed_each(tokens, highest);
        }
        // No guess is fed where the context is full: `stretch` leaves no room for one.
        assert_eq!(tokens.len(), 1, "guesses stay within the stretch");
        self.feed(tokens, highest, &mut |_| ControlFlow::Continue(())).map(|row| vec![row])
    }

    fn stretch(&self) -> usize {
        self.decoder.stretch().min(self.decoder.room())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was fed.
    struct Script {
        tokens: Vec<u32>,
        capacity: usize,
    }

    impl Decoder for Script {
        fn tokens(&self) -> &[u32] {
            &self.tokens
        }
        fn room(&self) -> usize {
            self.capacity - self.tokens.len()
        }
        fn truncate(&mut self, length: usize) {
            self.tokens.truncate(length);
        }
        fn feed(
            &mut self,
            tokens: &[u32],
            _highest: Option<usize>,
            progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
        ) -> Result<Logits> {
            assert!(!tokens.is_empty() && tokens.len() <= self.room());
            self.tokens.extend_from_slice(tokens);
            let _ = progress(tokens.len());
            Ok(Logits::All(vec![0.0]))
        }
        fn bytes_per_token(&self) -> u64 {
            0
        }
        fn feed_each(&mut self, tokens: &[u32], highest: Option<usize>) -> Result<Vec<Logits>> {
            let row = self.feed(tokens, highest, &mut |_| ControlFlow::Continue(()))?;
            Ok(vec![row; tokens.len()])
        }
        fn stretch(&self) -> usize {
            self.room()
        }
    }

    fn feed(sliding: &mut Sliding<'_>, tokens: &[u32]) -> Result<usize> {
        let mut last = 0;
        sliding.feed(tokens, None, &mut |done| {
            last = done;
            ControlFlow::Continue(())
        })?;
        Ok(last)
    }

    #[test]
    fn the_beginning_and_the_newer_half_stay() {
        let mut script = Script { tokens: Vec::new(), capacity: 8 };
        let mut sliding = Sliding::new(&mut script, 2);
        feed(&mut sliding, &[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        assert_eq!(sliding.dropped(), 0);
        // 9 tokens: of the 7 after the kept ones 3 are dropped.
        assert_eq!(feed(&mut sliding, &[8]).unwrap(), 1);
        assert_eq!(sliding.tokens(), [0, 1, 5, 6, 7, 8]);
        assert_eq!((sliding.dropped(), sliding.room()), (3, usize::MAX));
    }

    #[test]
    fn guesses_do_not_make_the_context_slide() {
        let mut script = Script { tokens: vec![1; 6], capacity: 8 };
        let mut sliding = Sliding::new(&mut script, 2);
        assert_eq!(sliding.stretch(), 2);
        assert_eq!(sliding.feed_each(&[2, 3], None).unwrap().len(), 2);
        assert_eq!((sliding.stretch(), sliding.dropped()), (0, 0));
        assert_eq!(sliding.feed_each(&[4], None).unwrap().len(), 1);
        assert_eq!(sliding.tokens(), [1, 1, 1, 2, 3, 4]);
    }

    #[test]
    fn a_prompt_longer_than_the_context_loses_its_middle() {
        let mut script = Script { tokens: Vec::new(), capacity: 8 };
        let mut sliding = Sliding::new(&mut script, 3);
        let prompt: Vec<u32> = (0..20).collect();
        assert_eq!(feed(&mut sliding, &prompt).unwrap(), 8);
        assert_eq!(sliding.tokens(), [0, 1, 2, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn a_context_that_is_kept_whole_cannot_slide() {
        let mut script = Script { tokens: vec![1; 4], capacity: 4 };
        let error = feed(&mut Sliding::new(&mut script, 4), &[2]).unwrap_err().to_string();
        assert!(error.contains("--keep"), "{error}");
        assert_eq!(to_drop(9, 20, 8), None);
        assert_eq!(to_drop(8, 20, 8), Some(0));
    }
}
