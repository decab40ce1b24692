//! Register tiles without dot-product instructions: products of bytes are added up in pairs, in 16 bits.

use super::Isa;

/// What x86 offers instead of a dot product of four bytes.
pub trait Pairs: Isa {
    /// i16 lane `i` is `u[2i] * a[2i] + u[2i+1] * a[2i+1]`, which must fit; `u` unsigned, `a` signed.
    fn w_pairs(self, u: Self::W, a: Self::W) -> Self::W;
    /// Sums of i16 lanes.
    fn w_add_i16(self, a: Self::W, b: Self::W) -> Self::W;
    /// Each i32, which fits i16, twice as i16.
    fn w_twice_i16(self, v: Self::W) -> Self::W;
    /// The distance of unsigned bytes from 128.
    fn w_distance(self, u: Self::W) -> Self::W;
    /// Bytes of `a`, negative where a byte of `u` is below 128; where it is 128 anything will do.
    fn w_signed(self, u: Self::W, a: Self::W) -> Self::W;
}

/// [`Isa::w_group_tile`].
#[inline(always)]
pub fn group_of_pairs<I: Pairs, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::W; R]; T],
    rows: &[i32],
    tokens: &[i32],
    starts: Option<&[i32]>,
    scales: Option<&[i32]>,
    largest: u8,
) {
    let lanes = I::LANES;
    let quads = tokens.len() / T;
    assert!(rows.len() >= quads * R * lanes);
    if let Some(starts) = starts {
        for t in 0..T {
            let start = isa.w_splat(starts[t]);
            for r in 0..R {
                sum[t][r] = isa.w_add(sum[t][r], scaled(isa, start, scales, r));
            }
        }
    }
    if largest > 127 {
        let mut dot = [[isa.w_splat(0); R]; T];
        for q in 0..quads {
            wide_quad(isa, &mut dot, &rows[q * R * lanes..(q + 1) * R * lanes], &tokens[q * T..(q + 1) * T]);
        }
        for t in 0..T {
            for r in 0..R {
                sum[t][r] = isa.w_add(sum[t][r], scaled(isa, dot[t][r], scales, r));
            }
        }
        return;
    }
    let mut scale = [isa.w_splat(0x0001_0001); R];
    if let Some(scales) = scales {
        for r in 0..R {
            scale[r] = isa.w_twice_i16(isa.w_load(&scales[lanes * r..]));
        }
    }
    // So many products of pairs add up in 16 bits, and one multiplication then scales and widens the sum.
    let run = (32767 / (2 * 127 * usize::from(largest))).min(quads);
    let mut q = 0;
    while q < quads {
        let mut pairs = [[isa.w_splat(0); R]; T];
        for q in q..(q + run).min(quads) {
            let mut row = [isa.w_splat(0); R];
            for r in 0..R {
                row[r] = isa.w_load(&rows[(q * R + r) * lanes..]);
            }
            for t in 0..T {
                let token = isa.w_splat(tokens[q * T + t]);
                for r in 0..R {
                    pairs[t][r] = isa.w_add_i16(pairs[t][r], isa.w_pairs(row[r], token));
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                sum[t][r] = isa.w_dot2_i16(sum[t][r], pairs[t][r], scale[r]);
            }
        }
        q += run;
    }
}

/// `v` times the scales of row vector `r`, if there are any.
#[inline(always)]
fn scaled<I: Isa>(isa: I, v: I::W, scales: Option<&[i32]>, r: usize) -> I::W {
    match scales {
        Some(scales) => isa.w_mul(isa.w_load(&scales[I::LANES * r..]), v),
        None => v,
    }
}

/// Four columns of a tile of rows whose bytes exceed 127. Bytes are seen as 128 + q: products of |q| with the tokens
/// under q's sign fit 16 bits in pairs.
#[inline(always)]
fn wide_quad<I: Pairs, const R: usize, const T: usize>(
    isa: I,
    sum: &mut [[I::W; R]; T],
    rows: &[i32],
    tokens: &[i32],
) {
    let (zero, one) = (isa.w_splat(0), isa.w_splat(0x0001_0001));
    let (one_byte, middle) = (isa.w_splat(0x0101_0101), isa.w_splat(128 << 16 | 128));
    let (mut row, mut size) = ([zero; R], [zero; R]);
    for r in 0..R {
        row[r] = isa.w_load(&rows[I::LANES * r..]);
        size[r] = isa.w_distance(row[r]);
    }
    for t in 0..T {
        let token = isa.w_splat(tokens[t]);
        let all = isa.w_dot2_i16(zero, isa.w_pairs(one_byte, token), middle);
        for r in 0..R {
            let pairs = isa.w_pairs(size[r], isa.w_signed(row[r], token));
            sum[t][r] = isa.w_add(sum[t][r], isa.w_dot2_i16(all, pairs, one));
        }
    }
}
