//! Sequences, batches, the prefill/decode loop and its stop rules.
