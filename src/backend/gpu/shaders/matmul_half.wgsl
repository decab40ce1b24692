// matmul.wgsl in half precision, with sums in single, by the matrix units of a device: tiles of 128 tokens by 64 or 128
// rows, of which each of eight subgroups has 64 rows of 16 or 32 tokens. While a step is multiplied, the next one is loaded.

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
    // A power of two that brings weights well into the range of halves, and its inverse.
    factor: f32,
    inverse: f32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> scales: array<f32>;

const TILE_TOKENS = 128u;
const WIDE = TILE_ROWS / 64u;
const THREADS = 8u * SUBGROUP;
// Vectors of four columns that a step takes, and their distance in workgroup memory.
const STEP = 8u;
const STRIDE = 10u;
const PARTS = BLOCK_ELEMENTS / 16u;
const SQUARE = 256u;

var<workgroup> ws: array<vec4<f16>, TILE_ROWS * STRIDE>;
var<workgroup> xs: array<vec4<f16>, TILE_TOKENS * STRIDE>;
var<workgroup> squares: array<f32, 8u * SQUARE>;

fn half(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(v * p.factor);
}

// What a thread decodes: half of a step of a row.
fn decoded(first_row: u32, k: u32, thread: u32) -> mat4x4<f32> {
    let chunk = k + thread % 2u;
    if thread >= 2u * TILE_ROWS || chunk >= p.columns / 16u {
        return mat4x4<f32>();
    }
    let start = min(first_row + thread / 2u, p.rows - 1u) * p.bytes_per_row;
    return decode16(start + chunk / PARTS * BLOCK_BYTES, chunk % PARTS);
}

// Vector number i of a step's tokens.
fn of_x(first_token: u32, k: u32, i: u32) -> vec4<f16> {
    let token = min(first_token + i / STEP, p.tokens - 1u);
    return x[token * (p.x_stride / 4u) + min(k * 4u + i % STEP, p.columns / 4u - 1u)];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let first_row = group.x * TILE_ROWS;
    let first_token = group.y * TILE_TOKENS;
    let chunks = p.columns / 16u;
    let row = subgroup % WIDE * 64u;
    let token = subgroup / WIDE * (16u * WIDE);
    let w_at = thread / 2u * STRIDE + thread % 2u * 4u;
    //:part let i@ = min(thread + @u * THREADS, TILE_TOKENS * STEP - 1u);

    //:part-each var sum@_# = coop_mat16x16<f32, C>();
    var w = decoded(first_row, 0u, thread);
    //:part var x@ = of_x(first_token, 0u, i@);
    for (var k = 0u; k < chunks; k += STEP / 4u) {
        if thread < 2u * TILE_ROWS {
            //:part ws[w_at + @u] = half(w[@]);
        }
        //:part xs[i@ / STEP * STRIDE + i@ % STEP] = x@;
        workgroupBarrier();
        w = decoded(first_row, k + STEP / 4u, thread);
        //:part x@ = of_x(first_token, k + STEP / 4u, i@);
        for (var i = 0u; i < STEP; i += 4u) {
            //:part let a@ = coopLoadT<coop_mat16x16<f16, A>>(&ws[(row + @u * 16u) * STRIDE + i], STRIDE);
            //:each let b# = coopLoad<coop_mat16x16<f16, B>>(&xs[(token + #u * 16u) * STRIDE + i], STRIDE);
            //:part-each sum@_# = coopMultiplyAdd(a@, b#, sum@_#);
        }
        workgroupBarrier();
    }
    //:part-each coopStore(sum@_#, &squares[subgroup * SQUARE], 16u);
    //:part-each workgroupBarrier();
    //:part-each leave(first_token + token + #u * 16u, first_row + row + @u * 16u, lane, subgroup);
    //:part-each workgroupBarrier();
}

// Sums of 16 rows of 16 tokens.
fn leave(token: u32, row: u32, lane: u32, subgroup: u32) {
    for (var i = lane; i < SQUARE; i += SUBGROUP) {
        let t = token + i / 16u;
        let r = row + i % 16u;
        if t < p.tokens && r < p.rows {
            var sum = squares[subgroup * SQUARE + i] * scales[t] * p.inverse;
            if p.has_bias != 0u {
                sum += bias[p.first_row + r];
            }
            let at = t * p.out_stride + p.first_row + r;
            //:store out[at] = sum;
            //:add out[at] += sum;
        }
    }
}
