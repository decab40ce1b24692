
// The slice is the block, its parts in order.

const SLICE_PARTS: u32 = 2u;

fn part_of(slice: u32, k: u32) -> u32 {
    return k;
}

fn lanes16(block: u32, part: u32) -> Lanes16 {
    return lanes(block, 0u, part);
}
