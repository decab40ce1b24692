//! Tokenizer, chat template, sampler: pure, no I/O.
