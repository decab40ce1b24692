//! Matmul tiles, attention, norm, RoPE, activation: each algorithm once, generic over ISA and format.
