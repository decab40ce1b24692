//! The forward pass of phi3, every line with its shape.

use super::{Model, Regime};
use crate::Result;
use crate::backend::{Backend, Heads, Part, Rotation};

/// Buffers of a forward pass, reused from batch to batch.
pub struct Workspace<B: Backend> {
    /// `[rows, hidden]`: the residual stream.
    x: B::Buffer,
    /// `[rows, hidden]`: normed, or what a block adds.
    y: B::Buffer,
    /// `[rows, (heads + 2 · kv_heads) · head]`, and `[rows, 2 · feed_forward]`.
    wide: B::Buffer,
    /// `[rows, heads · head]`, and `[rows, feed_forward]`.
    inner: B::Buffer,
    logits: B::Buffer,
    rotation: Rotation,
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self {
            x: B::Buffer::default(),
            y: B::Buffer::default(),
            wide: B::Buffer::default(),
            inner: B::Buffer::default(),
            logits: B::Buffer::default(),
            rotation: Rotation::default(),
        }
    }
}

/// Which rows of a batch want logits.
pub type Outputs<'a> = &'a [usize];

/// Runs `ids` (the rows of all `parts`, in order) through the model and returns the logits of the rows
/// in `outputs`, `[outputs, vocabulary]`. Each part's cache has room and gets the rows' keys and values;
/// `regimes` has one entry a part.
pub fn forward<B: Backend>(
    model: &Model,
    backend: &B,
    work: &mut Workspace<B>,
    ids: &[u32],
    parts: &mut [Part<'_, B::Cache>],
    regimes: &[Regime],
    outputs: Outputs,
) -> Result<Vec<f32>> {
    let hyper = &model.hyper;
    let heads =
        Heads { count: hyper.heads, kv_count: hyper.kv_heads, size: hyper.head, window: hyper.window };
    let Workspace { x, y, wide, inner, logits, rotation } = work;
    rotation.cos.clear();
    rotation.sin.clear();
    for (part, &regime) in parts.iter().zip(regimes) {
        model.rope.extend(rotation, regime, part.position..part.position + part.rows.len());
    }

    backend.embed(&model.embedding, ids, x)?; // [rows, hidden]
    for (i, layer) in model.layers.iter().enumerate() {
        backend.rms_norm(x, &layer.attention_norm, hyper.norm_eps, y); // [rows, hidden]
        backend.linear(&layer.qkv, y, wide)?; // [rows, q + k + v]
        backend.attention(i, &heads, rotation, wide, parts, inner); // [rows, heads · head]
        backend.linear(&layer.attention_output, inner, y)?; // [rows, hidden]
        backend.add(x, y);

        backend.rms_norm(x, &layer.feed_forward_norm, hyper.norm_eps, y); // [rows, hidden]
        backend.linear(&layer.gate_up, y, wide)?; // [rows, gate + up]
        backend.swiglu(wide, inner); // [rows, feed_forward]
        backend.linear(&layer.down, inner, y)?; // [rows, hidden]
        backend.add(x, y);
    }
    if outputs.is_empty() {
        return Ok(Vec::new());
    }
    backend.gather(x, outputs, inner); // [outputs, hidden]
    backend.rms_norm(inner, &model.output_norm, hyper.norm_eps, y); // [outputs, hidden]
    backend.linear(&model.head, y, logits)?; // [outputs, vocabulary]
    Ok(backend.read(logits))
}
