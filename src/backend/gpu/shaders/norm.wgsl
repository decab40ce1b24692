// One workgroup a row: out = x / rms(x) * weight, or (x - mean) / sqrt(var + eps) * weight + bias. V is four elements where
// rows have a multiple of four, else one. The first four of a thread stay in its registers.

struct Params {
    // Of V.
    columns: u32,
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<V>;
@group(0) @binding(1) var<storage, read> weight: array<V>;
@group(0) @binding(2) var<storage, read> bias: array<V>;
@group(0) @binding(3) var<storage, read_write> out: array<V>;

//:sum-shared var<workgroup> sums: array<f32, THREADS>;
//:sum-subgroup var<workgroup> sums: array<f32, THREADS / 4u>;

//:four fn over(v: V) -> f32 {
//:four     return (v.x + v.y) + (v.z + v.w);
//:four }
//:one fn over(v: V) -> f32 {
//:one     return v;
//:one }

// The sum of every thread's value, in all threads.
//:sum-shared fn all(value: f32, thread: u32) -> f32 {
//:sum-shared     workgroupBarrier();
//:sum-shared     sums[thread] = value;
//:sum-shared     workgroupBarrier();
//:sum-shared     for (var s = THREADS / 2u; s > 0u; s /= 2u) {
//:sum-shared         if thread < s {
//:sum-shared             sums[thread] += sums[thread + s];
//:sum-shared         }
//:sum-shared         workgroupBarrier();
//:sum-shared     }
//:sum-shared     return sums[0];
//:sum-shared }
//:sum-subgroup fn all(value: f32, invocation: u32, subgroup: u32, subgroup_size: u32) -> f32 {
//:sum-subgroup     let sum = subgroupAdd(value);
//:sum-subgroup     workgroupBarrier();
//:sum-subgroup     if invocation == 0u {
//:sum-subgroup         sums[subgroup] = sum;
//:sum-subgroup     }
//:sum-subgroup     workgroupBarrier();
//:sum-subgroup     var some = 0.0;
//:sum-subgroup     for (var i = invocation; i < THREADS / subgroup_size; i += subgroup_size) {
//:sum-subgroup         some += sums[i];
//:sum-subgroup     }
//:sum-subgroup     return subgroupAdd(some);
//:sum-subgroup }

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    //:sum-subgroup @builtin(subgroup_invocation_id) invocation: u32,
    //:sum-subgroup @builtin(subgroup_size) subgroup_size: u32,
    //:sum-subgroup @builtin(subgroup_id) subgroup: u32,
) {
    let start = group.x * p.columns;
    let last = p.columns - 1u;
    // Those beyond the last are loaded, but not counted.
    //:part let at@ = thread + @u * THREADS;
    //:part let x@ = x[start + min(at@, last)];
    //:part let weight@ = weight[min(at@, last)];
    //:layer-part let bias@ = bias[min(at@, last)];
    var mean = 0.0;
    //:layer var sum = V();
    //:layer-part if at@ <= last {
    //:layer-part     sum += x@;
    //:layer-part }
    //:layer for (var i = thread + 4u * THREADS; i <= last; i += THREADS) {
    //:layer     sum += x[start + i];
    //:layer }
    //:layer-sum-shared mean = all(over(sum), thread);
    //:layer-sum-subgroup mean = all(over(sum), invocation, subgroup, subgroup_size);
    //:layer mean /= (f32(p.columns) * PER_V);
    var squares = V();
    //:part if at@ <= last {
    //:part     let d = x@ - mean;
    //:part     squares += d * d;
    //:part }
    for (var i = thread + 4u * THREADS; i <= last; i += THREADS) {
        let d = x[start + i] - mean;
        squares += d * d;
    }
    //:sum-shared let square = all(over(squares), thread);
    //:sum-subgroup let square = all(over(squares), invocation, subgroup, subgroup_size);
    let scale = 1.0 / sqrt(square / (f32(p.columns) * PER_V) + p.eps);
    //:part if at@ <= last {
    //:part-rms out[start + at@] = (x@ - mean) * scale * weight@;
    //:part-layer out[start + at@] = (x@ - mean) * scale * weight@ + bias@;
    //:part }
    for (var i = thread + 4u * THREADS; i <= last; i += THREADS) {
        let y = (x[start + i] - mean) * scale * weight[i];
        //:rms out[start + i] = y;
        //:layer out[start + i] = y + bias[i];
    }
}
