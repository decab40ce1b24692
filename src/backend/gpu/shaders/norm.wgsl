// One workgroup a row: out = x / rms(x) * weight, or (x - mean) / sqrt(var + eps) * weight + bias.

struct Params {
    columns: u32,
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const THREADS = 256u;

var<workgroup> sums: array<f32, THREADS>;

// The sum of every thread's value, in all threads.
fn total(value: f32, thread: u32) -> f32 {
    sums[thread] = value;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s /= 2u) {
        if thread < s {
            sums[thread] += sums[thread + s];
        }
        workgroupBarrier();
    }
    let all = sums[0];
    workgroupBarrier();
    return all;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.x * p.columns;
    var mean = 0.0;
    //:layer for (var i = thread; i < p.columns; i += THREADS) {
    //:layer     mean += x[start + i];
    //:layer }
    //:layer mean = total(mean, thread) / f32(p.columns);
    var square = 0.0;
    for (var i = thread; i < p.columns; i += THREADS) {
        let d = x[start + i] - mean;
        square += d * d;
    }
    let scale = 1.0 / sqrt(total(square, thread) / f32(p.columns) + p.eps);
    for (var i = thread; i < p.columns; i += THREADS) {
        let y = (x[start + i] - mean) * scale * weight[i];
        //:rms out[start + i] = y;
        //:layer out[start + i] = y + bias[i];
    }
}
