
// The row's query, key and value of the heads that a workgroup has, rotated.
var<workgroup> fresh: array<f32, 3u * PADDED>;

fn element(start: u32, row: u32, e: u32, rotate: bool) -> f32 {
    return fresh[start + e];
}

// Takes the row's query from qkv and, where it ends a split, puts its key and value into the cache: every workgroup of a
// head of keys does, with the same words, as none sees what another wrote.
fn append_own(head: u32, kv_head: u32, last: bool, at: u32, thread: u32) {
    let start = p.first_row * (p.heads + 2u * p.kv_heads);
    for (var i = thread; i < select(PADDED, 3u * PADDED, last); i += THREADS) {
        let which = i / PADDED;
        let source = select(p.heads + (which - 1u) * p.kv_heads + kv_head, head, which == 0u);
        let x = rotated((start + source) * p.size, p.first_row, i % PADDED, which < 2u);
        fresh[i] = select(x, p.scale * x, which == 0u);
    }
    workgroupBarrier();
    if thread < FOURS {
        query[thread] = four(0u, 0u, thread * 4u, true);
    }
    let group = thread % GROUPS;
    let to = (at * p.kv_heads + kv_head) * GROUPS + group;
    if last && thread / GROUPS == 0u {
        store_key(to, PADDED, 0u, group * 32u, true);
    }
    if last && thread / GROUPS == 1u {
        store_value(to, 2u * PADDED, 0u, group * 32u, false);
    }
    storageBarrier();
}
