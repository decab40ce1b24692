//! Tokenizer, chat template, sampler: pure, no I/O.

mod added;
mod bpe;
mod byte_level;
mod chat;
mod clock;
mod detokenizer;
mod fault;
mod hash;
mod huggingface;
mod json;
mod pre_tokenizer;
mod sampler;
mod sentencepiece;
mod tokenizer;
mod vocabulary;

pub use added::AddedFlags;
pub use byte_level::spell as spell_bytes;
pub use chat::{ChatTemplate, Message};
pub(crate) use clock::format_utc;
pub use detokenizer::Detokenizer;
pub use fault::Fault;
pub use sampler::{Sampler, SamplerOptions};
pub use tokenizer::{ADDED_FLAGS_KEY, ADDED_IDS_KEY, EOS_IDS_KEY, Segment, Special, Tokenizer};
pub use vocabulary::TokenKind;
