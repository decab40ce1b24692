// out[token][row] (+)= dot(weights[row], x[token]) + bias[row], for TOKENS tokens at once; with GATE, rows and the rows of
// the second half meet: silu(gate) * up. LANES threads share ROWS_EACH rows, for which they load x once and whose weights
// they wait for together; they add up each row in one order whatever TOKENS and ROWS_EACH are.
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

const TEAMS = THREADS / LANES;
const PARTS = BLOCK_ELEMENTS / 16u;
const SLICES = PARTS / SLICE_PARTS;

//:sum-shared var<workgroup> partial: array<f32, THREADS * TOKENS * HALVES>;

// 16 elements of x.
fn x16(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

fn total(x: mat4x4<f32>) -> f32 {
    let sum = (x[0] + x[1]) + (x[2] + x[3]);
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn product(w: Part16, x: mat4x4<f32>) -> f32 {
    return w.scale * (dot(w.q[0], x[0]) + dot(w.q[1], x[1]) + dot(w.q[2], x[2]) + dot(w.q[3], x[3]));
}

fn biased(row: u32, sum: f32) -> f32 {
    //:given if p.has_bias != 0u {
    //:given     return sum + bias[p.first_row + row];
    //:given }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    //:sum-shared @builtin(local_invocation_index) thread: u32,
    //:sum-subgroup @builtin(subgroup_invocation_id) invocation: u32,
    //:sum-subgroup @builtin(subgroup_size) subgroup_size: u32,
    //:sum-subgroup @builtin(subgroup_id) subgroup: u32,
) {
    //:sum-subgroup let thread = subgroup * subgroup_size + invocation;
    let lane = thread % LANES;
    let team = thread / LANES;
    let count = p.rows / HALVES;
    let first = ((group.y * groups.x + group.x) * TEAMS + team) * ROWS_EACH;
    //:given let matrix = 0u;
    //:picked let matrix = routes[group.z / 2u * 4u + group.z % 2u] * p.stride;
    // What lies beyond the last row goes along, so that all reach the barriers.
    //:row let start$ = matrix + min(first + $u, count - 1u) * p.bytes_per_row;
    //:row-gate let other$ = start$ + count * p.bytes_per_row;
    //:each-row var sum#_$ = 0.0;
    //:each-row-gate var up#_$ = 0.0;
    //:given let x_at = p.first_token * p.x_stride / 4u;
    //:picked let x_at = group.z / p.picks * (p.x_stride / 4u);
    let step = p.x_stride / 4u;
    let slices = p.columns / 16u / SLICE_PARTS;
    let rounds = (slices + LANES - 1u) / LANES;
    for (var round = 0u; round < rounds; round++) {
        let i = round * LANES + lane;
        if slices % LANES != 0u && i >= slices {
            break;
        }
        let slice = i % SLICES;
        let block = i / SLICES;
        let at = block * BLOCK_BYTES;
        // Written out, as few compilers unroll what is inside.
        //:part if SLICE_PARTS > @u {
        //:part     let x_part = x_at + (block * PARTS + part_of(slice, @u)) * 4u;
        //:part-row     let w$ = part16(start$ + at, slice, @u);
        //:part-row-gate     let v$ = part16(other$ + at, slice, @u);
        //:part-each     let x# = x16(x_part + #u * step);
        //:part-each-min     let total# = total(x#);
        //:part-each-row     sum#_$ += product(w$, x#);
        //:part-each-row-min     sum#_$ -= w$.min * total#;
        //:part-each-row-gate     up#_$ += product(v$, x#);
        //:part-each-row-gate-min     up#_$ -= v$.min * total#;
        //:part }
    }
    //:sum-subgroup for (var s = LANES / 2u; s > 0u; s /= 2u) {
    //:sum-subgroup-each-row     sum#_$ += subgroupShuffleXor(sum#_$, s);
    //:sum-subgroup-each-row-gate     up#_$ += subgroupShuffleXor(up#_$, s);
    //:sum-subgroup }
    //:sum-shared-row workgroupBarrier();
    //:sum-shared-row-each partial[#u * THREADS + thread] = sum#_$;
    //:sum-shared-row-each-gate partial[(TOKENS + #u) * THREADS + thread] = up#_$;
    //:sum-shared-row workgroupBarrier();
    //:sum-shared-row for (var s = LANES / 2u; s > 0u; s /= 2u) {
    //:sum-shared-row     if lane < s {
    //:sum-shared-row-each         partial[#u * THREADS + thread] += partial[#u * THREADS + thread + s];
    //:sum-shared-row-each-gate         partial[(TOKENS + #u) * THREADS + thread] += partial[(TOKENS + #u) * THREADS + thread + s];
    //:sum-shared-row     }
    //:sum-shared-row     workgroupBarrier();
    //:sum-shared-row }
    //:sum-shared-row-each sum#_$ = partial[#u * THREADS + team * LANES];
    //:sum-shared-row-each-gate up#_$ = partial[(TOKENS + #u) * THREADS + team * LANES];
    //:given let to = p.first_token * p.out_stride + p.first_row + first;
    //:picked let to = group.z * p.out_stride + p.first_row + first;
    //:row if lane == $u % LANES && first + $u < count {
    //:row-store-each out[to + $u + #u * p.out_stride] = biased(first + $u, sum#_$);
    //:row-add-each out[to + $u + #u * p.out_stride] += biased(first + $u, sum#_$);
    //:row-each-gate out[to + $u + #u * p.out_stride] = GATE(biased(first + $u, sum#_$), biased(first + $u + count, up#_$), p.limit);
    //:row }
}
