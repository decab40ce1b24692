//! ISA tokens and the operations they offer; imports nothing.

pub mod lanes;
