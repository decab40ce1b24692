// Operations that take every element by itself; OP is the one that this pipeline does.

struct Params {
    // Elements, or vectors of them, to go through.
    items: u32,
    // Of a row of the target.
    columns: u32,
    // Of a row of the source.
    source_columns: u32,
    // Where in a row of the target the source begins.
    offset: u32,
    factor: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<f32>;
// Row numbers; for scatter_add, weights (as bits) after them.
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> to: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 256u + id.x;
    if i < p.items {
        OP(i);
    }
}

fn add(i: u32) {
    to[i] += source[i];
}

fn add_bias(i: u32) {
    to[i] += source[i % p.columns];
}

fn scale(i: u32) {
    to[i] *= p.factor;
}

fn gelu(i: u32) {
    let x = to[i];
    to[i] = x / (1.0 + exp(-1.595769 * x * (1.0 + 0.044715 * x * x)));
}

// Rows of the source are twice as wide: gate, then up.
fn gate(i: u32) {
    let at = i / p.columns * p.source_columns + i % p.columns;
    to[i] = GATE(source[at], source[at + p.columns], p.factor);
}

// Copies rows into columns of wider rows.
fn concat(i: u32) {
    to[i / p.source_columns * p.columns + p.offset + i % p.source_columns] = source[i];
}

fn gather(i: u32) {
    to[i] = source[rows[i / p.columns] * p.columns + i % p.columns];
}

// The results of a row's two experts come one after the other; `rows` is what route.wgsl leaves.
fn mix(i: u32) {
    let row = i / p.columns;
    let first = 2u * row * p.columns + i % p.columns;
    let one = bitcast<f32>(rows[4u * row + 2u]) * source[first];
    to[i] = one + bitcast<f32>(rows[4u * row + 3u]) * source[first + p.columns];
}

fn scatter_add(i: u32) {
    let row = i / p.columns;
    let weight = bitcast<f32>(rows[p.items / p.columns + row]);
    to[rows[row] * p.columns + i % p.columns] += weight * source[i];
}
