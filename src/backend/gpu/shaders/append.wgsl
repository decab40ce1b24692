// Rotates queries and keys; queries go, scaled and padded, where attention reads them; keys and values into the cache.
// One thread takes 32 elements of a head: what has a scale of its own in the cache's types.

struct Params {
    // Rows from first_row on go to this segment of the cache, the first one to its position number `at`.
    first_row: u32,
    rows: u32,
    at: u32,
    heads: u32,
    kv_heads: u32,
    // Elements of a head, and with its padding.
    size: u32,
    padded: u32,
    // Rotated pairs of elements.
    pairs: u32,
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read_write> queries: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

fn element(start: u32, row: u32, e: u32, rotate: bool) -> f32 {
    return rotated(start, row, e, rotate);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let groups = p.padded / 32u;
    let head = id.x / groups;
    let group = id.x % groups;
    if head >= p.heads + 2u * p.kv_heads {
        return;
    }
    let row = p.first_row + id.y;
    let start = (row * (p.heads + 2u * p.kv_heads) + head) * p.size;
    if head < p.heads {
        let to = (row * p.heads + head) * (p.padded / 4u) + group * 8u;
        for (var i = 0u; i < 8u; i++) {
            queries[to + i] = p.scale * four(start, row, group * 32u + i * 4u, true);
        }
        return;
    }
    let position = p.at + id.y;
    if head < p.heads + p.kv_heads {
        store_key(((position * p.kv_heads) + head - p.heads) * groups + group, start, row, group * 32u, true);
    } else {
        store_value(((position * p.kv_heads) + head - p.heads - p.kv_heads) * groups + group, start, row, group * 32u, false);
    }
}
