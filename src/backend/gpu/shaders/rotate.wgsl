
// Element e of the head that begins at `start` of row `row`, rotated if it is a query's or a key's.
fn rotated(start: u32, row: u32, e: u32, rotate: bool) -> f32 {
    if e >= p.size {
        return 0.0;
    }
    let x = qkv[start + e];
    if !rotate || e >= 2u * p.pairs {
        return x;
    }
    let angle = row * p.pairs + e % p.pairs;
    if e < p.pairs {
        return x * cosines[angle] - qkv[start + e + p.pairs] * sines[angle];
    }
    return x * cosines[angle] + qkv[start + e - p.pairs] * sines[angle];
}

fn four(start: u32, row: u32, e: u32, rotate: bool) -> vec4<f32> {
    return vec4<f32>(
        element(start, row, e, rotate),
        element(start, row, e + 1u, rotate),
        element(start, row, e + 2u, rotate),
        element(start, row, e + 3u, rotate),
    );
}
