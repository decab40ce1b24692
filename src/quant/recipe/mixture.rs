//! The mixed recipes: which parts of a model get more (or fewer) bits than the recipe's base type.
//!
//! The rules are llama.cpp's (llama-quant.cpp), by part of the model. They look at the layer, the number
//! of layers, query heads a key/value head and experts, and whether there is an importance matrix.

use super::architecture::Architecture;
use super::file_type::FileType as F;
use super::role::{Role, layer_of};
use super::{RecipeFault, Tensor};
use crate::gguf::TensorType as T;

/// The rules of one recipe for one model, with the counts of tensors met so far.
pub(super) struct Mixture<'a> {
    pub recipe: F,
    pub architecture: &'a Architecture,
    /// Whether an importance matrix is given.
    pub imatrix: bool,
    /// Whether the token embedding is the output matrix too.
    pub tied: bool,
    /// The type asked for the output matrix.
    pub output: Option<T>,
    /// Tensors in the model that hold attention values.
    pub values: i64,
    pub seen: Seen,
}

/// Tensors met so far, by role: which layer a rule takes a tensor to be in.
#[derive(Default)]
pub(super) struct Seen {
    values: i64,
    ffn_up: i64,
    ffn_gate: i64,
    ffn_down: i64,
}

/// The first and last eighth of the layers and every third one between get more bits.
fn more_bits(layer: i64, layers: i64) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The recipes around two bits an element, which share their rules.
fn is_very_low(recipe: F) -> bool {
    matches!(recipe, F::IQ1_S | F::IQ1_M | F::IQ2_XXS | F::IQ2_XS | F::IQ2_S | F::IQ2_M)
}

impl Mixture<'_> {
    /// The type for `tensor`, before its shape is looked at. To be called in the order of the tensors.
    pub fn choose(&mut self, tensor: &Tensor<'_>, role: Role) -> Result<T, RecipeFault> {
        let recipe = self.recipe;
        if role == Role::Output || (self.tied && role == Role::TokenEmbedding) {
            return Ok(self.output_matrix(tensor));
        }
        if recipe == F::MXFP4_MOE {
            let is_experts = tensor.shape.get(2).is_some_and(|&n| n > 1);
            return Ok(if is_experts { T::MXFP4 } else { T::Q8_0 });
        }
        if role == Role::TokenEmbedding {
            return Ok(self.token_embedding());
        }
        if is_very_low(recipe) {
            return Ok(self.very_low(role));
        }
        match role {
            role if role.holds_values() => Ok(self.attention_values()),
            Role::AttentionK | Role::AttentionQ => Ok(self.attention_keys(role)),
            Role::AttentionOutput => Ok(self.attention_output()),
            Role::FfnDown => {
                let layer = self.layer(tensor, self.seen.ffn_down)?;
                self.seen.ffn_down += 1;
                Ok(self.ffn_down(layer))
            }
            Role::FfnGate => {
                let layer = self.layer(tensor, self.seen.ffn_gate)?;
                self.seen.ffn_gate += 1;
                Ok(self.ffn_gate_or_up(layer))
            }
            Role::FfnUp => {
                let layer = self.layer(tensor, self.seen.ffn_up)?;
                self.seen.ffn_up += 1;
                Ok(self.ffn_gate_or_up(layer))
            }
            _ => Ok(recipe.base()),
        }
    }

    fn layers(&self) -> i64 {
        self.architecture.layers.into()
    }

    /// Eight experts (Mixtral): the shared attention is small, so it can afford more bits.
    fn eight_experts(&self) -> bool {
        self.architecture.experts == 8
    }

    fn shares_kv_heads(&self) -> bool {
        self.architecture.heads_per_kv >= 4
    }

    /// The layer of a feed-forward tensor: its place among its like, or with experts, whose tensors may
    /// come in any order, what its name says.
    fn layer(&self, tensor: &Tensor<'_>, place: i64) -> Result<i64, RecipeFault> {
        if self.architecture.experts <= 1 {
            return Ok(place);
        }
        let layer = layer_of(tensor.name);
        if (0..self.layers()).contains(&layer) {
            return Ok(layer);
        }
        Err(RecipeFault::Layer { tensor: tensor.name.to_owned(), layers: self.architecture.layers })
    }

    fn output_matrix(&self, tensor: &Tensor<'_>) -> T {
        let base = self.recipe.base();
        if let Some(kind) = self.output {
            return kind;
        }
        let columns = tensor.shape.first().copied().unwrap_or(1);
        let whole_blocks = columns % base.block_elements() as u64 == 0;
        if self.recipe == F::MXFP4_MOE || self.architecture.is_falcon() || !whole_blocks {
            T::Q8_0
        } else if is_very_low(self.recipe) || self.recipe == F::IQ3_XXS {
            T::Q5_K
        } else if base == T::Q8_0 {
            T::Q8_0
        } else {
            T::Q6_K
        }
    }

    fn token_embedding(&self) -> T {
        match self.recipe {
            F::IQ1_S | F::IQ1_M | F::IQ2_XXS | F::IQ2_XS => T::Q2_K,
            F::IQ2_S | F::IQ2_M | F::IQ3_XXS => T::IQ3_S,
            F::TQ1_0 | F::TQ2_0 | F::Q2_0 => T::Q4_K,
            other => other.base(),
        }
    }

    fn very_low(&mut self, role: Role) -> T {
        let base = self.recipe.base();
        let is_iq2_s_or_m = matches!(self.recipe, F::IQ2_S | F::IQ2_M);
        let better = if is_iq2_s_or_m { T::IQ3_S } else { T::Q2_K };
        match role {
            role if role.holds_values() => {
                self.seen.values += 1;
                let affords_q4 = self.shares_kv_heads() || self.architecture.experts >= 4;
                if affords_q4 { T::Q4_K } else { better }
            }
            Role::AttentionK if self.eight_experts() => T::Q4_K,
            Role::FfnDown => {
                let is_early = self.seen.ffn_down < self.layers() / 8;
                self.seen.ffn_down += 1;
                if is_early { better } else { base }
            }
            Role::AttentionOutput if self.eight_experts() => T::Q5_K,
            Role::AttentionOutput if is_iq2_s_or_m => T::IQ3_S,
            Role::AttentionOutput if matches!(self.recipe, F::IQ1_S | F::IQ1_M) => T::IQ2_XXS,
            _ => base,
        }
    }

    fn attention_values(&mut self) -> T {
        let seen = self.seen.values;
        self.seen.values += 1;
        let shares = self.shares_kv_heads();
        let kind = match self.recipe {
            F::Q2_K if shares => T::Q4_K,
            F::Q2_K => T::Q3_K,
            F::Q2_K_S | F::IQ3_XXS | F::IQ3_XS | F::IQ3_S if shares => T::Q4_K,
            F::IQ3_XXS if !self.imatrix => T::IQ3_S,
            F::IQ3_M => T::Q4_K,
            F::Q3_K_M if seen < 2 => T::Q5_K,
            F::Q3_K_M => T::Q4_K,
            F::Q3_K_L => T::Q5_K,
            F::IQ4_NL | F::IQ4_XS if shares => T::Q5_K,
            F::Q4_K_M | F::Q5_K_M if more_bits(seen, self.values) => T::Q6_K,
            F::Q4_K_S if seen < 4 => T::Q5_K,
            other => other.base(),
        };
        if self.eight_experts() {
            T::Q8_0
        } else if self.architecture.is_70b() && matches!(kind, T::Q3_K | T::Q4_K) {
            T::Q5_K
        } else {
            kind
        }
    }

    fn attention_keys(&self, role: Role) -> T {
        match self.recipe {
            _ if role == Role::AttentionK && self.eight_experts() => T::Q8_0,
            F::IQ3_XS => T::IQ3_XXS,
            F::IQ3_XXS => T::IQ2_S,
            other => other.base(),
        }
    }

    fn attention_output(&self) -> T {
        let base = self.recipe.base();
        if self.architecture.is_falcon() {
            return if self.recipe == F::Q3_K_L { T::Q4_K } else { base };
        }
        if self.eight_experts() {
            return match self.recipe {
                F::Q2_K | F::Q3_K_S | F::Q3_K_M | F::Q4_K_S | F::Q4_K_M => T::Q5_K,
                F::IQ3_XXS | F::IQ3_XS | F::IQ3_S | F::IQ3_M | F::IQ4_NL | F::IQ4_XS => T::Q5_K,
                _ => base,
            };
        }
        match self.recipe {
            F::Q2_K => T::Q3_K,
            F::IQ3_XXS => T::IQ3_S,
            F::Q3_K_M | F::IQ3_M => T::Q4_K,
            F::Q3_K_L => T::Q5_K,
            _ => base,
        }
    }

    fn ffn_down(&self, layer: i64) -> T {
        let layers = self.layers();
        let is_falcon = self.architecture.is_falcon();
        let is_early = layer < layers / 8;
        let more = more_bits(layer, layers);
        match self.recipe {
            F::Q2_K => T::Q3_K,
            F::Q2_K_S if is_early => T::Q4_K,
            F::IQ3_XXS if !self.imatrix => {
                if is_early {
                    T::Q4_K
                } else {
                    T::Q3_K
                }
            }
            F::Q3_K_M if layer < layers / 16 => T::Q5_K,
            F::Q3_K_M if !is_falcon || more => T::Q4_K,
            F::IQ3_M if is_early || (self.eight_experts() && more) => T::Q4_K,
            F::Q3_K_L if is_falcon => T::Q4_K,
            F::Q3_K_L => T::Q5_K,
            F::Q4_K_M if is_falcon && layer < layers / 16 => T::Q6_K,
            F::Q4_K_M if more => {
                if is_falcon {
                    T::Q5_K
                } else {
                    T::Q6_K
                }
            }
            F::IQ4_NL | F::IQ4_XS if is_early && !self.imatrix => T::Q5_K,
            F::Q5_K_M if more => T::Q6_K,
            F::Q4_K_S if is_early && !is_falcon => T::Q5_K,
            // With an importance matrix the first layers can go astray in a type without a minimum.
            F::Q4_0 if is_early && self.imatrix => T::Q4_1,
            F::Q5_0 if is_early && self.imatrix => T::Q5_1,
            other => other.base(),
        }
    }

    fn ffn_gate_or_up(&self, layer: i64) -> T {
        let layers = self.layers();
        let is_middle = layer >= layers / 8 && layer < 7 * layers / 8;
        if self.recipe == F::IQ3_XS && is_middle { T::IQ3_XXS } else { self.recipe.base() }
    }
}
