// Puts the splits of attention.wgsl together: one workgroup a row and head, a thread four elements.

struct Params {
    first_row: u32,
    heads: u32,
    size: u32,
    splits: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> splits: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) four: u32) {
    if four * 4u >= p.size {
        return;
    }
    let start = (group.y * p.heads + group.x) * p.splits;
    let width = PADDED + 4u;
    var largest = splits[start * width + PADDED];
    for (var i = 1u; i < p.splits; i++) {
        largest = max(largest, splits[(start + i) * width + PADDED]);
    }
    var total = 0.0;
    var sum = vec4<f32>();
    for (var i = 0u; i < p.splits; i++) {
        let at = (start + i) * width;
        let weight = exp(splits[at + PADDED] - largest);
        total += weight * splits[at + PADDED + 1u];
        let piece = at + four * 4u;
        sum += weight * vec4<f32>(splits[piece], splits[piece + 1u], splits[piece + 2u], splits[piece + 3u]);
    }
    sum /= max(total, 1.0e-37);
    let to = ((p.first_row + group.y) * p.heads + group.x) * p.size + four * 4u;
    for (var i = 0u; i < 4u; i++) {
        if four * 4u + i < p.size {
            out[to + i] = sum[i];
        }
    }
}
