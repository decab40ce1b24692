// What the two attention kernels share: parameters, bindings, which positions a query sees, and how results are left.
//
// A kernel takes some positions of one segment of the cache: a split. Where there is one split, its result is the
// attention's; else each leaves its unscaled sum, its largest score and its sum of exponentials, for combine.wgsl.

struct Params {
    // Rows from first_row on; the first of them is at position `position`.
    first_row: u32,
    rows: u32,
    position: u32,
    heads: u32,
    kv_heads: u32,
    size: u32,
    window: u32,
    // The segment's first position, and positions in it.
    segment: u32,
    length: u32,
    // Where the first split of this dispatch begins, within the segment.
    start: u32,
    // Number of that split, and how many there are of all segments.
    first_split: u32,
    splits: u32,
    // Block-sparse attention: positions of a block (0: none), blocks back, every how many-th, step from head to head.
    block: u32,
    local: u32,
    stride: u32,
    head_step: u32,
    // Rotated pairs of elements, and what queries are scaled by.
    //:appends pairs: u32,
    //:appends scale: f32,
}

var<immediate> p: Params;

//:appended @group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
//:appended @group(0) @binding(1) var<storage, read> keys: array<u32>;
//:appended @group(0) @binding(2) var<storage, read> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
//:appends @group(0) @binding(0) var<storage, read> qkv: array<f32>;
//:appends @group(0) @binding(1) var<storage, read_write> keys: array<u32>;
//:appends @group(0) @binding(2) var<storage, read_write> values: array<u32>;
//:appends @group(0) @binding(4) var<storage, read> cosines: array<f32>;
//:appends @group(0) @binding(5) var<storage, read> sines: array<f32>;

// Vectors of four in a padded head, and groups of 32 elements.
const FOURS = PADDED / 4u;
const GROUPS = PADDED / 32u;
const LOWEST = -3.0e38;

fn sees(head: u32, query: u32, key: u32) -> bool {
    if key > query || key + p.window <= query {
        return false;
    }
    if p.block == 0u {
        return true;
    }
    let past = key / p.block;
    return query / p.block - past < p.local || (past + head * p.head_step + 1u) % p.stride == 0u;
}

// Vector number `four` of a key, and of a value, at a position within the segment.
fn key_at(position: u32, kv_head: u32, four: u32) -> vec4<f32> {
    return load_key((position * p.kv_heads + kv_head) * GROUPS + four / 8u, four % 8u);
}

fn value_at(position: u32, kv_head: u32, four: u32) -> vec4<f32> {
    return load_value((position * p.kv_heads + kv_head) * GROUPS + four / 8u, four % 8u);
}

// Leaves vector number `four` of a row's and head's sum.
fn leave(row: u32, head: u32, split: u32, four: u32, sum: vec4<f32>, largest: f32, total: f32) {
    if p.splits == 1u {
        let scaled = sum / max(total, 1.0e-37);
        let at = (row * p.heads + head) * p.size;
        for (var i = 0u; i < 4u; i++) {
            if four * 4u + i < p.size {
                out[at + four * 4u + i] = scaled[i];
            }
        }
        return;
    }
    let at = (((row - p.first_row) * p.heads + head) * p.splits + split) * (PADDED + 4u);
    out[at + four * 4u] = sum.x;
    out[at + four * 4u + 1u] = sum.y;
    out[at + four * 4u + 2u] = sum.z;
    out[at + four * 4u + 3u] = sum.w;
    if four == 0u {
        out[at + PADDED] = largest;
        out[at + PADDED + 1u] = total;
    }
}
