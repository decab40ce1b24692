// Which two experts each row goes through, and what they count: SparseMixer, as model/experts.rs has it. A thread takes a row.

struct Params {
    rows: u32,
    experts: u32,
    // How far from the best, relative to the larger, a score is close.
    closeness: f32,
}

var<immediate> p: Params;

// [rows][experts]
@group(0) @binding(0) var<storage, read> scores: array<f32>;
// [rows][4]: the experts in ascending order, and what each counts, as bits.
@group(0) @binding(1) var<storage, read_write> routes: array<u32>;

struct Choice {
    expert: u32,
    weight: f32,
}

const NONE = 0xffffffffu;

// The best expert but `taken`, and its share in the softmax over those that are close to it.
fn best(start: u32, taken: u32) -> Choice {
    var expert = 0u;
    var largest = -3.4028234e38;
    for (var i = 0u; i < p.experts; i++) {
        if i != taken && scores[start + i] > largest {
            expert = i;
            largest = scores[start + i];
        }
    }
    var sum = 0.0;
    for (var i = 0u; i < p.experts; i++) {
        let score = scores[start + i];
        let size = max(abs(score), largest);
        // 0 / 0 counts as close.
        let is_close = size == 0.0 || (largest - score) / size <= p.closeness;
        if i != taken && is_close {
            sum += exp(score - largest);
        }
    }
    return Choice(expert, 1.0 / sum);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.rows {
        return;
    }
    let first = best(id.x * p.experts, NONE);
    let second = best(id.x * p.experts, first.expert);
    let in_order = first.expert < second.expert;
    routes[4u * id.x] = min(first.expert, second.expert);
    routes[4u * id.x + 1u] = max(first.expert, second.expert);
    routes[4u * id.x + 2u] = bitcast<u32>(select(second.weight, first.weight, in_order));
    routes[4u * id.x + 3u] = bitcast<u32>(select(first.weight, second.weight, in_order));
}
