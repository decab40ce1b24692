//! Hyper-parameters, from GGUF metadata.

use crate::gguf::{Gguf, Metadata};
use crate::{Error, Result};

/// The numbers that shape a phi3 model.
#[derive(Clone, Debug)]
pub struct Hyper {
    pub layers: usize,
    /// Elements of a hidden state.
    pub hidden: usize,
    /// Elements of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head: usize,
    pub norm_eps: f32,
    /// Tokens the model was made for.
    pub context: usize,
    /// Elements of a head that are rotated.
    pub rotary: usize,
    pub rope_base: f32,
    /// LongRoPE: the length up to which the short factors hold.
    pub original_context: usize,
    /// LongRoPE: multiplies cosines and sines.
    pub rope_attention_factor: f32,
    /// A token sees its last `window` tokens, itself included.
    pub window: usize,
}

/// Sizes beyond these are not a model but a broken file.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 28;

impl Hyper {
    /// Reads and checks the `phi3.*` keys.
    ///
    /// # Errors
    /// A missing key, a number out of range, or numbers that contradict each other.
    pub fn read(file: &Gguf) -> Result<Self> {
        let m = file.metadata();
        let at = Reader { file, m };
        let (hidden, heads) =
            (at.size("embedding_length", MAX_WIDTH)?, at.size("attention.head_count", MAX_WIDTH)?);
        let kv_heads = match at.optional("attention.head_count_kv")? {
            Some(_) => at.size("attention.head_count_kv", MAX_WIDTH)?,
            None => heads,
        };
        if hidden % heads != 0 || heads % kv_heads != 0 {
            return Err(at.fault(format!(
                "{heads} heads with {kv_heads} KV heads do not divide the embedding of {hidden} elements"
            )));
        }
        let head = hidden / heads;
        let context = at.size("context_length", MAX_CONTEXT)?;
        let rotary = at.optional("rope.dimension_count")?.map_or(head, |n| n as usize);
        if rotary == 0 || rotary > head || rotary % 2 != 0 {
            return Err(at.fault(format!(
                "phi3.rope.dimension_count is {rotary}: expected an even number from 2 to the head size, {head}"
            )));
        }
        let original = at.optional("rope.scaling.original_context_length")?.map_or(context, |n| n as usize);
        let window = at.optional("attention.sliding_window")?.filter(|&n| n > 0);
        Ok(Self {
            layers: at.size("block_count", MAX_LAYERS)?,
            hidden,
            feed_forward: at.size("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head,
            norm_eps: at.float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            context,
            rotary,
            rope_base: at.float("rope.freq_base")?.unwrap_or(10_000.0),
            original_context: original,
            rope_attention_factor: at.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            window: window.map_or(usize::MAX, |n| n as usize),
        })
    }
}

/// Reads `phi3.*` keys with errors that name the file.
struct Reader<'a> {
    file: &'a Gguf,
    m: &'a Metadata,
}

impl Reader<'_> {
    fn fault(&self, message: String) -> Error {
        Error::invalid(self.file.path(), message)
    }

    fn optional(&self, name: &str) -> Result<Option<u32>> {
        self.m.u32(&format!("phi3.{name}")).map_err(|fault| Error::invalid(self.file.path(), fault))
    }

    fn float(&self, name: &str) -> Result<Option<f32>> {
        let value =
            self.m.f32(&format!("phi3.{name}")).map_err(|fault| Error::invalid(self.file.path(), fault))?;
        match value {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.fault(format!("phi3.{name} is {x}: expected a positive number")))
            }
            other => Ok(other),
        }
    }

    fn size(&self, name: &str, most: usize) -> Result<usize> {
        let value = self
            .optional(name)?
            .ok_or_else(|| self.fault(format!("the metadata key phi3.{name} is missing")))?;
        let value = value as usize;
        if value == 0 || value > most {
            return Err(self.fault(format!("phi3.{name} is {value}: expected 1 to {most}")));
        }
        Ok(value)
    }
}
