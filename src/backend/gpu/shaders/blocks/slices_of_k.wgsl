
// A slice is every other part of a half: the bits of its elements share words.

const SLICE_PARTS: u32 = 4u;

fn part_of(slice: u32, k: u32) -> u32 {
    return 8u * (slice >> 1u) + 2u * k + (slice & 1u);
}

fn lanes16(block: u32, part: u32) -> Lanes16 {
    return lanes(block, 2u * (part >> 3u) + (part & 1u), (part >> 1u) & 3u);
}
