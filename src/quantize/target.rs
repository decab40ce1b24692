//! A size instead of a recipe: each tensor's type is chosen from measured errors.
//!
//! For every tensor the candidates' errors are measured on a sample of its rows. The types that minimise the
//! sum of the errors under the budget are found along the lower convex hull of error over size: always the
//! step that takes away the most error a byte comes next, which is the Lagrangian optimum.

use super::{Options, Plan, Planned, chunk, pipeline};
use crate::gguf::{Output, Source, TensorType, Value, Writer};
use crate::quant::recipe::{FileType, Recipe, Role, may_quantize};
use crate::{Error, Result, quant};

/// The size that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the file at most.
    FileBytes(u64),
    /// Bits an element of all tensors together at most.
    BitsPerElement(f64),
}

/// Types worth considering, by size. Those that are another one's equal in size and worse are left out.
const CANDIDATES: &[TensorType] = {
    use TensorType as T;
    &[
        T::IQ1_M,
        T::IQ2_XXS,
        T::IQ2_XS,
        T::IQ2_S,
        T::Q2_K,
        T::IQ3_XXS,
        T::IQ3_S,
        T::Q3_K,
        T::IQ4_XS,
        T::IQ4_NL,
        T::Q4_0,
        T::Q4_K,
        T::Q5_0,
        T::Q5_K,
        T::Q6_K,
        T::Q8_0,
    ]
};

/// Types of less than three bits that are useless, or impossible, without an importance matrix.
fn needs_weights(kind: TensorType) -> bool {
    use TensorType as T;
    matches!(kind, T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS)
}

/// Elements of a tensor that candidates are measured on.
const SAMPLE: u64 = 48 << 10;

/// How much the model's output suffers from a given noise in a tensor's result.
fn sensitivity(role: Role) -> f64 {
    match role {
        // Its noise is noise of the logits, which nothing behind it dampens.
        Role::Output => 2.0,
        // Its noise is in the input of every layer. Of 1 to 8 for both, these gave phi-tiny the least divergence.
        Role::TokenEmbedding => 4.0,
        _ => 1.0,
    }
}

/// A type that a tensor could have.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Offer {
    kind: TensorType,
    bytes: u64,
    /// Noise times sensitivity.
    cost: f64,
}

impl Plan {
    /// A plan whose output fits `budget`, with as little error as can be had for it.
    ///
    /// `options.recipe` says what is not free to choose (types by name, the output matrix …); `progress` is
    /// told how many of how many tensors have been measured.
    ///
    /// # Errors
    /// Those of [`Plan::new`]; a budget below the smallest possible size.
    pub fn for_budget(
        source: &dyn Source,
        options: &Options,
        budget: Budget,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let mut plan = Self::new(source, options)?;
        let recipe = options.recipe.clone().unwrap_or_else(|| Recipe::new(FileType::Q8_0));
        let free: Vec<usize> =
            (0..plan.tensors.len()).filter(|&at| is_free(&plan.tensors[at], &recipe)).collect();
        let tied = !plan.tensors.iter().any(|tensor| Role::of(&tensor.name) == Role::Output);

        let mut offers = Vec::with_capacity(free.len());
        let make = |index: usize, scratch: &mut chunk::Scratch, out: &mut Vec<u8>| {
            let tensor = &plan.tensors[free[index]];
            let role = match Role::of(&tensor.name) {
                Role::TokenEmbedding if tied => Role::Output,
                role => role,
            };
            measure(source, tensor, options, scratch, out).map(|offers| hull(offers, sensitivity(role)))
        };
        pipeline::run_in_order(options.threads(), free.len(), make, |index, _, hull| {
            progress(index + 1, free.len());
            offers.push(hull);
            Ok(())
        })?;

        let fixed = plan.overhead()? + plan.bytes_of(|at| !free.contains(&at));
        let allowed = match budget {
            Budget::FileBytes(bytes) => bytes.checked_sub(fixed),
            Budget::BitsPerElement(bits) => ((plan.elements() as f64 * bits / 8.0) as u64)
                .checked_sub(plan.bytes_of(|at| !free.contains(&at))),
        };
        let chosen = allowed.and_then(|allowed| solve(&offers, allowed));
        let chosen = chosen.ok_or_else(|| too_small(&offers, fixed))?;
        for ((at, offers), choice) in free.iter().zip(&offers).zip(chosen) {
            plan.tensors[*at].kind = offers[choice].kind;
            plan.tensors[*at].instead_of = None;
        }
        plan.name_file_type();
        Ok(plan)
    }

    /// Bytes of the tensors whose place is chosen, in the output.
    fn bytes_of(&self, is_meant: impl Fn(usize) -> bool) -> u64 {
        let tensors = self.tensors.iter().enumerate();
        tensors.filter(|(at, _)| is_meant(*at)).map(|(_, tensor)| tensor.bytes()).sum()
    }

    /// Bytes of the output that are no tensor's: metadata, the table of tensors, padding at its most.
    fn overhead(&self) -> Result<u64> {
        const PADDING: usize = 32;
        let mut bytes = 0;
        for part in &self.parts {
            let head = Writer::in_memory("a file's head", &part.metadata, &[])?.finish()?;
            bytes += match head {
                Output::Memory(image) => image.len() + PADDING,
                Output::File(_) => 0,
            };
        }
        // A name with its length, dimensions with their count, type and offset.
        let entry = |tensor: &Planned| 8 + tensor.name.len() + 4 + 8 * tensor.shape.len() + 4 + 8 + PADDING;
        Ok((bytes + self.tensors.iter().map(entry).sum::<usize>()) as u64)
    }

    /// States the file type that names the type of most elements.
    fn name_file_type(&mut self) {
        let mut elements = std::collections::BTreeMap::<TensorType, u64>::new();
        for tensor in &self.tensors {
            *elements.entry(tensor.kind).or_default() += tensor.elements();
        }
        let most = elements.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind);
        let named = FileType::guess(most.into_iter()) % 1024;
        if let Some(part) = self.parts.first_mut() {
            part.metadata.set("general.file_type", Value::U32(named));
        }
    }
}

/// Whether the type of `tensor` is ours to choose.
fn is_free(tensor: &Planned, recipe: &Recipe) -> bool {
    let role = Role::of(&tensor.name);
    let is_given = match role {
        Role::Output => recipe.leave_output || recipe.output.is_some(),
        Role::TokenEmbedding => recipe.token_embedding.is_some(),
        _ => false,
    };
    may_quantize(&tensor.name, &tensor.shape)
        && !is_given
        && !recipe.by_name.iter().any(|(name, _)| name.is_match(&tensor.name))
}

/// The candidates for `tensor` with their sizes and noise, smallest first; its own type at least.
fn measure(
    source: &dyn Source,
    tensor: &Planned,
    options: &Options,
    scratch: &mut chunk::Scratch,
    encoded: &mut Vec<u8>,
) -> Result<Vec<Offer>> {
    let weights = options.imatrix.as_ref().map(|imatrix| imatrix.weights_for(tensor)).transpose()?.flatten();
    let bytes = |kind: TensorType| kind.row_bytes(tensor.columns()).map(|row| row * tensor.rows());
    let usable = |kind: &TensorType| {
        quant::is_supported(*kind)
            && (weights.is_some() || !(needs_weights(*kind) || quant::needs_weights(*kind)))
            && bytes(*kind).is_some_and(|bytes| bytes < tensor.source_row_bytes() * tensor.rows())
    };
    let sample = chunk::sample(source, tensor, SAMPLE, scratch)?;
    let mut offers = Vec::new();
    for kind in CANDIDATES.iter().copied().filter(usable) {
        let noise = sample.noise(tensor, kind, weights, encoded)?;
        offers.extend(bytes(kind).map(|bytes| Offer { kind, bytes, cost: noise }));
    }
    let kind = tensor.from;
    offers.extend(bytes(kind).map(|bytes| Offer { kind, bytes, cost: 0.0 }));
    offers.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
    Ok(offers)
}

/// The offers on the lower convex hull of cost over bytes, smallest first; `offers` are sorted by bytes.
fn hull(offers: Vec<Offer>, sensitivity: f64) -> Vec<Offer> {
    let mut hull: Vec<Offer> = Vec::new();
    for offer in offers {
        let offer = Offer { cost: offer.cost * sensitivity, ..offer };
        if hull.last().is_some_and(|last| last.cost <= offer.cost) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && gain(&before, &last) <= gain(&last, &offer)
        {
            hull.pop();
        }
        hull.push(offer);
    }
    hull
}

/// Cost that a byte takes away on the way from one offer to a larger one.
fn gain(from: &Offer, to: &Offer) -> f64 {
    (from.cost - to.cost) / (to.bytes.saturating_sub(from.bytes)).max(1) as f64
}

/// Which of each tensor's offers to take so that all fit `allowed` bytes; `None` if not even the smallest do.
fn solve(hulls: &[Vec<Offer>], allowed: u64) -> Option<Vec<usize>> {
    let mut chosen = vec![0; hulls.len()];
    let smallest: u64 = hulls.iter().filter_map(|offers| offers.first()).map(|offer| offer.bytes).sum();
    let mut left = allowed.checked_sub(smallest)?;
    let mut steps: Vec<(f64, usize, usize, u64)> = Vec::new();
    for (tensor, offers) in hulls.iter().enumerate() {
        for (at, pair) in offers.windows(2).enumerate() {
            steps.push((gain(&pair[0], &pair[1]), tensor, at + 1, pair[1].bytes - pair[0].bytes));
        }
    }
    // A hull's steps get flatter, so this order never takes a tensor's second step before its first.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, tensor, at, bytes) in steps {
        if chosen[tensor] + 1 == at && bytes <= left {
            left -= bytes;
            chosen[tensor] = at;
        }
    }
    Some(chosen)
}

fn too_small(hulls: &[Vec<Offer>], fixed: u64) -> Error {
    let smallest: u64 = hulls.iter().filter_map(|offers| offers.first()).map(|offer| offer.bytes).sum();
    let bytes = smallest + fixed;
    Error::Usage(format!(
        "the model does not get that small: the smallest possible is {} ({bytes} bytes); types below three bits \
         need an importance matrix (--imatrix)",
        crate::fs::human_bytes(bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(bytes: u64, cost: f64) -> Offer {
        Offer { kind: TensorType::Q4_K, bytes, cost }
    }

    #[test]
    fn the_hull_leaves_out_what_is_never_best() {
        let offers = vec![offer(1, 8.0), offer(2, 7.9), offer(3, 2.0), offer(4, 2.5), offer(5, 0.0)];
        let sizes: Vec<_> = hull(offers, 1.0).iter().map(|offer| offer.bytes).collect();
        assert_eq!(sizes, [1, 3, 5]);
    }

    #[test]
    fn bytes_go_where_they_take_away_most_error() {
        let hulls =
            [vec![offer(10, 4.0), offer(20, 0.0)], vec![offer(10, 9.0), offer(20, 1.0), offer(30, 0.0)]];
        assert_eq!(solve(&hulls, 19), None);
        assert_eq!(solve(&hulls, 20), Some(vec![0, 0]));
        assert_eq!(solve(&hulls, 30), Some(vec![0, 1]));
        assert_eq!(solve(&hulls, 45), Some(vec![1, 1]));
        assert_eq!(solve(&hulls, 50), Some(vec![1, 2]));
    }
}
