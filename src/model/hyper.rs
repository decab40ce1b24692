//! Hyper-parameters, from GGUF metadata.

use crate::backend::BlockSparse;
use crate::gguf::{Gguf, Metadata};
use crate::{Error, Result};

/// Which kind of Phi a file is: `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Phi-1, Phi-1.5, Phi-2: attention and feed-forward layer side by side.
    Phi2,
    /// Phi-3-mini and -medium, Phi-3.5-mini, Phi-4, Phi-4-mini.
    Phi3,
    /// Phi-3-small: block-sparse attention, muP, GEGELU.
    Phi3Small,
    /// Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE.
    PhiMoe,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Phi2, Self::Phi3, Self::Phi3Small, Self::PhiMoe];

    /// The name in GGUF.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Phi2 => "phi2",
            Self::Phi3 => "phi3",
            Self::Phi3Small => "phi3small",
            Self::PhiMoe => "phimoe",
        }
    }

    /// The architecture of `file`.
    ///
    /// # Errors
    /// Another architecture, or none; the message lists those that are supported.
    pub fn of(file: &Gguf) -> Result<Self> {
        let name = file.metadata().string("general.architecture");
        let name = name.map_err(|fault| Error::invalid(file.path(), fault))?;
        Self::ALL.into_iter().find(|known| Some(known.name()) == name).ok_or_else(|| {
            let named =
                name.map_or("no architecture".to_owned(), |name| format!("the architecture \"{name}\""));
            Error::Unsupported(format!(
                "{}: the model has {named}; supported: {}",
                file.path().display(),
                super::SUPPORTED.join(", ")
            ))
        })
    }
}

/// The numbers that shape a model.
#[derive(Clone, Debug)]
pub struct Hyper {
    pub architecture: Architecture,
    pub layers: usize,
    /// Elements of a hidden state.
    pub hidden: usize,
    /// Elements of the feed-forward layer, or of one expert's.
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
    /// LongRoPE: multiplies cosines and sines, with the short and with the long factors.
    pub rope_scale: [f32; 2],
    /// A token sees its last `window` tokens, itself included.
    pub window: usize,
    /// Attention scores are multiplied by it.
    pub attention_scale: f32,
    /// Phi-3-small: what a block of queries sees, and every how many layers all is seen instead (0: never).
    pub block_sparse: Option<(BlockSparse, usize)>,
    /// muP: embeddings and logits are multiplied by these; 1 elsewhere.
    pub embedding_scale: f32,
    pub logit_scale: f32,
    /// GEGELU's clamp; infinite elsewhere.
    pub gelu_limit: f32,
    /// Experts of a layer; 0 in a dense model.
    pub experts: usize,
    /// SparseMixer's threshold.
    pub router_jitter: f32,
}

/// Sizes beyond these are not a model but a broken file.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 28;
const MAX_EXPERTS: usize = 512;

/// The published models' `router_jitter_noise`, for files that do not say.
const ROUTER_JITTER: f32 = 0.01;

/// Phi-3.5-MoE's `short_mscale` and `long_mscale`, for files that only have the factor that other models compute.
const PHI35_MOE_SCALE: f32 = 1.243_163_1;

impl Hyper {
    /// Reads and checks the architecture's keys.
    ///
    /// # Errors
    /// Another architecture; a missing key, a number out of range, or numbers that contradict each other.
    pub fn read(file: &Gguf) -> Result<Self> {
        let architecture = Architecture::of(file)?;
        let at = Reader { file, m: file.metadata(), architecture: architecture.name() };
        let (hidden, heads) =
            (at.size("embedding_length", MAX_WIDTH)?, at.size("attention.head_count", MAX_WIDTH)?);
        let kv_heads = match at.optional("attention.head_count_kv")? {
            Some(_) => at.size("attention.head_count_kv", MAX_WIDTH)?,
            None => heads,
        };
        let given_head = at.optional("attention.key_length")?.map(|head| head as usize);
        if (given_head.is_none() && hidden % heads != 0) || heads % kv_heads != 0 {
            return Err(at.fault(format!(
                "{heads} heads with {kv_heads} KV heads do not divide the embedding of {hidden} elements"
            )));
        }
        let head = given_head.unwrap_or(hidden / heads);
        if head == 0 || head > MAX_WIDTH || heads > MAX_WIDTH / head {
            return Err(at.fault(format!("{heads} heads of {head} elements: expected at most {MAX_WIDTH}")));
        }
        let context = at.size("context_length", MAX_CONTEXT)?;
        let rotary = at.optional("rope.dimension_count")?.map_or(head, |n| n as usize);
        if rotary == 0 || rotary > head || rotary % 2 != 0 {
            return Err(at.fault(format!(
                "{}.rope.dimension_count is {rotary}: expected an even number from 2 to the head size, {head}",
                architecture.name()
            )));
        }
        let original = at.optional("rope.scaling.original_context_length")?.map_or(context, |n| n as usize);
        let window = at.optional("attention.sliding_window")?.filter(|&n| n > 0);
        let mut factor = at.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let (layers, feed_forward) =
            (at.size("block_count", MAX_LAYERS)?, at.size("feed_forward_length", MAX_WIDTH)?);
        if (architecture, layers, hidden, feed_forward) == (Architecture::PhiMoe, 32, 4096, 6400) {
            factor = PHI35_MOE_SCALE;
        }
        let scale = |name: &str| at.own_float(name).map(|scale| scale.unwrap_or(factor));
        let norm = match architecture {
            Architecture::Phi2 | Architecture::Phi3Small => "attention.layer_norm_epsilon",
            Architecture::Phi3 | Architecture::PhiMoe => "attention.layer_norm_rms_epsilon",
        };
        Ok(Self {
            architecture,
            layers,
            hidden,
            feed_forward,
            heads,
            kv_heads,
            head,
            norm_eps: at.float(norm)?.unwrap_or(1e-5),
            context,
            rotary,
            rope_base: at.float("rope.freq_base")?.unwrap_or(10_000.0),
            original_context: original,
            rope_scale: [scale("phi.rope.short_scale")?, scale("phi.rope.long_scale")?],
            window: window.map_or(usize::MAX, |n| n as usize),
            attention_scale: at.float("attention.scale")?.unwrap_or(1.0 / (head as f32).sqrt()),
            block_sparse: at.block_sparse(architecture)?,
            embedding_scale: at.float("embedding_scale")?.unwrap_or(1.0),
            logit_scale: at.float("logit_scale")?.unwrap_or(1.0),
            gelu_limit: at.float("feed_forward.limit")?.unwrap_or(f32::INFINITY),
            experts: at.experts(architecture)?,
            router_jitter: at.own_jitter()?,
        })
    }

    /// What layer `layer`'s queries see of the blocks before theirs; `None` for everything.
    pub fn sparse(&self, layer: usize) -> Option<BlockSparse> {
        let (sparse, dense_every) = self.block_sparse?;
        let dense = dense_every > 0 && (layer + 1).is_multiple_of(dense_every);
        (!dense).then_some(sparse)
    }
}

/// Reads an architecture's keys with errors that name the file.
struct Reader<'a> {
    file: &'a Gguf,
    m: &'a Metadata,
    architecture: &'static str,
}

impl Reader<'_> {
    fn fault(&self, message: String) -> Error {
        Error::invalid(self.file.path(), message)
    }

    fn optional(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("{}.{name}", self.architecture);
        self.m.u32(&key).map_err(|fault| Error::invalid(self.file.path(), fault))
    }

    fn float(&self, name: &str) -> Result<Option<f32>> {
        self.own_float(&format!("{}.{name}", self.architecture))
    }

    /// A positive number under the whole key `key`.
    fn own_float(&self, key: &str) -> Result<Option<f32>> {
        let value = self.m.f32(key).map_err(|fault| Error::invalid(self.file.path(), fault))?;
        match value {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.fault(format!("{key} is {x}: expected a positive number")))
            }
            other => Ok(other),
        }
    }

    /// SparseMixer's threshold, which may be 0.
    fn own_jitter(&self) -> Result<f32> {
        const KEY: &str = "phi.router.jitter_noise";
        match self.m.f32(KEY).map_err(|fault| Error::invalid(self.file.path(), fault))? {
            Some(x) if !(x.is_finite() && x >= 0.0) => {
                Err(self.fault(format!("{KEY} is {x}: expected a number of at least 0")))
            }
            other => Ok(other.unwrap_or(ROUTER_JITTER)),
        }
    }

    fn size(&self, name: &str, most: usize) -> Result<usize> {
        let key = format!("{}.{name}", self.architecture);
        let value =
            self.optional(name)?.ok_or_else(|| self.fault(format!("the metadata key {key} is missing")))?;
        let value = value as usize;
        if value == 0 || value > most {
            return Err(self.fault(format!("{key} is {value}: expected 1 to {most}")));
        }
        Ok(value)
    }

    fn experts(&self, architecture: Architecture) -> Result<usize> {
        if architecture != Architecture::PhiMoe {
            return Ok(0);
        }
        let used = self.size("expert_used_count", MAX_EXPERTS)?;
        let count = self.size("expert_count", MAX_EXPERTS)?;
        // SparseMixer is defined for a first and a second expert.
        if used != 2 || count < 2 {
            return Err(self
                .fault(format!("{used} of {count} experts are used for a token: expected 2 of at least 2")));
        }
        Ok(count)
    }

    fn block_sparse(&self, architecture: Architecture) -> Result<Option<(BlockSparse, usize)>> {
        if architecture != Architecture::Phi3Small {
            return Ok(None);
        }
        let part = |name: &str| self.size(&format!("attention.block_sparse.{name}"), MAX_CONTEXT);
        let or_zero = |name: &str| {
            self.optional(&format!("attention.block_sparse.{name}")).map(|n| n.unwrap_or(0) as usize)
        };
        let sparse = BlockSparse {
            block: part("block_size")?,
            local: part("local_blocks")?,
            stride: part("vertical_stride")?,
            head_step: or_zero("head_step")?.min(MAX_CONTEXT),
        };
        if !sparse.block.is_multiple_of(BlockSparse::GRAIN) {
            return Err(Error::Unsupported(format!(
                "{}: attention blocks of {} tokens are not supported; expected a multiple of {}",
                self.file.path().display(),
                sparse.block,
                BlockSparse::GRAIN
            )));
        }
        Ok(Some((sparse, or_zero("dense_every")?)))
    }
}
