//! A model's weights, bound to its hyper-parameters.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Architecture, Hyper, Rope};
use crate::backend::{Gate, Matrix, Mixture, Vector};
use crate::gguf::Gguf;
use crate::{Error, Result, quant};

/// A model, its matrices left in the mapped file.
pub struct Model {
    pub hyper: Hyper,
    pub rope: Rope,
    /// `[vocabulary, hidden]`.
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    /// Of `[hidden]`.
    pub output_norm: Norm,
    /// `[vocabulary, hidden]`; the embedding where the model ties them.
    pub head: Linear,
    /// Added to the logits, `[vocabulary]`: what the model never says gets the lowest number there is.
    pub unused: Option<Vector>,
    file: Arc<Gguf>,
}

/// What makes the logits of the tokens in `ids` the lowest number when it is added to them, and leaves the others.
fn lowest(ids: &[i32], vocabulary: usize) -> Vector {
    let mut values = vec![0.0; vocabulary];
    for id in ids.iter().filter_map(|id| usize::try_from(*id).ok()) {
        if let Some(value) = values.get_mut(id) {
            *value = f32::MIN;
        }
    }
    Vector::new(values)
}

/// One transformer layer.
pub struct Layer {
    /// Of `[hidden]`.
    pub attention_norm: Norm,
    pub qkv: Qkv,
    /// `[hidden, heads · head]`.
    pub attention_output: Linear,
    /// Of `[hidden]`. None in Phi-2, whose feed-forward layer stands beside the attention and reads the same norm.
    pub feed_forward_norm: Option<Norm>,
    pub feed_forward: FeedForward,
}

/// `x · weightᵀ + bias`.
pub struct Linear {
    pub weight: Matrix,
    /// As many elements as the weight has rows.
    pub bias: Option<Vector>,
}

/// A normalisation's parameters, of the width of what it normalises.
pub enum Norm {
    /// `x / rms(x) · weight`.
    Rms { weight: Vector },
    /// `(x − mean(x)) / std(x) · weight + bias`.
    Layer { weight: Vector, bias: Vector },
}

/// The projection to queries, keys and values.
pub enum Qkv {
    /// `[(heads + 2 · kv_heads) · head, hidden]`: queries, keys, values.
    Fused(Linear),
    /// `[heads · head, hidden]` and twice `[kv_heads · head, hidden]`.
    Split([Linear; 3]),
}

/// The feed-forward part of a layer.
pub enum FeedForward {
    /// `down(gelu(up(x)))`, with matrices `[feed_forward, hidden]` and `[hidden, feed_forward]`.
    Gelu {
        up: Linear,
        down: Linear,
    },
    /// `down(gate(gate(x), up(x)))`; gate and up are one matrix `[2 · feed_forward, hidden]`.
    Gated {
        gate_up: Linear,
        gate: Gate,
        down: Linear,
    },
    Experts(Experts),
}

/// A mixture of experts, each of which is a SwiGLU of its own.
pub struct Experts {
    /// `[experts, hidden]`.
    pub router: Matrix,
    /// An expert each: `[feed_forward, hidden]`.
    pub gate: Vec<Matrix>,
    /// An expert each: `[feed_forward, hidden]`.
    pub up: Vec<Matrix>,
    /// An expert each: `[hidden, feed_forward]`.
    pub down: Vec<Matrix>,
    /// SparseMixer's threshold.
    pub jitter: f32,
}

/// Experts that a token goes through.
pub const EXPERTS_USED: usize = Mixture::USED;

impl Model {
    /// Binds the tensors of `file`, each checked against the hyper-parameters.
    ///
    /// # Errors
    /// Another architecture; a key or tensor that is missing, or of another shape; a type that cannot be computed with.
    pub fn load(file: Arc<Gguf>) -> Result<Self> {
        let hyper = Hyper::read(&file)?;
        Self::bind(&Binder { file: &file, hyper, survey: None })
    }

    /// Everything that is wrong with `file`'s tensors and hyper-parameters, where [`Self::load`] stops at the first.
    pub fn survey(file: &Arc<Gguf>) -> Survey {
        let hyper = match Hyper::read(file) {
            Ok(hyper) => hyper,
            Err(fault) => return Survey { faults: vec![fault], bound: BTreeSet::new() },
        };
        let bind = Binder { file, hyper, survey: Some(RefCell::default()) };
        let bound = Self::bind(&bind);
        let mut survey = bind.survey.map(RefCell::into_inner).unwrap_or_default();
        survey.faults.extend(bound.err());
        survey
    }

    fn bind(bind: &Binder) -> Result<Self> {
        let (file, hyper) = (bind.file, bind.hyper.clone());
        let embedding = bind.matrix("token_embd.weight", None, hyper.hidden)?;
        let vocabulary = embedding.rows;
        let layers = (0..hyper.layers).map(|i| bind.layer(i)).collect::<Result<Vec<_>>>()?;
        let output_norm = bind.norm("output_norm")?;
        let head = match file.tensor("output.weight") {
            // Where the embedding itself is at fault, it does not say how many tokens there are.
            Some(_) => {
                bind.matrix("output.weight", Some(vocabulary).filter(|&rows| rows > 0), hyper.hidden)?
            }
            None => embedding.clone(),
        };
        let head = Linear { weight: head, bias: bind.optional_vector("output.bias", vocabulary)? };
        let factors = |name: &str| bind.optional_vector(name, hyper.rotary / 2);
        let (short, long) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?);
        let rope = Rope::new(&hyper, short.as_deref(), long.as_deref());
        let unused = file.metadata().i32s("phi.unused_token_ids");
        let unused = unused.map_err(|fault| Error::invalid(file.path(), fault))?.unwrap_or_default();
        let unused = (!unused.is_empty()).then(|| lowest(unused, vocabulary));
        Ok(Self { rope, embedding, layers, output_norm, head, unused, hyper, file: Arc::clone(file) })
    }

    /// The file the weights are in.
    pub fn file(&self) -> &Arc<Gguf> {
        &self.file
    }

    /// Tokens of the vocabulary, and logits of a position.
    pub fn vocabulary(&self) -> usize {
        self.embedding.rows
    }

    /// Bytes of weights that are read to compute one token.
    pub fn bytes_per_token(&self) -> u64 {
        let bytes = |m: &Matrix| (m.row_bytes() * m.rows) as u64;
        let layers: u64 = self.layers.iter().flat_map(Layer::used_matrices).map(bytes).sum();
        layers + bytes(&self.head.weight) + self.embedding.row_bytes() as u64
    }
}

impl Layer {
    /// All its matrices.
    pub fn matrices(&self) -> Vec<&Matrix> {
        self.some_matrices(usize::MAX)
    }

    /// Those of queries, keys and values.
    pub fn qkv_matrices(&self) -> Vec<&Matrix> {
        match &self.qkv {
            Qkv::Fused(linear) => vec![&linear.weight],
            Qkv::Split(parts) => parts.iter().map(|part| &part.weight).collect(),
        }
    }

    /// Those that a token is multiplied with; of experts, as many as it uses.
    pub fn used_matrices(&self) -> Vec<&Matrix> {
        self.some_matrices(EXPERTS_USED)
    }

    /// All of its matrices but experts beyond the first `most`.
    fn some_matrices(&self, most: usize) -> Vec<&Matrix> {
        let mut all = self.qkv_matrices();
        all.push(&self.attention_output.weight);
        match &self.feed_forward {
            FeedForward::Gelu { up: wide, down } | FeedForward::Gated { gate_up: wide, down, .. } => {
                all.extend([&wide.weight, &down.weight]);
            }
            FeedForward::Experts(experts) => {
                all.push(&experts.router);
                let parts = [&experts.gate, &experts.up, &experts.down];
                all.extend(parts.iter().flat_map(|part| part.iter().take(most)));
            }
        }
        all
    }
}

/// What [`Model::survey`] finds.
#[derive(Debug, Default)]
pub struct Survey {
    pub faults: Vec<Error>,
    /// Numbers of the tensors that the model has a use for.
    pub bound: BTreeSet<usize>,
}

struct Binder<'a> {
    file: &'a Arc<Gguf>,
    hyper: Hyper,
    /// Where faults are noted instead of ending the binding.
    survey: Option<RefCell<Survey>>,
}

impl Binder<'_> {
    fn layer(&self, i: usize) -> Result<Layer> {
        let hyper = &self.hyper;
        let name = |part: &str| format!("blk.{i}.{part}");
        let (q_rows, kv_rows) = (hyper.heads * hyper.head, hyper.kv_heads * hyper.head);
        let split = ["attn_q", "attn_k", "attn_v"].map(|part| name(&format!("{part}.weight")));
        let fused = split.iter().all(|name| self.file.tensor(name).is_none());
        Ok(Layer {
            attention_norm: self.norm(&name("attn_norm"))?,
            qkv: if fused {
                Qkv::Fused(self.linear(&name("attn_qkv"), q_rows + 2 * kv_rows, hyper.hidden)?)
            } else {
                Qkv::Split([
                    self.linear(&name("attn_q"), q_rows, hyper.hidden)?,
                    self.linear(&name("attn_k"), kv_rows, hyper.hidden)?,
                    self.linear(&name("attn_v"), kv_rows, hyper.hidden)?,
                ])
            },
            attention_output: self.linear(&name("attn_output"), hyper.hidden, q_rows)?,
            feed_forward_norm: match hyper.architecture {
                Architecture::Phi2 => None,
                _ => Some(self.norm(&name("ffn_norm"))?),
            },
            feed_forward: self.feed_forward(i)?,
        })
    }

    fn feed_forward(&self, i: usize) -> Result<FeedForward> {
        let Hyper { hidden, feed_forward, .. } = self.hyper;
        let wide = |rows: usize| self.linear(&format!("blk.{i}.ffn_up"), rows, hidden);
        let down = || self.linear(&format!("blk.{i}.ffn_down"), hidden, feed_forward);
        Ok(match self.hyper.architecture {
            Architecture::Phi2 => FeedForward::Gelu { up: wide(feed_forward)?, down: down()? },
            Architecture::Phi3 => {
                FeedForward::Gated { gate_up: wide(2 * feed_forward)?, gate: Gate::Swiglu, down: down()? }
            }
            Architecture::Phi3Small => FeedForward::Gated {
                gate_up: wide(2 * feed_forward)?,
                gate: Gate::Gegelu { limit: self.hyper.gelu_limit },
                down: down()?,
            },
            Architecture::PhiMoe => FeedForward::Experts(self.experts(i)?),
        })
    }

    fn experts(&self, i: usize) -> Result<Experts> {
        let Hyper { hidden, feed_forward, experts, .. } = self.hyper;
        let stack = |part: &str, rows: usize, columns: usize| -> Result<Vec<Matrix>> {
            let name = format!("blk.{i}.ffn_{part}_exps.weight");
            let whole = self.matrix(&name, Some(experts * rows), columns)?;
            if whole.rows < experts * rows {
                // The stand-in of a survey.
                return Ok(vec![whole; experts]);
            }
            Ok((0..experts).map(|expert| whole.rows_of(expert * rows, rows)).collect())
        };
        Ok(Experts {
            router: self.matrix(&format!("blk.{i}.ffn_gate_inp.weight"), Some(experts), hidden)?,
            gate: stack("gate", feed_forward, hidden)?,
            up: stack("up", feed_forward, hidden)?,
            down: stack("down", hidden, feed_forward)?,
            jitter: self.hyper.router_jitter,
        })
    }

    /// A weight and its bias: Phi-2 and Phi-3-small have one everywhere; in others it counts where there is one.
    fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), Some(rows), columns)?;
        let bias = format!("{name}.bias");
        let bias = match self.hyper.architecture {
            Architecture::Phi2 | Architecture::Phi3Small => Some(self.vector(&bias, rows)?),
            Architecture::Phi3 | Architecture::PhiMoe => self.optional_vector(&bias, rows)?,
        };
        Ok(Linear { weight, bias })
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let hidden = self.hyper.hidden;
        let weight = self.vector(&format!("{name}.weight"), hidden)?;
        Ok(match self.hyper.architecture {
            Architecture::Phi3 => Norm::Rms { weight },
            _ => Norm::Layer { weight, bias: self.vector(&format!("{name}.bias"), hidden)? },
        })
    }

    /// In a survey, notes a fault and goes on with a stand-in.
    fn or_else<T>(&self, result: Result<T>, stand_in: impl FnOnce() -> T) -> Result<T> {
        match (result, &self.survey) {
            (Err(fault), Some(survey)) if !self.file.tensors().is_empty() => {
                survey.borrow_mut().faults.push(fault);
                Ok(stand_in())
            }
            (result, _) => result,
        }
    }

    /// A matrix of `columns`, and of `rows` (of all experts together) unless that is for the file to say.
    fn matrix(&self, name: &str, rows: Option<usize>, columns: usize) -> Result<Matrix> {
        let stand_in = || {
            let mut matrix = Matrix::new(Arc::clone(self.file), 0);
            matrix.rows = 0;
            matrix
        };
        self.or_else(self.try_matrix(name, rows, columns), stand_in)
    }

    /// A vector of `length`, decoded.
    fn vector(&self, name: &str, length: usize) -> Result<Vector> {
        self.or_else(self.try_vector(name, length), || vec![1.0; length]).map(Vector::new)
    }

    /// The same; `None` if there is no such tensor.
    fn optional_vector(&self, name: &str, length: usize) -> Result<Option<Vector>> {
        self.file.tensor(name).map(|_| self.vector(name, length)).transpose()
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.file.tensors().iter().position(|tensor| tensor.name == name);
        let index = found.ok_or_else(|| {
            let architecture = self.hyper.architecture.name();
            Error::invalid(
                self.file.path(),
                format!("the tensor {name} is missing: the file is not a complete {architecture} model"),
            )
        })?;
        if let Some(survey) = &self.survey {
            survey.borrow_mut().bound.insert(index);
        }
        Ok(index)
    }

    fn try_matrix(&self, name: &str, rows: Option<usize>, columns: usize) -> Result<Matrix> {
        let index = self.find(name)?;
        let info = &self.file.tensors()[index];
        let fits = info.shape.len() <= 3
            && info.columns() == columns as u64
            && info.rows() > 0
            && rows.is_none_or(|rows| info.rows() == rows as u64);
        if !fits {
            let rows = rows.map_or("any number of rows".to_owned(), |rows| format!("{rows} rows"));
            return Err(Error::invalid(
                self.file.path(),
                format!(
                    "the tensor {name} has the shape {:?}: the metadata asks for {columns} columns and {rows}",
                    info.shape
                ),
            ));
        }
        if !quant::is_supported(info.kind) {
            return Err(Error::Unsupported(format!(
                "{}: the tensor {name} is {}, a type that cannot be computed with",
                self.file.path().display(),
                info.kind
            )));
        }
        Ok(Matrix::new(Arc::clone(self.file), index))
    }

    fn try_vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let index = self.find(name)?;
        let info = &self.file.tensors()[index];
        if info.elements() != length as u64 {
            return Err(Error::invalid(
                self.file.path(),
                format!(
                    "the tensor {name} has the shape {:?}: the metadata asks for {length} elements",
                    info.shape
                ),
            ));
        }
        let mut values = vec![0.0; length];
        quant::decode(info.kind, self.file.data(info), &mut values)?;
        Ok(values)
    }
}
