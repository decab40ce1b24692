// A tile of 32 queries of one head over all of a segment, 16 positions at a time, with the online softmax of
// FlashAttention (Dao et al. 2022): for prompts, where the products are the work. Four threads share a query.

const TILE = 32u;
const BLOCK = 16u;
const THREADS = 128u;
const LANES = 4u;
const OWN = FOURS / LANES;

var<workgroup> query: array<vec4<f32>, TILE * FOURS>;
// A block's keys, then its values.
var<workgroup> block: array<vec4<f32>, BLOCK * FOURS>;
var<workgroup> scores: array<f32, TILE * BLOCK>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let first = group.x * TILE;
    let last = min(first + TILE, p.rows) - 1u;
    for (var i = thread; i < TILE * FOURS; i += THREADS) {
        let row = p.first_row + min(first + i / FOURS, last);
        query[i] = queries[(row * p.heads + head) * FOURS + i % FOURS];
    }
    let own = thread / LANES;
    let lane = thread % LANES;
    let row = first + own;
    let position = p.position + row;
    // The positions that any query of the tile sees.
    let oldest = p.position + first;
    var begin = 0u;
    if oldest + 1u > p.window {
        begin = max(oldest + 1u - p.window, p.segment) - p.segment;
    }
    begin = begin / BLOCK * BLOCK;
    var end = 0u;
    if p.position + last + 1u > p.segment {
        end = min(p.position + last + 1u - p.segment, p.length);
    }
    var largest = LOWEST;
    var total = 0.0;
    var sum: array<vec4<f32>, OWN>;
    for (var i = 0u; i < OWN; i++) {
        sum[i] = vec4<f32>();
    }
    for (var start = begin; start < end; start += BLOCK) {
        workgroupBarrier();
        for (var i = thread; i < BLOCK * FOURS; i += THREADS) {
            block[i] = key_at(min(start + i / FOURS, p.length - 1u), kv_head, i % FOURS);
        }
        workgroupBarrier();
        var highest = LOWEST;
        for (var j = 0u; j < BLOCK / LANES; j++) {
            let key = j * LANES + lane;
            var score = LOWEST;
            if start + key < p.length && sees(head, position, p.segment + start + key) {
                score = 0.0;
                for (var four = 0u; four < FOURS; four++) {
                    score += dot(query[own * FOURS + four], block[key * FOURS + four]);
                }
            }
            scores[own * BLOCK + key] = score;
        }
        workgroupBarrier();
        for (var i = thread; i < BLOCK * FOURS; i += THREADS) {
            block[i] = value_at(min(start + i / FOURS, p.length - 1u), kv_head, i % FOURS);
        }
        for (var j = 0u; j < BLOCK; j++) {
            highest = max(highest, scores[own * BLOCK + j]);
        }
        let next = max(largest, highest);
        let shrink = exp(largest - next);
        largest = next;
        total *= shrink;
        for (var i = 0u; i < OWN; i++) {
            sum[i] *= shrink;
        }
        workgroupBarrier();
        for (var j = 0u; j < BLOCK; j++) {
            let score = scores[own * BLOCK + j];
            let weight = select(0.0, exp(score - largest), score > LOWEST);
            total += weight;
            for (var i = 0u; i < OWN; i++) {
                sum[i] += weight * block[j * FOURS + i * LANES + lane];
            }
        }
    }
    if row <= last {
        for (var i = 0u; i < OWN; i++) {
            leave(p.first_row + row, head, p.first_split, i * LANES + lane, sum[i], largest, total);
        }
    }
}
