// The largest size of a matrix's weights; infinities and NaN do not count. A workgroup takes a row, and every so many-th
// after it.

struct Params {
    columns: u32,
    rows: u32,
    bytes_per_row: u32,
}

var<immediate> p: Params;

// Bits of floats that are not negative are in the floats' order.
@group(0) @binding(2) var<storage, read_write> most: atomic<u32>;

const PARTS = BLOCK_ELEMENTS / 16u;

fn larger(largest: f32, v: vec4<f32>) -> f32 {
    let size = abs(v);
    let finite = select(vec4<f32>(), size, size <= vec4<f32>(3.4e38));
    return max(largest, max(max(finite.x, finite.y), max(finite.z, finite.w)));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var largest = 0.0;
    for (var row = group.x; row < p.rows; row += groups.x) {
        for (var part = thread; part < p.columns / 16u; part += 64u) {
            let w = decode16(row * p.bytes_per_row + part / PARTS * BLOCK_BYTES, part % PARTS);
            largest = larger(larger(larger(larger(largest, w[0]), w[1]), w[2]), w[3]);
        }
    }
    atomicMax(&most, bitcast<u32>(largest));
}
