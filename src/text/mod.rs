//! Tokenizer, chat template, sampler: pure, no I/O.

mod added;
mod bpe;
mod detokenizer;
mod fault;
mod hash;
mod huggingface;
mod sentencepiece;
mod tokenizer;
mod vocabulary;

pub use added::AddedFlags;
pub use detokenizer::Detokenizer;
pub use fault::Fault;
pub use tokenizer::{ADDED_FLAGS_KEY, ADDED_IDS_KEY, EOS_IDS_KEY, Segment, Special, Tokenizer};
pub use vocabulary::TokenKind;
