// Weights where every block begins at a multiple of 16, and so does whatever of it is taken by four words.

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;

fn word(i: u32) -> u32 {
    return weights[i >> 2u][i & 3u];
}

// Four words from a multiple of 16 on.
fn words4_at(byte: u32) -> vec4<u32> {
    return weights[byte >> 4u];
}

