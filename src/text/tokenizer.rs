//! Text to tokens and back, exactly as the `tokenizers` package does it for the model's own tokenizer.json.

use super::Fault;
use super::added::{AddedFlags, AddedToken, Matcher, Split};
use super::bpe::{Bpe, Rules, Scratch};
use super::byte_level::{self, ByteLevel};
use super::hash::FastMap;
use super::huggingface;
use super::pre_tokenizer::{self, PreTokenizer};
use super::sentencepiece::{Framing, Prefix, SPACE, rules_from_scores};
use super::vocabulary::{Keys, TokenKind, Vocabulary, named_tokens};
use crate::gguf::Metadata;

/// INT32 array: the ids of the added tokens, in the order of tokenizer.json.
pub const ADDED_IDS_KEY: &str = "phi.tokenizer.added.ids";
/// INT32 array, as long: their [`AddedFlags`].
pub const ADDED_FLAGS_KEY: &str = "phi.tokenizer.added.flags";
/// INT32 array: generation_config.json's `eos_token_id`, always as an array.
pub const EOS_IDS_KEY: &str = "phi.generation.eos_token_ids";

/// Whether control tokens (`<|user|>`, `<|end|>`) that are spelled out in a text mean the token or its letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The token: for templates and for prompts that the user wrote with control tokens.
    Parse,
    /// The letters: for what a user or a tool says inside a chat.
    Text,
}

/// A piece of a text of which parts may hold control tokens and parts may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub text: String,
    pub special: Special,
}

impl Segment {
    /// A piece in which control tokens are parsed.
    pub fn parse(text: impl Into<String>) -> Self {
        Self { text: text.into(), special: Special::Parse }
    }

    /// A piece that is text only.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), special: Special::Text }
    }
}

/// How text becomes what is merged, and tokens become text again.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Surface {
    SentencePiece(Framing),
    ByteLevel(ByteLevel),
}

/// A model's tokenizer.
pub struct Tokenizer {
    pub(super) vocabulary: Vocabulary,
    pub(super) surface: Surface,
    bpe: Bpe,
    /// Words that are tokens as they are, where the tokenizer asks for that.
    whole_words: FastMap<Vec<u8>, u32>,
    /// Added tokens that are looked for in the text as given, and in the normalised text.
    raw: Matcher,
    normalized: Matcher,
    /// By id; `None` for tokens that are not added ones.
    added_flags: Vec<Option<AddedFlags>>,
    control: Vec<bool>,
    end_of_generation: Vec<bool>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

/// What a tokenizer is made of, as found in the metadata alone or with an embedded tokenizer.json.
struct Parts {
    rules: Rules,
    surface: Surface,
    added: Vec<AddedToken>,
    /// Whether tokenizer.json itself puts a token before each text.
    begins_with_token: Option<bool>,
}

impl Tokenizer {
    /// The tokenizer of a model with this metadata.
    ///
    /// An embedded `tokenizer.huggingface.json` decides where there is one; otherwise the tokens, scores and types of
    /// `tokenizer.ggml.*` with the strip flags of [`ADDED_FLAGS_KEY`], or without those the flags that the architecture
    /// and the vocabulary imply. The model's name plays no part.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Fault> {
        let keys = Keys(metadata);
        let vocabulary = Vocabulary::from_metadata(&keys)?;
        let parts = match keys.string(huggingface::KEY)? {
            Some(json) => Parts::from_json(json, &vocabulary)?,
            None => Parts::from_keys(&keys, &vocabulary)?,
        };
        Self::from_parts(&keys, vocabulary, parts)
    }

    fn from_parts(keys: &Keys, vocabulary: Vocabulary, parts: Parts) -> Result<Self, Fault> {
        let size = vocabulary.len();
        let id = |key: &str| keys.id(&format!("tokenizer.ggml.{key}_token_id"), size);
        // SentencePiece's own numbers, where the file does not say.
        let sentencepiece = matches!(parts.surface, Surface::SentencePiece(_));
        let known = |id: u32| Some(id).filter(|id| sentencepiece && (*id as usize) < size);
        let bos = id("bos")?.or(known(1));
        let eos = id("eos")?.or(known(2));
        let mut end_of_generation = vec![false; size];
        let named = end_tokens(keys, &vocabulary)?;
        for id in named.into_iter().chain(eos).chain(id("eot")?).chain(id("eom")?) {
            end_of_generation[id as usize] = true;
        }
        let mut control: Vec<bool> = vocabulary
            .ids()
            .map(|id| matches!(vocabulary.kind(id), TokenKind::Control | TokenKind::Unknown))
            .collect();
        let mut added_flags = vec![None; size];
        let mut added = parts.added;
        for token in &mut added {
            let at = token.id as usize;
            let text_of_control = ["<unk>", "<s>", "</s>", "<pad>"].contains(&token.content.as_str());
            token.control |= token.flags.has(AddedFlags::SPECIAL)
                || text_of_control
                || (!sentencepiece && looks_like_control(&token.content))
                || end_of_generation[at]
                || Some(token.id) == bos;
            control[at] = token.control;
            added_flags[at] = Some(token.flags);
        }
        let (mut normalized, raw): (Vec<_>, Vec<_>) =
            added.into_iter().partition(|token| token.flags.has(AddedFlags::NORMALIZED));
        if let Surface::SentencePiece(framing) = &parts.surface {
            for token in &mut normalized {
                token.content = framing.normalize(&token.content);
            }
        }
        let mut whole_words = FastMap::default();
        if matches!(&parts.surface, Surface::ByteLevel(ByteLevel { ignore_merges: true, .. })) {
            let normal = vocabulary.ids().filter(|id| vocabulary.kind(*id) == TokenKind::Normal);
            whole_words.extend(normal.map(|id| (byte_level::bytes_of(vocabulary.piece(id)), id)));
        }
        let add_bos = parts.begins_with_token.unwrap_or(sentencepiece);
        Ok(Self {
            bpe: Bpe::new(&parts.rules, |id| vocabulary.piece(id)),
            surface: parts.surface,
            whole_words,
            raw: Matcher::new(raw),
            normalized: Matcher::new(normalized),
            added_flags,
            control,
            end_of_generation,
            bos,
            eos,
            unknown: parts.rules.unknown,
            add_bos: keys.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: keys.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            vocabulary,
        })
    }

    /// Whether the metadata without [`huggingface::KEY`] describes the same encoding and decoding as `tokenizer_json`.
    ///
    /// Where it does not, a converter embeds the file under `tokenizer.huggingface.json`.
    ///
    /// # Errors
    /// The file is of a kind that is not implemented, or does not belong to the metadata's vocabulary.
    pub fn metadata_suffices(metadata: &Metadata, tokenizer_json: &str) -> Result<bool, Fault> {
        let keys = Keys(metadata);
        let vocabulary = Vocabulary::from_metadata(&keys)?;
        let file = huggingface::parse(tokenizer_json)?;
        let same_pieces = file
            .pieces(vocabulary.len())
            .into_iter()
            .enumerate()
            .all(|(id, piece)| piece.is_none_or(|piece| piece == vocabulary.piece(id as u32)));
        let mut written = Parts::from_json(tokenizer_json, &vocabulary)?;
        // A pattern without a name, for instance, is in the file only.
        let Ok(mut implied) = Parts::from_keys(&keys, &vocabulary) else { return Ok(false) };
        for parts in [&mut written, &mut implied] {
            parts.added.sort_by_key(|token| token.id);
            parts.added.iter_mut().for_each(|token| token.control = false);
            // Single characters among control tokens, say, are never reached: the added tokens are found first.
            let added: Vec<u32> = parts.added.iter().map(|token| token.id).collect();
            parts.rules.chars.retain(|(_, id)| !added.contains(id));
        }
        Ok(same_pieces
            && written.rules == implied.rules
            && written.surface == implied.surface
            && written.added == implied.added)
    }

    /// What GGUF calls the pre-tokenizer of a byte-level tokenizer.json (`tokenizer.ggml.pre`); `None` if it has no name.
    pub fn pre_tokenizer_name(tokenizer_json: &str) -> Result<Option<&'static str>, Fault> {
        let byte_level = huggingface::parse(tokenizer_json)?.byte_level()?;
        Ok(byte_level.and_then(|byte_level| byte_level.words.name()))
    }

    /// The tokens of `text`, without BOS or EOS (see [`Self::bos_to_add`]).
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        self.encode_where(text, |token, _| special == Special::Parse || !token.control)
    }

    /// The tokens of the segments' texts one after the other, as one text: a word may go across segments, whitespace
    /// after a control token may be swallowed from the next segment; only control tokens must lie within a segment, or
    /// neighbouring segments, that say [`Special::Parse`].
    pub fn encode_segments(&self, segments: &[Segment]) -> Vec<u32> {
        let mut text = String::with_capacity(segments.iter().map(|segment| segment.text.len()).sum());
        // Byte ranges that are text only, ascending.
        let mut text_only: Vec<std::ops::Range<usize>> = Vec::new();
        for segment in segments.iter().filter(|segment| !segment.text.is_empty()) {
            let start = text.len();
            text.push_str(&segment.text);
            if segment.special == Special::Text {
                text_only.push(start..text.len());
            }
        }
        self.encode_where(&text, |token, range| {
            let next = text_only.partition_point(|only| only.end <= range.start);
            !token.control || text_only.get(next).is_none_or(|only| only.start >= range.end)
        })
    }

    fn encode_where(
        &self,
        text: &str,
        permitted: impl Fn(&AddedToken, std::ops::Range<usize>) -> bool,
    ) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut scratch = Scratch::default();
        for Split { token, range } in self.raw.split(text, &permitted) {
            match token {
                Some(id) => out.push(id),
                None => self.encode_piece(text, range, &permitted, &mut scratch, &mut out),
            }
        }
        out
    }

    /// The tokens of a piece without (not normalised) added tokens.
    fn encode_piece(
        &self,
        text: &str,
        range: std::ops::Range<usize>,
        permitted: &impl Fn(&AddedToken, std::ops::Range<usize>) -> bool,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        let (piece, at_start) = (&text[range.clone()], range.start == 0);
        let framing = match &self.surface {
            Surface::SentencePiece(framing) => framing,
            Surface::ByteLevel(byte_level) => {
                // The text is its own normal form, so places in the piece are places in the text.
                let within = |at: std::ops::Range<usize>| range.start + at.start..range.start + at.end;
                for split in self.normalized.split(piece, |token, at| permitted(token, within(at))) {
                    match split.token {
                        Some(id) => out.push(id),
                        None => self.encode_words(byte_level, &piece[split.range], scratch, out),
                    }
                }
                return;
            }
        };
        if self.normalized.tokens().is_empty() && !framing.split_words {
            let prefix = framing.prefixes(piece, at_start).then_some(SPACE);
            return self.bpe.encode(prefix.into_iter().chain(piece.chars().map(space_to_sign)), scratch, out);
        }
        let normal = framing.normalize(piece);
        // Places in the normalised piece are not places in the text: a control token is permitted if the whole piece is.
        for split in self.normalized.split(&normal, |token, _| permitted(token, range.clone())) {
            match split.token {
                Some(id) => out.push(id),
                None => {
                    let words = framing
                        .pre_tokenize(&normal[split.range.clone()], at_start && split.range.start == 0);
                    words.iter().for_each(|word| self.bpe.encode(word.chars(), scratch, out));
                }
            }
        }
    }

    /// The tokens of a byte-level piece without added tokens.
    fn encode_words(&self, byte_level: &ByteLevel, piece: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let prefixed;
        let piece = if byte_level.prefix_space && !piece.starts_with(' ') {
            prefixed = format!(" {piece}");
            &prefixed
        } else {
            piece
        };
        byte_level.words.split(piece, &mut |word| match self.whole_words.get(word.as_bytes()) {
            Some(id) => out.push(*id),
            None => self.bpe.encode(word.chars(), scratch, out),
        });
    }

    /// A token's text as the vocabulary has it, with `▁` (or, in byte-level vocabularies, `Ġ`) for a space; empty for an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> &str {
        self.vocabulary.piece(id)
    }

    /// The bytes that a token stands for in a text, its leading space included; `▁` is a space. Unused tokens stand for
    /// nothing, special ones for their text if `show_special`, else for nothing.
    pub fn token_bytes(&self, id: u32, show_special: bool) -> Vec<u8> {
        if self.is_hidden(id, show_special) {
            return Vec::new();
        }
        match &self.surface {
            Surface::ByteLevel(_) => byte_level::bytes_of(self.vocabulary.piece(id)),
            Surface::SentencePiece(framing) => match self.vocabulary.byte(id) {
                Some(byte) => vec![byte],
                None => self.shown(framing, id).into_bytes(),
            },
        }
    }

    /// A SentencePiece token's text in a decoded text, byte tokens aside.
    pub(super) fn shown(&self, framing: &Framing, id: u32) -> String {
        let piece = self.vocabulary.piece(id);
        let normalized = self
            .added_flags
            .get(id as usize)
            .copied()
            .flatten()
            .is_some_and(|flags| flags.has(AddedFlags::NORMALIZED));
        let text = if normalized { framing.normalize(piece) } else { piece.to_owned() };
        text.replace(SPACE, " ")
    }

    /// Whether a token leaves no trace in a decoded text.
    pub(super) fn is_hidden(&self, id: u32, show_special: bool) -> bool {
        self.vocabulary.kind(id) == TokenKind::Unused || (!show_special && self.is_special(id))
    }

    /// Tokens in the vocabulary; the model's logits have as many.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token for what the vocabulary lacks.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The token to put before a prompt, for models whose tokenizer does so (Phi-3.5's does not).
    pub fn bos_to_add(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The token to put after a text, for models whose tokenizer does so.
    pub fn eos_to_add(&self) -> Option<u32> {
        self.eos.filter(|_| self.add_eos)
    }

    /// Whether generation stops at this token.
    pub fn is_eog(&self, id: u32) -> bool {
        self.end_of_generation.get(id as usize) == Some(&true)
    }

    /// The tokens at which generation stops, ascending.
    pub fn eog_tokens(&self) -> Vec<u32> {
        self.vocabulary.ids().filter(|id| self.is_eog(*id)).collect()
    }

    /// Whether the token steers the model rather than being text; never matched in [`Special::Text`].
    pub fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize) == Some(&true)
    }

    /// Whether the token is left out of decoded text unless asked for (tokenizer.json's `special`).
    pub fn is_special(&self, id: u32) -> bool {
        self.added_flags
            .get(id as usize)
            .copied()
            .flatten()
            .map_or(self.is_control(id), |flags| flags.has(AddedFlags::SPECIAL))
    }

    /// The added token that is exactly `text`, such as `<|end|>`.
    pub fn added_token(&self, text: &str) -> Option<u32> {
        let tokens = self.raw.tokens().iter().chain(self.normalized.tokens());
        tokens.filter(|token| self.piece(token.id) == text).map(|token| token.id).next_back()
    }

    /// Whether `text` spells out a control token of this model, so that a prompt is to be taken as it is.
    pub fn holds_control_tokens(&self, text: &str) -> bool {
        let splits = self.raw.split(text, |token, _| token.control);
        splits.iter().any(|split| split.token.is_some())
    }
}

impl Parts {
    /// From `tokenizer.ggml.*` alone.
    fn from_keys(keys: &Keys, vocabulary: &Vocabulary) -> Result<Self, Fault> {
        const KEY: &str = "tokenizer.ggml.model";
        match keys.string(KEY)?.ok_or(Fault::Missing(KEY))? {
            "llama" => Self::from_scores(keys, vocabulary),
            "gpt2" => Self::from_merges(keys, vocabulary),
            other => Err(Fault::Unsupported(format!(
                "the vocabulary is of type \"{other}\" ({KEY}), which is not supported; supported are \"llama\" (SentencePiece BPE: Phi-3, Phi-3.5) and \"gpt2\" (byte-level BPE: Phi-1 to Phi-2, Phi-3-small, Phi-4)"
            ))),
        }
    }

    fn from_merges(keys: &Keys, vocabulary: &Vocabulary) -> Result<Self, Fault> {
        let words = match keys.string("tokenizer.ggml.pre")? {
            Some(name) => PreTokenizer::named(name)?,
            // Files of Phi-2 are older than the key.
            None => PreTokenizer::new([(pre_tokenizer::GPT2, true)])?,
        };
        let prefix_space = keys.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
        Ok(Self {
            rules: byte_level::rules_from_merges(keys, vocabulary)?,
            surface: Surface::ByteLevel(ByteLevel { words, prefix_space, ignore_merges: false }),
            added: added_tokens(keys, vocabulary)?,
            begins_with_token: None,
        })
    }

    fn from_scores(keys: &Keys, vocabulary: &Vocabulary) -> Result<Self, Fault> {
        let scores = keys.f32s("tokenizer.ggml.scores")?.ok_or(Fault::Missing("tokenizer.ggml.scores"))?;
        keys.same_length("tokenizer.ggml.scores", scores.len(), vocabulary.len())?;
        let unknown = keys
            .id("tokenizer.ggml.unknown_token_id", vocabulary.len())?
            .or((vocabulary.kind(0) == TokenKind::Unknown).then_some(0));
        let mut framing = Framing::LLAMA;
        if keys.bool("tokenizer.ggml.add_space_prefix")? == Some(false) {
            framing = Framing { prefix: Prefix::Never, strip: 0, ..framing };
        }
        Ok(Self {
            rules: rules_from_scores(vocabulary, scores, unknown)?,
            surface: Surface::SentencePiece(framing),
            added: added_tokens(keys, vocabulary)?,
            begins_with_token: None,
        })
    }

    fn from_json(json: &str, vocabulary: &Vocabulary) -> Result<Self, Fault> {
        let file = huggingface::parse(json)?;
        let size = vocabulary.len();
        let begins_with_token = Some(file.begins_with().is_some());
        let rules = file.rules(size)?;
        let surface = match file.byte_level()? {
            Some(byte_level) => Surface::ByteLevel(byte_level),
            None => Surface::SentencePiece(file.framing()?),
        };
        Ok(Self { rules, surface, added: file.added_tokens(size)?, begins_with_token })
    }
}

/// The added tokens of a file without tokenizer.json.
fn added_tokens(keys: &Keys, vocabulary: &Vocabulary) -> Result<Vec<AddedToken>, Fault> {
    let token = |id: u32, flags: u32| AddedToken {
        id,
        content: vocabulary.piece(id).to_owned(),
        flags: AddedFlags(flags),
        control: matches!(vocabulary.kind(id), TokenKind::Control | TokenKind::Unknown),
    };
    if let Some(ids) = keys.ids(ADDED_IDS_KEY, vocabulary.len())? {
        let flags = keys.i32s(ADDED_FLAGS_KEY)?.ok_or(Fault::Missing(ADDED_FLAGS_KEY))?;
        keys.same_length(ADDED_FLAGS_KEY, flags.len(), ids.len())?;
        return Ok(ids.into_iter().zip(flags).map(|(id, flags)| token(id, *flags as u32)).collect());
    }
    let phi3 = is_phi3(keys, vocabulary)?;
    let marked = |id: &u32| {
        matches!(vocabulary.kind(*id), TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
    };
    let tokens = vocabulary.ids().filter(marked).map(|id| {
        let control = vocabulary.kind(id) != TokenKind::UserDefined;
        let special = if control && !(phi3 && id == 2) { AddedFlags::SPECIAL } else { 0 };
        // Phi-3's tokenizer.json: all of its added tokens but these three swallow the whitespace after them.
        let strips = phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&vocabulary.piece(id));
        token(id, special | if strips { AddedFlags::RSTRIP } else { 0 })
    });
    Ok(tokens.collect())
}

/// Whether this is the vocabulary of Phi-3 and Phi-3.5: told by the architecture and the tokens.
fn is_phi3(keys: &Keys, vocabulary: &Vocabulary) -> Result<bool, Fault> {
    let chat = [(32000, "<|endoftext|>"), (32001, "<|assistant|>"), (32007, "<|end|>"), (32010, "<|user|>")];
    Ok(keys.string("general.architecture")? == Some("phi3")
        && chat.iter().all(|(id, text)| vocabulary.piece(*id) == *text))
}

/// The tokens that end an answer, `tokenizer.ggml.eos_token_id` and its like aside.
fn end_tokens(keys: &Keys, vocabulary: &Vocabulary) -> Result<Vec<u32>, Fault> {
    if let Some(ids) = keys.ids(EOS_IDS_KEY, vocabulary.len())? {
        return Ok(ids);
    }
    // What Phi-3's generation_config.json lists; a turn that the model begins for itself ends the answer too.
    let names: &[&str] = match keys.string("general.architecture")? {
        Some("phi3") => &["<|end|>", "<|endoftext|>", "<|assistant|>", "<|im_end|>"],
        _ => &["<|end|>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>"],
    };
    Ok(named_tokens(vocabulary, names))
}

/// Whether a text is spelled as control tokens are, such as `<|tool|>`, though tokenizer.json may not call it special.
fn looks_like_control(text: &str) -> bool {
    text.len() > 4 && text.starts_with("<|") && text.ends_with("|>")
}

fn space_to_sign(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

impl Framing {
    /// What the normaliser makes of `text`: with `Metaspace`, that comes later and this is the text itself.
    fn normalize(&self, text: &str) -> String {
        match self.prefix {
            Prefix::Always if text.is_empty() => String::new(),
            Prefix::Always => std::iter::once(SPACE).chain(text.chars().map(space_to_sign)).collect(),
            Prefix::Never if !self.split_words => text.chars().map(space_to_sign).collect(),
            _ => text.to_owned(),
        }
    }

    /// Whether a `▁` goes before the piece.
    fn prefixes(&self, piece: &str, at_start: bool) -> bool {
        let missing = !piece.starts_with([' ', SPACE]);
        match self.prefix {
            Prefix::Never => false,
            Prefix::Always => true,
            Prefix::Missing => missing,
            Prefix::MissingAtStart => missing && at_start,
        }
    }

    /// The words of a normalised piece, none of which merges cross.
    fn pre_tokenize(&self, normal: &str, at_start: bool) -> Vec<String> {
        let prefix = !matches!(self.prefix, Prefix::Always) && self.prefixes(normal, at_start);
        let piece: String =
            prefix.then_some(SPACE).into_iter().chain(normal.chars().map(space_to_sign)).collect();
        if !self.split_words {
            return vec![piece];
        }
        let mut starts: Vec<usize> =
            piece.match_indices(SPACE).map(|(at, _)| at).filter(|at| *at > 0).collect();
        starts.push(piece.len());
        let mut from = 0;
        starts.into_iter().map(|to| piece[std::mem::replace(&mut from, to)..to].to_owned()).collect()
    }
}
