fn swiglu(gate: f32, up: f32, limit: f32) -> f32 {
    return gate / (1.0 + exp(-gate)) * up;
}

fn gegelu(gate: f32, up: f32, limit: f32) -> f32 {
    let g = min(gate, limit);
    return g / (1.0 + exp(-1.702 * g)) * (clamp(up, -limit, limit) + 1.0);
}
