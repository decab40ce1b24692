// out[token][row] (+)= dot(weights[row], x[token]) + bias[row], for TOKENS tokens at once; with GATE, rows and the rows of
// the second half meet: silu(gate) * up. LANES threads share a row and add up in one order whatever TOKENS is.
//
// Where matrices are picked, rows of out are for one expert each, two for a token; its number is in routes.

struct Params {
    // Elements of a row, a multiple of 16.
    columns: u32,
    // Rows in this buffer, of those that the whole matrix has; the first of them is number first_row.
    rows: u32,
    first_row: u32,
    all_rows: u32,
    bytes_per_row: u32,
    // Elements between two tokens of x, and of out.
    x_stride: u32,
    out_stride: u32,
    first_token: u32,
    has_bias: u32,
    limit: f32,
    // Bytes between two experts, and how many of them take each token of x.
    //:picked stride: u32,
    //:picked picks: u32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
//:given @group(0) @binding(3) var<storage, read> bias: array<f32>;
//:picked @group(0) @binding(3) var<storage, read> routes: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const THREADS = 128u;
// Threads that share a row: as many as give each as many slices, whatever the type, of the widths that models have.
const LANES = 64u / SLICE_PARTS;
const ROWS = THREADS / LANES;
const PARTS = BLOCK_ELEMENTS / 16u;
const SLICES = PARTS / SLICE_PARTS;

//:sum-shared var<workgroup> partial: array<f32, THREADS * TOKENS * HALVES>;

fn product(w: mat4x4<f32>, at: u32) -> f32 {
    return dot(w[0], x[at]) + dot(w[1], x[at + 1u]) + dot(w[2], x[at + 2u]) + dot(w[3], x[at + 3u]);
}

fn biased(row: u32, sum: f32) -> f32 {
    //:given if p.has_bias != 0u {
    //:given     return sum + bias[p.first_row + row];
    //:given }
    return sum;
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    //:sum-shared @builtin(local_invocation_index) thread: u32,
    //:sum-subgroup @builtin(subgroup_invocation_id) invocation: u32,
    //:sum-subgroup @builtin(subgroup_id) subgroup: u32,
) {
    //:sum-subgroup let thread = subgroup * 32u + invocation;
    let lane = thread % LANES;
    let team = thread / LANES;
    let row = (group.y * groups.x + group.x) * ROWS + team;
    let count = p.rows / HALVES;
    // Threads beyond the last row go along, so that all reach the barriers.
    //:given let start = min(row, count - 1u) * p.bytes_per_row;
    //:picked let expert = routes[group.z / 2u * 4u + group.z % 2u];
    //:picked let start = expert * p.stride + min(row, count - 1u) * p.bytes_per_row;
    //:gate let other = start + count * p.bytes_per_row;
    //:each var sum# = 0.0;
    //:each-gate var up# = 0.0;
    //:given let x_at = p.first_token * p.x_stride / 4u;
    //:picked let x_at = group.z / p.picks * (p.x_stride / 4u);
    let step = p.x_stride / 4u;
    for (var i = lane; i < p.columns / 16u / SLICE_PARTS; i += LANES) {
        let block = i / SLICES;
        let slice = i % SLICES;
        let w_at = start + block * BLOCK_BYTES;
        //:gate let v_at = other + block * BLOCK_BYTES;
        // Written out, as few compilers unroll what is inside.
        //:part if SLICE_PARTS > @u {
        //:part     let x_part = x_at + (block * PARTS + part_of(slice, @u)) * 4u;
        //:part     let w = decode(w_at, slice, @u);
        //:part-gate     let v = decode(v_at, slice, @u);
        //:part-each     sum# += product(w, x_part + #u * step);
        //:part-each-gate     up# += product(v, x_part + #u * step);
        //:part }
    }
    //:sum-subgroup for (var s = LANES / 2u; s > 0u; s /= 2u) {
    //:sum-subgroup-each     sum# += subgroupShuffleXor(sum#, s);
    //:sum-subgroup-each-gate     up# += subgroupShuffleXor(up#, s);
    //:sum-subgroup }
    //:sum-shared-each partial[#u * THREADS + thread] = sum#;
    //:sum-shared-each-gate partial[(TOKENS + #u) * THREADS + thread] = up#;
    //:sum-shared workgroupBarrier();
    //:sum-shared for (var s = LANES / 2u; s > 0u; s /= 2u) {
    //:sum-shared     if lane < s {
    //:sum-shared-each         partial[#u * THREADS + thread] += partial[#u * THREADS + thread + s];
    //:sum-shared-each-gate         partial[(TOKENS + #u) * THREADS + thread] += partial[(TOKENS + #u) * THREADS + thread + s];
    //:sum-shared     }
    //:sum-shared     workgroupBarrier();
    //:sum-shared }
    //:sum-shared-each sum# = partial[#u * THREADS + team * LANES];
    //:sum-shared-each-gate up# = partial[(TOKENS + #u) * THREADS + team * LANES];
    if lane == 0u && row < count {
        //:given let at = p.first_token * p.out_stride + p.first_row + row;
        //:picked let at = group.z * p.out_stride + p.first_row + row;
        //:store-each out[at + #u * p.out_stride] = biased(row, sum#);
        //:add-each out[at + #u * p.out_stride] += biased(row, sum#);
        //:each-gate out[at + #u * p.out_stride] = GATE(biased(row, sum#), biased(row + count, up#), p.limit);
    }
}
