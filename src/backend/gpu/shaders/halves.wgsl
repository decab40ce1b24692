// Rows of x as half precision, for cooperative products: scaled by a power of two that brings a row's largest element
// between 1024 and 2048, and what to multiply with to undo that.

struct Params {
    // Vectors of four columns.
    fours: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> halves: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

const THREADS = 256u;

var<workgroup> largest: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.x * p.fours;
    var most = vec4<f32>();
    for (var i = thread; i < p.fours; i += THREADS) {
        most = max(most, abs(x[start + i]));
    }
    largest[thread] = max(max(most.x, most.y), max(most.z, most.w));
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s /= 2u) {
        if thread < s {
            largest[thread] = max(largest[thread], largest[thread + s]);
        }
        workgroupBarrier();
    }
    // Exponents whose powers of two, and their inverses, are not subnormal.
    let power = clamp(i32(bitcast<u32>(largest[0]) >> 23u) - 137, -100, 100);
    let scale = bitcast<f32>(u32(127 - power) << 23u);
    if thread == 0u {
        scales[group.x] = bitcast<f32>(u32(127 + power) << 23u) ;
    }
    for (var i = thread; i < p.fours; i += THREADS) {
        let v = x[start + i] * scale;
        halves[start + i] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
    }
}
