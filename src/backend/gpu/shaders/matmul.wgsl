// out[token][row] (+)= dot(weights[row], x[token]) + bias[row], for many tokens: tiles of 64 tokens by 64 rows. The weights of
// a tile are decoded once, into workgroup memory, for all its tokens.

struct Params {
    columns: u32,
    rows: u32,
    first_row: u32,
    all_rows: u32,
    bytes_per_row: u32,
    x_stride: u32,
    out_stride: u32,
    tokens: u32,
    has_bias: u32,
    limit: f32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const TILE = 64u;
// Vectors of four columns that a step takes, and their distance in workgroup memory: odd, so that rows lie in
// different banks.
const STEP = 8u;
const STRIDE = 9u;
const THREADS = 128u;
const PARTS = BLOCK_ELEMENTS / 16u;

var<workgroup> ws: array<vec4<f32>, TILE * STRIDE>;
var<workgroup> xs: array<vec4<f32>, TILE * STRIDE>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    // A thread's own: rows row, row + 16 … (4 of them), and tokens token, token + 8 … (8 of them).
    let row = thread % 16u;
    let token = thread / 16u;
    // What it decodes: one half of a row's step.
    let w_row = thread / 2u;
    let half = thread % 2u;
    let w_start = min(first_row + w_row, p.rows - 1u) * p.bytes_per_row;
    let chunks = p.columns / 16u;

    //:each var sum# = vec4<f32>();
    for (var k = 0u; k < p.columns / 4u; k += STEP) {
        let chunk = k / 4u + half;
        var w = mat4x4<f32>();
        if chunk < chunks {
            w = decode16(w_start + chunk / PARTS * BLOCK_BYTES, chunk % PARTS);
        }
        let w_at = w_row * STRIDE + half * 4u;
        ws[w_at] = w[0];
        ws[w_at + 1u] = w[1];
        ws[w_at + 2u] = w[2];
        ws[w_at + 3u] = w[3];
        for (var i = thread; i < TILE * STEP; i += THREADS) {
            let place = min(first_token + i / STEP, p.tokens - 1u) * (p.x_stride / 4u) + min(k + i % STEP, p.columns / 4u - 1u);
            xs[i / STEP * STRIDE + i % STEP] = x[place];
        }
        workgroupBarrier();
        for (var i = 0u; i < STEP; i++) {
            let w0 = ws[row * STRIDE + i];
            let w1 = ws[(row + 16u) * STRIDE + i];
            let w2 = ws[(row + 32u) * STRIDE + i];
            let w3 = ws[(row + 48u) * STRIDE + i];
            //:each let x# = xs[(token + #u * 8u) * STRIDE + i];
            //:each sum# += vec4<f32>(dot(x#, w0), dot(x#, w1), dot(x#, w2), dot(x#, w3));
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < 4u; j++) {
        let at = first_row + row + 16u * j;
        if at < p.rows {
            var add = 0.0;
            if p.has_bias != 0u {
                add = bias[p.first_row + at];
            }
            //:each if first_token + token + #u * 8u < p.tokens { put((first_token + token + #u * 8u) * p.out_stride + p.first_row + at, sum#[j] + add); }
        }
    }
}

fn put(at: u32, value: f32) {
    //:store out[at] = value;
    //:add out[at] += value;
}
