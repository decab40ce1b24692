//! The forward pass, every line with its shape.

use super::experts::{ExpertBuffers, mixture};
use super::weights::{FeedForward, Linear, Norm, Qkv};
use super::{Model, Regime};
use crate::Result;
use crate::backend::{Backend, Heads, Largest, Part, Rotation};

/// Buffers of a forward pass, reused from batch to batch.
pub struct Workspace<B: Backend> {
    /// `[rows, hidden]`: the residual stream.
    x: B::Buffer,
    /// `[rows, hidden]`: normed.
    y: B::Buffer,
    /// `[rows, hidden]`: what a block adds.
    z: B::Buffer,
    /// `[rows, (heads + 2 · kv_heads) · head]`, and `[rows, 2 · feed_forward]`.
    wide: B::Buffer,
    /// `[rows, heads · head]`, and `[rows, feed_forward]`.
    inner: B::Buffer,
    /// Queries, keys and values where they are projected apart.
    split: [B::Buffer; 3],
    experts: ExpertBuffers<B>,
    /// `[outputs, vocabulary]`.
    logits: B::Buffer,
    /// Rows of the last pass that have logits.
    outputs: usize,
    rotation: Rotation,
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self {
            x: B::Buffer::default(),
            y: B::Buffer::default(),
            z: B::Buffer::default(),
            wide: B::Buffer::default(),
            inner: B::Buffer::default(),
            split: Default::default(),
            experts: ExpertBuffers::default(),
            logits: B::Buffer::default(),
            outputs: 0,
            rotation: Rotation::default(),
        }
    }
}

impl<B: Backend> Workspace<B> {
    /// The logits that [`forward`] left, `[outputs, vocabulary]`.
    ///
    /// # Errors
    /// What went wrong on a device.
    pub fn logits(&self, backend: &B) -> Result<Vec<f32>> {
        if self.outputs == 0 { Ok(Vec::new()) } else { backend.read(&self.logits) }
    }

    /// The `count` highest of each row's logits, where `backend` finds them in less time than [`Self::logits`] takes.
    ///
    /// # Errors
    /// What went wrong on a device.
    pub fn highest(&self, backend: &B, count: usize) -> Result<Option<Vec<Largest>>> {
        if self.outputs == 0 { Ok(None) } else { backend.largest(&self.logits, count) }
    }
}

/// Which rows of a batch want logits.
pub type Outputs<'a> = &'a [usize];

/// Runs `ids` (the rows of all `parts`, in order) through the model and leaves the logits of the rows in `outputs`
/// in `work`, which hands them out. Each part's cache has room and gets the rows' keys and values; `regimes` has one
/// entry a part.
pub fn forward<B: Backend>(
    model: &Model,
    backend: &B,
    work: &mut Workspace<B>,
    ids: &[u32],
    parts: &mut [Part<'_, B::Cache>],
    regimes: &[Regime],
    outputs: Outputs,
) -> Result<()> {
    let hyper = &model.hyper;
    let eps = hyper.norm_eps;
    work.outputs = outputs.len();
    let Workspace { x, y, z, wide, inner, split, experts, logits, rotation, .. } = work;
    rotation.clear();
    for (part, &regime) in parts.iter().zip(regimes) {
        model.rope.extend(rotation, regime, part.position..part.position + part.rows.len());
    }

    backend.embed(&model.embedding, ids, x)?; // [rows, hidden]
    backend.scale(x, hyper.embedding_scale);
    for (i, layer) in model.layers.iter().enumerate() {
        backend.begin_layer(i, x)?;
        norm(backend, &layer.attention_norm, eps, x, y); // [rows, hidden]
        project(backend, &layer.qkv, y, split, wide)?; // [rows, q + k + v]
        let heads = Heads {
            count: hyper.heads,
            kv_count: hyper.kv_heads,
            size: hyper.head,
            scale: hyper.attention_scale,
            window: hyper.window,
            sparse: hyper.sparse(i),
        };
        backend.attention(i, &heads, rotation, wide, parts, inner)?; // [rows, heads · head]
        if i + 1 == model.layers.len() && !backend.wants_every_row() {
            // Nothing else sees the other rows now: from here on rows are those of `outputs`.
            if outputs.is_empty() {
                return Ok(());
            }
            let is_every_row = outputs.iter().copied().eq(0..ids.len());
            for rows in [&mut *x, &mut *y, &mut *inner].into_iter().filter(|_| !is_every_row) {
                backend.gather(rows, outputs, z);
                std::mem::swap(rows, z);
            }
        }
        linear_add(backend, &layer.attention_output, inner, z, x)?; // [rows, hidden]

        if let Some(weights) = &layer.feed_forward_norm {
            norm(backend, weights, eps, x, y); // [rows, hidden]
        }
        match &layer.feed_forward {
            FeedForward::Gelu { up, down } => {
                linear(backend, up, y, inner)?; // [rows, feed_forward]
                backend.gelu(inner);
                linear_add(backend, down, inner, z, x)?; // [rows, hidden]
            }
            FeedForward::Gated { gate_up, gate, down } => {
                let (weight, bias) = (&gate_up.weight, gate_up.bias.as_ref());
                backend.linear_gate(weight, bias, *gate, y, wide, inner)?; // [rows, feed_forward]
                linear_add(backend, down, inner, z, x)?; // [rows, hidden]
            }
            FeedForward::Experts(weights) => {
                mixture(backend, weights, y, experts, z)?; // [rows, hidden]
                backend.add(x, z);
            }
        }
    }
    if outputs.is_empty() {
        return Ok(());
    }
    if backend.wants_every_row() {
        backend.gather(x, outputs, z);
        std::mem::swap(x, z);
    }
    norm(backend, &model.output_norm, eps, x, y); // [outputs, hidden]
    linear(backend, &model.head, y, logits)?; // [outputs, vocabulary]
    backend.scale(logits, hyper.logit_scale);
    if let Some(unused) = &model.unused {
        backend.add_bias(logits, unused);
    }
    Ok(())
}

fn norm<B: Backend>(backend: &B, norm: &Norm, eps: f32, x: &B::Buffer, out: &mut B::Buffer) {
    match norm {
        Norm::Rms { weight } => backend.rms_norm(x, weight, eps, out),
        Norm::Layer { weight, bias } => backend.layer_norm(x, weight, bias, eps, out),
    }
}

fn linear<B: Backend>(backend: &B, linear: &Linear, x: &B::Buffer, out: &mut B::Buffer) -> Result<()> {
    backend.linear_bias(&linear.weight, linear.bias.as_ref(), x, out)
}

/// `sum += x · weightᵀ + bias`.
fn linear_add<B: Backend>(
    backend: &B,
    linear: &Linear,
    x: &B::Buffer,
    scratch: &mut B::Buffer,
    sum: &mut B::Buffer,
) -> Result<()> {
    backend.linear_add(&linear.weight, linear.bias.as_ref(), x, scratch, sum)
}

/// Queries, keys and values of each row, side by side in `out`.
fn project<B: Backend>(
    backend: &B,
    qkv: &Qkv,
    x: &B::Buffer,
    split: &mut [B::Buffer; 3],
    out: &mut B::Buffer,
) -> Result<()> {
    match qkv {
        Qkv::Fused(weights) => linear(backend, weights, x, out),
        Qkv::Split(parts) => {
            for (weights, part) in parts.iter().zip(split.iter_mut()) {
                linear(backend, weights, x, part)?;
            }
            let [q, k, v] = &*split;
            backend.concat(&[q, k, v], out);
            Ok(())
        }
    }
}
