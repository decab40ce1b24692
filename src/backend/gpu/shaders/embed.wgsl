// out[i] = table[ids[i]], for the ids whose rows are in this buffer.

struct Params {
    columns: u32,
    rows: u32,
    first_row: u32,
    bytes_per_row: u32,
    tokens: u32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

const PARTS = BLOCK_ELEMENTS / 16u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let chunk = id.x;
    let row = ids[id.y] - p.first_row;
    // What is below the first row has wrapped around.
    if chunk >= p.columns / 16u || row >= p.rows {
        return;
    }
    let w = decode16(row * p.bytes_per_row + chunk / PARTS * BLOCK_BYTES, chunk % PARTS);
    let at = id.y * (p.columns / 4u) + chunk * 4u;
    out[at] = w[0];
    out[at + 1u] = w[1];
    out[at + 2u] = w[2];
    out[at + 3u] = w[3];
}
