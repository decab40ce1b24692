//! Rotary embedding with LongRoPE's two factor sets (Ding et al. 2024), as transformers computes it.

use super::Hyper;
use crate::backend::Rotation;

/// Which factor set a sequence is computed with. It follows the sequence's length, so keys that were
/// cached under one are of no use under the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// At most the original context.
    Short,
    /// Longer.
    Long,
}

/// Inverse frequencies, one set a regime.
#[derive(Clone, Debug)]
pub struct Rope {
    short: Vec<f32>,
    long: Vec<f32>,
    original_context: usize,
    /// What cosines and sines are multiplied by: short, long.
    scale: [f32; 2],
}

impl Rope {
    /// From the model's numbers and its factors, `[rotary / 2]` each; none where it has no LongRoPE.
    pub fn new(hyper: &Hyper, short: Option<&[f32]>, long: Option<&[f32]>) -> Self {
        let frequencies = |factors: Option<&[f32]>| {
            (0..hyper.rotary / 2)
                .map(|i| {
                    // Every step is rounded to single precision, as the reference's tensors are.
                    let exponent = (2 * i) as f32 / hyper.rotary as f32;
                    let power = f64::from(hyper.rope_base).powf(f64::from(exponent)) as f32;
                    let factor = factors.map_or(1.0, |f| f[i]);
                    1.0 / (factor * power)
                })
                .collect()
        };
        let scale = if short.or(long).is_some() { hyper.rope_scale } else { [1.0; 2] };
        Self {
            short: frequencies(short),
            long: frequencies(long.or(short)),
            original_context: hyper.original_context,
            scale,
        }
    }

    /// The regime of a sequence of `length` tokens.
    pub fn regime(&self, length: usize) -> Regime {
        let same = self.short == self.long && self.scale[0] == self.scale[1];
        if length <= self.original_context || same { Regime::Short } else { Regime::Long }
    }

    /// The longest sequence that is in the regime of one of `length` tokens.
    pub fn regime_end(&self, length: usize) -> usize {
        if self.regime(length) == self.regime(usize::MAX) { usize::MAX } else { self.original_context }
    }

    /// Appends the angles of `positions` to `rotation`.
    pub fn extend(&self, rotation: &mut Rotation, regime: Regime, positions: std::ops::Range<usize>) {
        let [short, long] = self.scale;
        let (frequencies, scale) = match regime {
            Regime::Short => (&self.short, short),
            Regime::Long => (&self.long, long),
        };
        rotation.pairs = frequencies.len();
        for position in positions {
            for &frequency in frequencies {
                // The product is rounded to single precision before its sine is taken, as in the reference.
                let angle = f64::from(position as f32 * frequency);
                rotation.cos.push(angle.cos() as f32 * scale);
                rotation.sin.push(angle.sin() as f32 * scale);
            }
        }
    }
}
