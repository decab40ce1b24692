//! Hyper-parameters, bound weights, KV cache and the forward pass.
