//! The KV cache of a prompt in a file, so that the next run need not read the same prompt again.
//!
//! A file is of use only to the same model, cache type and version of this program; anything else is told apart by
//! the head. Layout, little-endian: magic, head (fixed), token ids (u32 each), a checksum (XXH3, 64 bits) of all that;
//! then the cache page by page, each followed by its checksum.

use std::io::Write;
use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Engine, Sequence};
use crate::backend::cpu::LAYOUT;
use crate::backend::hybrid::CacheShape;
use crate::fs::{AtomicFile, Map};
use crate::model::Regime;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"PHICACHE";
/// Version of the file's own layout.
const VERSION: u32 = 2;
const CHECKSUM: usize = 8;
/// Magic, and [`Head::BYTES`].
const HEAD: usize = MAGIC.len() + Head::BYTES;
/// Of each tensor, so many bytes tell one model from another of the same shape.
const SAMPLE: usize = 4096;

/// Why a prompt cache is of no use. The prompt is computed instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    #[error("there is none yet")]
    Missing,
    #[error("it was made by another version of this program")]
    Version,
    #[error("it was made with another model")]
    Model,
    #[error("its KV cache is of another type (-ctk, -ctv)")]
    KvType,
    #[error("it was made with another number of layers on the GPU (-ngl)")]
    Placement,
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("its text begins differently")]
    OtherText,
    #[error("its text is on the other side of the model's LongRoPE limit")]
    OtherRegime,
}

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    version: u32,
    layout: u32,
    /// Of the model.
    fingerprint: u128,
    /// Element types of the cached keys and values, as GGUF numbers them.
    keys: u32,
    values: u32,
    layers: u32,
    /// Those whose pages are laid out as on the host.
    host_layers: u32,
    kv_heads: u32,
    head: u32,
    /// 1 if the long LongRoPE factors were used.
    long: u32,
    tokens: u64,
}

impl Head {
    const BYTES: usize = 2 * 4 + 16 + 7 * 4 + 8;

    fn new(engine: &Engine, regime: Regime, tokens: usize) -> Self {
        let shape = engine.cache_shape();
        Self {
            version: VERSION,
            layout: LAYOUT,
            fingerprint: engine.fingerprint(),
            keys: shape.types().0.tensor_type().id(),
            values: shape.types().1.tensor_type().id(),
            layers: shape.layers as u32,
            host_layers: shape.host_layers() as u32,
            kv_heads: shape.kv_heads() as u32,
            head: shape.head() as u32,
            long: (regime == Regime::Long).into(),
            tokens: tokens as u64,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        let shape = [self.layers, self.host_layers, self.kv_heads, self.head];
        let fields = [self.keys, self.values].into_iter().chain(shape).chain([self.long]);
        out.extend([self.version, self.layout].iter().flat_map(|field| field.to_le_bytes()));
        out.extend(self.fingerprint.to_le_bytes());
        out.extend(fields.flat_map(u32::to_le_bytes));
        out.extend(self.tokens.to_le_bytes());
        out
    }

    /// From [`Self::BYTES`] bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            version: word(0)?,
            layout: word(4)?,
            fingerprint: u128::from_le_bytes(bytes.get(8..24)?.try_into().ok()?),
            keys: word(24)?,
            values: word(28)?,
            layers: word(32)?,
            host_layers: word(36)?,
            kv_heads: word(40)?,
            head: word(44)?,
            long: word(48)?,
            tokens: u64::from_le_bytes(bytes.get(52..60)?.try_into().ok()?),
        })
    }
}

impl Engine {
    /// Takes what the file at `path` has in common with the beginning of `prompt` into the empty `sequence`; how many
    /// tokens that is, or why it is none. [`Engine::feed`] goes on from there with the same logits, to the bit, as if
    /// it had been fed the whole prompt.
    ///
    /// # Errors
    /// A file that cannot be read, or is no prompt cache at all (it is not for this program to overwrite), too little memory.
    pub fn restore(
        &self,
        path: &Path,
        sequence: &mut Sequence,
        prompt: &[u32],
    ) -> Result<std::result::Result<usize, Useless>> {
        if !path.exists() {
            return Ok(Err(Useless::Missing));
        }
        let file = Map::open(path)?;
        if file.is_empty() {
            return Ok(Err(Useless::Missing));
        }
        if !file.starts_with(MAGIC) {
            return Err(Error::invalid(
                path,
                "this is no prompt cache of phi: give --prompt-cache another file",
            ));
        }
        let saved = match Saved::parse(&file, self) {
            Ok(saved) => saved,
            Err(useless) => return Ok(Err(useless)),
        };
        let shared = saved.tokens().zip(prompt).take_while(|(saved, new)| saved == *new).count();
        let shared = shared.min(sequence.context);
        if shared == 0 {
            return Ok(Err(Useless::OtherText));
        }
        if self.model.rope.regime(prompt.len()) != saved.regime() {
            return Ok(Err(Useless::OtherRegime));
        }
        sequence.tokens.clear();
        self.backend.reserve(&mut sequence.cache, shared)?;
        for page in 0..saved.shape.pages(shared) {
            match saved.page(page) {
                Some(bytes) => {
                    let (cache, shape) = (&mut sequence.cache, &saved.shape);
                    self.backend.restore_page(cache, shape, page, saved.count, bytes)?;
                }
                None => return Ok(Err(Useless::Damaged("a page of it does not have its checksum"))),
            }
        }
        sequence.regime = saved.regime();
        sequence.tokens.extend_from_slice(&prompt[..shared]);
        Ok(Ok(shared))
    }

    /// Writes the first `count` tokens of `sequence` and their keys and values to `path`, whole or not at all.
    ///
    /// # Errors
    /// No such folder, too little space; more tokens than there are.
    pub fn save(&self, path: &Path, sequence: &mut Sequence, count: usize) -> Result<()> {
        let Some(tokens) = sequence.tokens.get(..count) else {
            return Err(Error::Usage(format!("{count} tokens cannot be saved: there are fewer")));
        };
        let shape = self.cache_shape();
        let mut head = MAGIC.to_vec();
        head.extend(Head::new(self, sequence.regime, count).to_bytes());
        head.extend(tokens.iter().flat_map(|id| id.to_le_bytes()));
        head.extend(xxh3_64(&head).to_le_bytes());
        let pages = shape.pages(count);
        let bytes: usize = (0..pages).map(|page| shape.saved_bytes(page, count) + CHECKSUM).sum();
        let mut file = AtomicFile::create(path, (head.len() + bytes) as u64)?;
        file.write_all(&head).map_err(|error| file.write_error(error))?;
        let mut buffer = Vec::new();
        for page in 0..pages {
            buffer.clear();
            self.backend.save_page(&mut sequence.cache, &shape, page, count, &mut buffer)?;
            buffer.extend(xxh3_64(&buffer).to_le_bytes());
            file.write_all(&buffer).map_err(|error| file.write_error(error))?;
        }
        file.commit()
    }

    /// A number that another model would have only by chance: of the heads of its files and a sample of each tensor.
    fn fingerprint(&self) -> u128 {
        let file = self.model.file();
        let mut hash = Xxh3::new();
        file.heads().for_each(|head| hash.update(head));
        for tensor in file.tensors() {
            let data = file.data(tensor);
            hash.update(&data[..data.len().min(SAMPLE)]);
        }
        hash.digest128()
    }
}

/// A file whose head is checked: its pages are where they should be.
struct Saved<'a> {
    file: &'a [u8],
    head: Head,
    shape: CacheShape,
    /// Tokens.
    count: usize,
}

impl<'a> Saved<'a> {
    fn parse(file: &'a [u8], engine: &Engine) -> std::result::Result<Self, Useless> {
        const SHORT: Useless = Useless::Damaged("it is shorter than its head says");
        let head = file.get(MAGIC.len()..HEAD).and_then(Head::parse).ok_or(SHORT)?;
        let regime = if head.long == 1 { Regime::Long } else { Regime::Short };
        let expected = Head { tokens: head.tokens, ..Head::new(engine, regime, 0) };
        if (head.version, head.layout) != (expected.version, expected.layout) {
            return Err(Useless::Version);
        }
        if head.fingerprint != expected.fingerprint {
            return Err(Useless::Model);
        }
        if (head.keys, head.values) != (expected.keys, expected.values) {
            return Err(Useless::KvType);
        }
        if head.host_layers != expected.host_layers {
            return Err(Useless::Placement);
        }
        // Whatever else differs cannot differ in a file that this version wrote for this model.
        if head != expected {
            return Err(Useless::Damaged("its head contradicts itself"));
        }
        let count =
            usize::try_from(head.tokens).ok().filter(|&count| count <= file.len() / 4).ok_or(SHORT)?;
        let end = HEAD + 4 * count;
        let checksum = file.get(end..end + CHECKSUM).ok_or(SHORT)?;
        if file.get(..end).map(|bytes| xxh3_64(bytes).to_le_bytes()).as_ref().map(<[u8; 8]>::as_slice)
            != Some(checksum)
        {
            return Err(Useless::Damaged("its head does not have its checksum"));
        }
        Ok(Self { file, head, shape: engine.cache_shape(), count })
    }

    fn regime(&self) -> Regime {
        if self.head.long == 1 { Regime::Long } else { Regime::Short }
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        let bytes = self.file.get(HEAD..HEAD + 4 * self.count).unwrap_or_default();
        bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id))
    }

    /// The bytes of a page; `None` if they are not there or not what was written.
    fn page(&self, page: usize) -> Option<&'a [u8]> {
        let size = |page| self.shape.saved_bytes(page, self.count);
        // Pages before the last are full, so all of one size.
        let start = HEAD + 4 * self.count + CHECKSUM + page * (size(0) + CHECKSUM);
        let end = start.checked_add(size(page))?;
        let bytes = self.file.get(start..end)?;
        (xxh3_64(bytes).to_le_bytes() == self.file.get(end..end + CHECKSUM)?).then_some(bytes)
    }
}
