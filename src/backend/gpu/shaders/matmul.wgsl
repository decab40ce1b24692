// out[token][row] (+)= dot(weights[row], x[token]) + bias[row], for many tokens: tiles of TILE_TOKENS by TILE_ROWS. The weights
// of a tile are decoded once, into workgroup memory, for all its tokens. A thread has 8 rows of 8 tokens, in four squares.

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

const THREADS = TILE_ROWS * TILE_TOKENS / 64u;
// Columns that a step takes.
const STEP = 32u;
const PARTS = BLOCK_ELEMENTS / 16u;
// Vectors of four rows, and of four tokens.
const W_FOURS = TILE_ROWS / 4u;
const X_FOURS = TILE_TOKENS / 4u;

// By column, then row or token.
var<workgroup> ws: array<vec4<f32>, STEP * W_FOURS>;
var<workgroup> xs: array<vec4<f32>, STEP * X_FOURS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * TILE_ROWS;
    let first_token = group.y * TILE_TOKENS;
    // A thread's first vectors of rows and tokens; the second ones are half a tile further.
    let row = thread % (W_FOURS / 2u);
    let token = thread / (W_FOURS / 2u);
    let chunks = p.columns / 16u;
    let fours = p.columns / 4u;

    //:part var a@ = vec4<f32>();
    //:part var b@ = vec4<f32>();
    //:part var c@ = vec4<f32>();
    //:part var d@ = vec4<f32>();
    for (var k = 0u; k < chunks; k += STEP / 16u) {
        for (var i = thread; i < TILE_ROWS * STEP / 16u; i += THREADS) {
            let w_row = i % TILE_ROWS;
            let part = i / TILE_ROWS;
            let chunk = k + part;
            var w = mat4x4<f32>();
            if chunk < chunks {
                let start = min(first_row + w_row, p.rows - 1u) * p.bytes_per_row;
                w = decode16(start + chunk / PARTS * BLOCK_BYTES, chunk % PARTS);
            }
            let at = part * 16u * W_FOURS + w_row / 4u;
            //:part-each ws[at + (@u * 4u + #u) * W_FOURS][w_row % 4u] = w[@][#];
        }
        for (var i = thread; i < TILE_TOKENS * STEP / 4u; i += THREADS) {
            let x_token = i % TILE_TOKENS;
            let four = i / TILE_TOKENS;
            let v = x[min(first_token + x_token, p.tokens - 1u) * (p.x_stride / 4u) + min(k * 4u + four, fours - 1u)];
            let at = four * 4u * X_FOURS + x_token / 4u;
            //:part xs[at + @u * X_FOURS][x_token % 4u] = v[@];
        }
        workgroupBarrier();
        for (var i = 0u; i < STEP; i++) {
            let w0 = ws[i * W_FOURS + row];
            let w1 = ws[i * W_FOURS + W_FOURS / 2u + row];
            let x0 = xs[i * X_FOURS + token];
            let x1 = xs[i * X_FOURS + X_FOURS / 2u + token];
            //:part a@ += x0[@] * w0;
            //:part b@ += x0[@] * w1;
            //:part c@ += x1[@] * w0;
            //:part d@ += x1[@] * w1;
        }
        workgroupBarrier();
    }
    let r = first_row + row * 4u;
    let t = first_token + token * 4u;
    //:part put(t + @u, r, a@);
    //:part put(t + @u, r + TILE_ROWS / 2u, b@);
    //:part put(t + TILE_TOKENS / 2u + @u, r, c@);
    //:part put(t + TILE_TOKENS / 2u + @u, r + TILE_ROWS / 2u, d@);
}

// Four rows of a token.
fn put(token: u32, row: u32, sums: vec4<f32>) {
    if token >= p.tokens {
        return;
    }
    let at = token * p.out_stride + p.first_row + row;
    //:part if row + @u < p.rows {
    //:part     var sum = sums[@];
    //:part     if p.has_bias != 0u {
    //:part         sum += bias[p.first_row + row + @u];
    //:part     }
    //:part-store     out[at + @u] = sum;
    //:part-add     out[at + @u] += sum;
    //:part }
}
