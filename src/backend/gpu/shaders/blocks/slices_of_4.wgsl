
// A slice is four parts in order.

const SLICE_PARTS: u32 = 4u;

fn part_of(slice: u32, k: u32) -> u32 {
    return 4u * slice + k;
}

fn lanes16(block: u32, part: u32) -> Lanes16 {
    return lanes(block, part >> 2u, part & 3u);
}
