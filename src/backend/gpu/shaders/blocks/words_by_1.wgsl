// Weights where blocks may begin at any multiple of 2, or of 4.

@group(0) @binding(0) var<storage, read> weights: array<u32>;

fn word(i: u32) -> u32 {
    return weights[i];
}

// Four words from a multiple of 4 on.
fn words4_at(byte: u32) -> vec4<u32> {
    let first = byte >> 2u;
    return vec4<u32>(weights[first], weights[first + 1u], weights[first + 2u], weights[first + 3u]);
}

