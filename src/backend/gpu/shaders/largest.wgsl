// The best entries of each chunk of a row, best first: a workgroup a chunk. A first pass looks at floats, later ones at what
// the pass before left. An entry is a key, by which larger elements are better, and the element's number, of which of equals the
// lower is better.

struct Params {
    // Entries of a row, and how many of them a chunk leaves.
    columns: u32,
    count: u32,
}

var<immediate> p: Params;

// Floats as bits, so that no compiler assumes that there are no NaN; or pairs.
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<u32>>;

const THREADS = 256u;
const CHUNK = 512u;

var<workgroup> keys: array<u32, CHUNK>;
var<workgroup> numbers: array<u32, CHUNK>;

// NaN is above everything, -0 is 0; nothing has a key of 0.
fn key(bits: u32) -> u32 {
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0xffffffffu;
    }
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn is_better(a: u32, b: u32) -> bool {
    return keys[a] > keys[b] || (keys[a] == keys[b] && numbers[a] < numbers[b]);
}

// Puts entries `a` and `b` in order: the better first, or last.
fn order(a: u32, b: u32, better_first: bool) {
    if is_better(b, a) == better_first {
        let key_a = keys[a];
        let number_a = numbers[a];
        keys[a] = keys[b];
        numbers[a] = numbers[b];
        keys[b] = key_a;
        numbers[b] = number_a;
    }
}

// Puts runs of `size` in order that rise or fall in both halves, runs of even number with the better first; there are 2 `pairs`
// entries.
fn merge(thread: u32, size: u32, pairs: u32) {
    for (var s = size / 2u; s > 0u; s /= 2u) {
        if thread < pairs {
            let a = 2u * s * (thread / s) + thread % s;
            order(a, a + s, (a & size) == 0u);
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    for (var i = thread; i < CHUNK; i += THREADS) {
        let number = group.x * CHUNK + i;
        let at = group.y * p.columns + number;
        keys[i] = 0u;
        numbers[i] = 0xffffffffu;
        if number < p.columns {
            //:first keys[i] = key(x[at]);
            //:first numbers[i] = number;
            //:later keys[i] = x[2u * at];
            //:later numbers[i] = x[2u * at + 1u];
        }
    }
    workgroupBarrier();
    // Runs as long as what is to be left: sorted, then the better half of two runs as often as there are two.
    var run = 1u;
    while run < p.count {
        run *= 2u;
        merge(thread, run, CHUNK / 2u);
    }
    for (var left = CHUNK / 2u; left >= run; left /= 2u) {
        var chosen = 0u;
        if thread < left {
            chosen = 2u * run * (thread / run) + thread % run;
            chosen = select(chosen + run, chosen, is_better(chosen, chosen + run));
        }
        let best_key = keys[chosen];
        let best_number = numbers[chosen];
        workgroupBarrier();
        if thread < left {
            keys[thread] = best_key;
            numbers[thread] = best_number;
        }
        workgroupBarrier();
        merge(thread, run, left / 2u);
    }
    if thread < p.count {
        out[(group.y * groups.x + group.x) * p.count + thread] = vec2<u32>(keys[thread], numbers[thread]);
    }
}
