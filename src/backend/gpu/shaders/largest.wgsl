// The number of each row's largest element, the first of several: one workgroup a row.

struct Params {
    columns: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

const THREADS = 256u;

var<workgroup> best: array<f32, THREADS>;
var<workgroup> at: array<u32, THREADS>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.x * p.columns;
    var value = -3.4e38;
    var number = 0u;
    for (var i = thread; i < p.columns; i += THREADS) {
        if x[start + i] > value {
            value = x[start + i];
            number = i;
        }
    }
    best[thread] = value;
    at[thread] = number;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s /= 2u) {
        if thread < s {
            let other = best[thread + s];
            if other > best[thread] || (other == best[thread] && at[thread + s] < at[thread]) {
                best[thread] = other;
                at[thread] = at[thread + s];
            }
        }
        workgroupBarrier();
    }
    if thread == 0u {
        out[group.x] = at[0];
    }
}
