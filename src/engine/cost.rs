//! What a forward pass costs whatever the kernels are like: bytes that must come from memory, products to be made.

use std::ops::{Add, AddAssign};

use super::{Engine, KvType, Sequence};
use crate::backend::Matrix;

/// Work of one or several forward passes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Weights, once a pass (of experts, those that one token uses), and the keys and values that its rows see, once a sequence.
    pub bytes: u64,
    /// Multiplications (each with its addition) by weights of a block type, which are done in integers.
    pub integer_products: u64,
    /// Those of attention that are done in 16-bit integers.
    pub pair_products: u64,
    /// Those by float weights, and the others of attention.
    pub float_products: u64,
}

impl Cost {
    /// All multiplications.
    pub fn products(&self) -> u64 {
        self.integer_products + self.pair_products + self.float_products
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            integer_products: self.integer_products + other.integer_products,
            pair_products: self.pair_products + other.pair_products,
            float_products: self.float_products + other.float_products,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Engine {
    /// The cost of one pass with `tokens` new tokens for each sequence, the first of them at `position`, and
    /// the logits of each one's last. One entry a sequence: `(position, tokens)`.
    pub fn cost(&self, parts: &[(usize, usize)]) -> Cost {
        let hyper = &self.model.hyper;
        let mut cost = Cost { bytes: self.model.bytes_per_token(), ..Cost::default() };
        let rows: u64 = parts.iter().map(|&(_, tokens)| tokens as u64).sum();
        let layers = &self.model.layers;
        let outputs = parts.len() as u64;
        for (i, layer) in layers.iter().enumerate() {
            let kept = layer.qkv_matrices().len();
            for (j, matrix) in layer.used_matrices().into_iter().enumerate() {
                // What comes after the last layer's attention is done for rows that have logits only.
                cost.add_matrix(matrix, if i + 1 == layers.len() && j >= kept { outputs } else { rows });
            }
        }
        cost.add_matrix(&self.model.head.weight, outputs);
        for &(position, tokens) in parts {
            let seen = |position: usize| (position + 1).min(hyper.window) as u64;
            let pairs: u64 = (position..position + tokens).map(seen).sum();
            let width = hyper.heads * hyper.head * hyper.layers;
            for kind in [self.options.cache_type_k, self.options.cache_type_v] {
                let pairwise = kind == KvType::F16;
                let sum = if pairwise { &mut cost.pair_products } else { &mut cost.float_products };
                *sum += width as u64 * pairs;
            }
            let read = (position + tokens).min(hyper.window.saturating_add(tokens));
            cost.bytes += self.cache_shape().bytes_read(read);
        }
        cost
    }

    /// The rows that [`Engine::feed`] computes at once.
    pub fn batch(&self) -> usize {
        self.options.batch.max(1)
    }

    /// Whether appending `more` tokens has the sequence's whole cache computed anew (LongRoPE).
    pub fn recomputes(&self, sequence: &Sequence, more: usize) -> bool {
        self.model.rope.regime(sequence.tokens.len() + more) != sequence.regime && !sequence.tokens.is_empty()
    }
}

impl Cost {
    /// Adds the products of `matrix` with `rows` tokens.
    fn add_matrix(&mut self, matrix: &Matrix, rows: u64) {
        let products = (matrix.rows * matrix.columns) as u64 * rows;
        let sum =
            if matrix.kind.is_quantized() { &mut self.integer_products } else { &mut self.float_products };
        *sum += products;
    }
}
