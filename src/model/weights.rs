//! A model's weights, bound to its hyper-parameters.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Hyper, Rope, SUPPORTED};
use crate::backend::Matrix;
use crate::gguf::Gguf;
use crate::{Error, Result, quant};

/// A phi3 model, its matrices left in the mapped file.
pub struct Model {
    pub hyper: Hyper,
    pub rope: Rope,
    /// `[vocabulary, hidden]`.
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; the embedding where the model ties them.
    pub head: Matrix,
    file: Arc<Gguf>,
}

/// One transformer layer.
pub struct Layer {
    /// `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// `[(heads + 2 · kv_heads) · head, hidden]`: queries, keys, values.
    pub qkv: Matrix,
    /// `[hidden, heads · head]`.
    pub attention_output: Matrix,
    /// `[hidden]`.
    pub feed_forward_norm: Vec<f32>,
    /// `[2 · feed_forward, hidden]`: gate, up.
    pub gate_up: Matrix,
    /// `[hidden, feed_forward]`.
    pub down: Matrix,
}

impl Model {
    /// Binds the tensors of `file`, each checked against the hyper-parameters.
    ///
    /// # Errors
    /// Another architecture; a key or tensor that is missing, or of another shape; a type that cannot be computed with.
    pub fn load(file: Arc<Gguf>) -> Result<Self> {
        Self::bind(&Binder { file: &file, survey: None })
    }

    /// Everything that is wrong with `file`'s tensors and hyper-parameters, where [`Self::load`] stops at the first.
    pub fn survey(file: &Arc<Gguf>) -> Survey {
        let bind = Binder { file, survey: Some(RefCell::default()) };
        let bound = Self::bind(&bind);
        let mut survey = bind.survey.map(RefCell::into_inner).unwrap_or_default();
        survey.faults.extend(bound.err());
        survey
    }

    fn bind(bind: &Binder) -> Result<Self> {
        let file = bind.file;
        let architecture = file.metadata().string("general.architecture");
        let architecture = architecture.map_err(|fault| Error::invalid(file.path(), fault))?;
        if architecture != Some("phi3") {
            let named = architecture
                .map_or("no architecture".to_owned(), |name| format!("the architecture \"{name}\""));
            return Err(Error::Unsupported(format!(
                "{}: the model has {named}; supported: {}",
                file.path().display(),
                SUPPORTED.join(", ")
            )));
        }
        let hyper = Hyper::read(file)?;
        let (hidden, head) = (hyper.hidden, hyper.head);
        let embedding = bind.matrix("token_embd.weight", None, hidden)?;
        let vocabulary = embedding.rows;
        let layers = (0..hyper.layers)
            .map(|i| {
                let name = |part: &str| format!("blk.{i}.{part}.weight");
                let qkv_rows = (hyper.heads + 2 * hyper.kv_heads) * head;
                Ok(Layer {
                    attention_norm: bind.vector(&name("attn_norm"), hidden)?,
                    qkv: bind.matrix(&name("attn_qkv"), Some(qkv_rows), hidden)?,
                    attention_output: bind.matrix(&name("attn_output"), Some(hidden), hyper.heads * head)?,
                    feed_forward_norm: bind.vector(&name("ffn_norm"), hidden)?,
                    gate_up: bind.matrix(&name("ffn_up"), Some(2 * hyper.feed_forward), hidden)?,
                    down: bind.matrix(&name("ffn_down"), Some(hidden), hyper.feed_forward)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let output_norm = bind.vector("output_norm.weight", hidden)?;
        let head_matrix = match file.tensor("output.weight") {
            // Where the embedding itself is at fault, it does not say how many tokens there are.
            Some(_) => bind.matrix("output.weight", Some(vocabulary).filter(|&rows| rows > 0), hidden)?,
            None => embedding.clone(),
        };
        let factors = |name: &str| file.tensor(name).map(|_| bind.vector(name, hyper.rotary / 2)).transpose();
        let (short, long) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?);
        let rope = Rope::new(&hyper, short.as_deref(), long.as_deref());
        Ok(Self { rope, embedding, layers, output_norm, head: head_matrix, hyper, file: Arc::clone(file) })
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
        let of = |m: &Matrix| (m.row_bytes() * m.rows) as u64;
        let layers =
            self.layers.iter().map(|l| of(&l.qkv) + of(&l.attention_output) + of(&l.gate_up) + of(&l.down));
        layers.sum::<u64>() + of(&self.head) + self.embedding.row_bytes() as u64
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
    /// Where faults are noted instead of ending the binding.
    survey: Option<RefCell<Survey>>,
}

impl Binder<'_> {
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

    /// A matrix of `columns`, and of `rows` unless that is for the file to say.
    fn matrix(&self, name: &str, rows: Option<usize>, columns: usize) -> Result<Matrix> {
        let stand_in = || {
            let mut matrix = Matrix::new(Arc::clone(self.file), 0);
            matrix.rows = 0;
            matrix
        };
        self.or_else(self.try_matrix(name, rows, columns), stand_in)
    }

    /// A vector of `length`, decoded.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        self.or_else(self.try_vector(name, length), || vec![1.0; length])
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.file.tensors().iter().position(|tensor| tensor.name == name);
        let index = found.ok_or_else(|| {
            Error::invalid(
                self.file.path(),
                format!("the tensor {name} is missing: the file is not a complete phi3 model"),
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
        let fits = info.shape.len() <= 2
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
