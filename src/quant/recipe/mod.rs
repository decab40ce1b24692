//! Recipes: which type each tensor of a model gets when the file is asked to be "Q4_K_M".
//!
//! The choice is llama-quantize's, tensor for tensor; `scripts/recipe_goldens.py` takes its choices for
//! the table that `tests/quantize.rs` compares with.

mod architecture;
mod file_type;
mod mixture;
mod role;

use regex::Regex;

use crate::gguf::TensorType;

pub use architecture::{Architecture, ArchitectureFault};
pub use file_type::FileType;
pub use role::{Role, layer_of, may_quantize};

/// What a recipe needs to know of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub name: &'a str,
    /// Row length first, as GGUF stores it.
    pub shape: &'a [u64],
    /// The type it has in the source.
    pub kind: TensorType,
}

/// A recipe with what a user asked to be done otherwise.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub file_type: FileType,
    /// One type for all tensors instead of the mix.
    pub pure: bool,
    /// Keep the output matrix as it is.
    pub leave_output: bool,
    /// Type of the output matrix.
    pub output: Option<TensorType>,
    /// Type of the token embedding.
    pub token_embedding: Option<TensorType>,
    /// Types for tensors by name, the first match counts; only where the recipe's base is a block type.
    pub by_name: Vec<(Regex, TensorType)>,
    /// Whether an importance matrix is given; some mixes differ.
    pub imatrix: bool,
}

impl Recipe {
    /// The plain recipe of `file_type`.
    pub fn new(file_type: FileType) -> Self {
        Self {
            file_type,
            pure: false,
            leave_output: false,
            output: None,
            token_embedding: None,
            by_name: Vec::new(),
            imatrix: false,
        }
    }
}

/// What a recipe decided for one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub kind: TensorType,
    /// The type it would have, had its row length been a multiple of that type's block.
    pub instead_of: Option<TensorType>,
    /// Whether the result is useless without an importance matrix.
    pub needs_imatrix: bool,
}

/// Why no type could be chosen for a tensor.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeFault {
    #[error("the tensor {tensor} is not named after a layer of this model of {layers} layers (blk.0 …)")]
    Layer { tensor: String, layers: u32 },
    #[error(
        "the tensor {tensor} has rows of {columns} elements, which is no multiple of {kind}'s block of \
         {block}, and there is no other type to fall back to; choose another type for it with --tensor-type"
    )]
    NoFallback { tensor: String, columns: u64, kind: TensorType, block: usize },
    #[error(
        "the tensor {tensor} has rows of {columns} elements, which is no multiple of {kind}'s block of \
         {block}; choose another type for it"
    )]
    Shape { tensor: String, columns: u64, kind: TensorType, block: usize },
}

impl Recipe {
    /// The type for each of `tensors`, which come in the order they will have in the file.
    pub fn plan(
        &self,
        architecture: &Architecture,
        tensors: &[Tensor<'_>],
    ) -> Result<Vec<Choice>, RecipeFault> {
        let roles: Vec<Role> = tensors.iter().map(|tensor| Role::of(tensor.name)).collect();
        let mut mixture = mixture::Mixture {
            recipe: self.file_type,
            architecture,
            imatrix: self.imatrix,
            tied: !roles.contains(&Role::Output),
            output: self.output,
            values: roles.iter().filter(|role| role.holds_values()).count() as i64,
            seen: mixture::Seen::default(),
        };
        let choose = |(tensor, role): (&Tensor<'_>, &Role)| {
            let mut choice = self.choose(tensor, *role, &mut mixture)?;
            choice.needs_imatrix = needs_imatrix(tensor.name, choice.kind, self.file_type);
            whole_blocks(tensor, choice.kind).map(|()| choice)
        };
        tensors.iter().zip(&roles).map(choose).collect()
    }

    fn choose(
        &self,
        tensor: &Tensor<'_>,
        role: Role,
        mixture: &mut mixture::Mixture<'_>,
    ) -> Result<Choice, RecipeFault> {
        let is_left = self.leave_output && role == Role::Output;
        if is_left || !may_quantize(tensor.name, tensor.shape) {
            return Ok(Choice::keep(tensor.kind));
        }
        let by_name =
            || self.by_name.iter().find(|(name, _)| name.is_match(tensor.name)).map(|(_, kind)| *kind);
        match role {
            // The per-layer embedding is a table of its own, which can be named explicitly.
            Role::TokenEmbedding if tensor.name.starts_with("per_layer") && by_name().is_some() => {}
            Role::TokenEmbedding if self.token_embedding.is_some() => {
                return Ok(Choice::keep(self.token_embedding.unwrap_or(tensor.kind)));
            }
            Role::Output if self.output.is_some() => {
                return Ok(Choice::keep(self.output.unwrap_or(tensor.kind)));
            }
            _ => {}
        }
        let base = self.file_type.base();
        if !base.is_quantized() {
            return Ok(Choice::keep(base));
        }
        let wanted = match by_name() {
            Some(kind) => kind,
            None if self.pure => base,
            None => mixture.choose(tensor, role)?,
        };
        fall_back(tensor, wanted)
    }
}

impl Choice {
    fn keep(kind: TensorType) -> Self {
        Self { kind, instead_of: None, needs_imatrix: false }
    }
}

/// `wanted`, or what stands in for it where a row of `tensor` is no whole number of its blocks.
fn fall_back(tensor: &Tensor<'_>, wanted: TensorType) -> Result<Choice, RecipeFault> {
    use TensorType as T;
    let columns = columns(tensor);
    let fits = |kind: TensorType| columns.is_multiple_of(kind.block_elements() as u64);
    if fits(wanted) {
        return Ok(Choice::keep(wanted));
    }
    let smaller = match wanted {
        T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S => T::IQ4_NL,
        T::IQ3_XXS | T::IQ3_S | T::IQ4_XS => T::IQ4_NL,
        T::Q2_0 | T::Q2_K | T::Q3_K | T::TQ1_0 | T::TQ2_0 => T::Q4_0,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        T::Q6_K => T::Q8_0,
        kind if kind.block_elements() <= 32 => kind,
        kind => {
            let (tensor, block) = (tensor.name.to_owned(), kind.block_elements());
            return Err(RecipeFault::NoFallback { tensor, columns, kind, block });
        }
    };
    let kind = if fits(smaller) { smaller } else { T::F16 };
    Ok(Choice { kind, instead_of: Some(wanted), needs_imatrix: false })
}

/// Types below three bits are guesswork without an importance matrix. One never covers the token embedding
/// and seldom the output matrix, so those may do without where their encoder can.
fn needs_imatrix(name: &str, kind: TensorType, file_type: FileType) -> bool {
    use TensorType as T;
    match kind {
        T::IQ1_S | T::IQ2_XXS | T::IQ2_XS => true,
        _ if matches!(Role::of(name), Role::TokenEmbedding | Role::Output) => false,
        T::IQ1_M | T::IQ2_S | T::IQ3_XXS => true,
        T::Q2_K => file_type == FileType::Q2_K_S,
        _ => false,
    }
}

fn whole_blocks(tensor: &Tensor<'_>, kind: TensorType) -> Result<(), RecipeFault> {
    let (columns, block) = (columns(tensor), kind.block_elements());
    if columns % block as u64 == 0 {
        return Ok(());
    }
    Err(RecipeFault::Shape { tensor: tensor.name.to_owned(), columns, kind, block })
}

fn columns(tensor: &Tensor<'_>) -> u64 {
    tensor.shape.first().copied().unwrap_or(1)
}
