// One query of one head over SPLIT positions: for a few rows, where reading the cache is all the work. Where a sequence has
// one row only, it is appended here too.

const THREADS = 128u;
const SPLIT = 128u;
// Threads that share a position's score.
const LANES = 4u;
// Threads that share a vector of the result.
const SHARE = THREADS / FOURS;

var<workgroup> query: array<vec4<f32>, FOURS>;
var<workgroup> parts: array<f32, SPLIT * LANES>;
var<workgroup> weights: array<f32, SPLIT>;
var<workgroup> reduced: array<f32, THREADS>;
var<workgroup> sums: array<vec4<f32>, THREADS>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.y;
    let row = p.first_row + group.z;
    let kv_head = head / (p.heads / p.kv_heads);
    let position = p.position + group.z;
    let start = p.start + group.x * SPLIT;
    let count = min(SPLIT, p.length - start);
    //:appends append_own(head, kv_head, p.segment + start + count == position + 1u, start + count - 1u, thread);
    //:appended if thread < FOURS {
    //:appended     query[thread] = queries[(row * p.heads + head) * FOURS + thread];
    //:appended }
    workgroupBarrier();
    let lane = thread % LANES;
    for (var i = thread / LANES; i < count; i += THREADS / LANES) {
        var score = 0.0;
        for (var four = lane; four < FOURS; four += LANES) {
            score += dot(query[four], key_at(start + i, kv_head, four));
        }
        parts[i * LANES + lane] = score;
    }
    workgroupBarrier();
    var score = LOWEST;
    if thread < count && sees(head, position, p.segment + start + thread) {
        let at = thread * LANES;
        score = parts[at] + parts[at + 1u] + parts[at + 2u] + parts[at + 3u];
    }
    reduced[thread] = score;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s /= 2u) {
        if thread < s {
            reduced[thread] = max(reduced[thread], reduced[thread + s]);
        }
        workgroupBarrier();
    }
    let largest = reduced[0];
    workgroupBarrier();
    let weight = select(0.0, exp(score - largest), score > LOWEST);
    weights[thread] = weight;
    reduced[thread] = weight;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s /= 2u) {
        if thread < s {
            reduced[thread] += reduced[thread + s];
        }
        workgroupBarrier();
    }
    let four = thread % FOURS;
    let share = thread / FOURS;
    var sum = vec4<f32>();
    if share < SHARE {
        for (var i = share; i < count; i += SHARE) {
            sum += weights[i] * value_at(start + i, kv_head, four);
        }
    }
    sums[thread] = sum;
    workgroupBarrier();
    if share == 0u {
        for (var i = 1u; i < SHARE; i++) {
            sum += sums[thread + i * FOURS];
        }
        leave(row, head, p.first_split + group.x, four, sum, largest, reduced[0]);
    }
}
