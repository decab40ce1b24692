//! The portable path: plain arrays. It is the reference that the other ISAs are tested against.

use super::{Isa, Kernel, MAX_ROWS, NoDotBf16, NoEights, NoTiles, OfRows, TileKernel, WideFloats};

/// The token that every machine has.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

#[inline(always)]
fn map2<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn first<T: Copy, const N: usize>(from: &[T]) -> [T; N] {
    std::array::from_fn(|i| from[i])
}

#[inline(always)]
fn i16s(v: [u8; 32]) -> [i16; 16] {
    std::array::from_fn(|i| i16::from_le_bytes([v[2 * i], v[2 * i + 1]]))
}

#[inline(always)]
fn from_i16s(v: [i16; 16]) -> [u8; 32] {
    std::array::from_fn(|i| v[i / 2].to_le_bytes()[i % 2])
}

#[inline(always)]
fn dot4(acc: i32, u: [u8; 4], a: [u8; 4]) -> i32 {
    (0..4).fold(acc, |acc, j| acc.wrapping_add(i32::from(u[j]) * i32::from(a[j] as i8)))
}

impl WideFloats for Scalar {
    const LANES: usize = 8;
    type F = [f32; 8];

    #[inline(always)]
    fn f_splat(self, x: f32) -> Self::F {
        [x; 8]
    }
    #[inline(always)]
    fn f_load(self, from: &[f32]) -> Self::F {
        first(from)
    }
    #[inline(always)]
    fn f_store(self, v: Self::F, to: &mut [f32]) {
        to[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn f_store_f16(self, v: Self::F, to: &mut [u16]) {
        for i in 0..8 {
            to[i] = half::f16::from_f32(v[i]).to_bits();
        }
    }
    #[inline(always)]
    fn f_load_f16(self, from: &[u16]) -> Self::F {
        std::array::from_fn(|i| half::f16::from_bits(from[i]).to_f32())
    }
    #[inline(always)]
    fn f_load_bf16(self, from: &[u16]) -> Self::F {
        std::array::from_fn(|i| f32::from_bits(u32::from(from[i]) << 16))
    }
    #[inline(always)]
    fn f_add(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn f_sub(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn f_mul(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn f_div(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn f_max(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn f_min(self, a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn f_abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn f_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.g_fma(a, b, c)
    }
    #[inline(always)]
    fn f_fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.g_fnma(a, b, c)
    }
    #[inline(always)]
    fn f_raise(self, a: Self::F, by: Self::F) -> Self::F {
        std::array::from_fn(|i| f32::from_bits(a[i].to_bits().wrapping_add(by[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn f_raise_from(self, a: Self::F, by: Self::F, x: Self::F, least: Self::F) -> Self::F {
        let raised = self.f_raise(a, by);
        std::array::from_fn(|i| if x[i] >= least[i] { raised[i] } else { 0.0 })
    }
}

impl Isa for Scalar {
    const NAME: &'static str = "scalar";
    const ROWS: usize = 1;
    const TILE: (usize, usize) = (1, 4);
    const LARGEST_FOLDED: u8 = 255;
    type B = [u8; 32];
    type N = [i32; 8];
    type G = [f32; 8];
    type W = [i32; 8];
    type DotBf16 = NoDotBf16;
    type Eights = NoEights;
    type Tiles = NoTiles;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn tile<K: TileKernel>(self, kernel: K) {
        kernel.run::<Self, 1, 4>(self);
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
    #[inline(always)]
    fn b_load(self, from: OfRows<&[u8; 32]>) -> Self::B {
        *from[0]
    }
    #[inline(always)]
    fn b_all_i8(self, from: &[i8; 32]) -> Self::B {
        from.map(|x| x as u8)
    }
    #[inline(always)]
    fn b_from_w(self, v: Self::W) -> Self::B {
        let mut bytes = [0; 32];
        for i in 0..8 {
            bytes[4 * i..4 * i + 4].copy_from_slice(&v[i].to_le_bytes());
        }
        bytes
    }
    #[inline(always)]
    fn w_from_b(self, v: Self::B) -> Self::W {
        let mut words = [0; 8];
        for i in 0..8 {
            words[i] = i32::from_le_bytes([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]);
        }
        words
    }
    #[inline(always)]
    fn b_all_i16(self, from: &[i16; 16]) -> Self::B {
        from_i16s(*from)
    }
    #[inline(always)]
    fn b_store(self, v: Self::B, to: &mut [u8], _stride: usize) {
        to[..32].copy_from_slice(&v);
    }
    #[inline(always)]
    fn b_nibbles(self, from: OfRows<&[u8; 16]>) -> Self::B {
        std::array::from_fn(|i| if i < 16 { from[0][i] & 15 } else { from[0][i - 16] >> 4 })
    }
    #[inline(always)]
    fn b_words(self, from: OfRows<[u64; 4]>) -> Self::B {
        std::array::from_fn(|i| from[0][i / 8].to_le_bytes()[i % 8])
    }
    #[inline(always)]
    fn b_to_words(self, v: Self::B) -> OfRows<[u64; 4]> {
        let words = std::array::from_fn(|i| u64::from_le_bytes(first(&v[8 * i..])));
        [words; MAX_ROWS]
    }
    #[inline(always)]
    fn b_splat(self, x: u8) -> Self::B {
        [x; 32]
    }
    #[inline(always)]
    fn b_and(self, a: Self::B, b: Self::B) -> Self::B {
        map2(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn b_or(self, a: Self::B, b: Self::B) -> Self::B {
        map2(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn b_xor(self, a: Self::B, b: Self::B) -> Self::B {
        map2(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn b_add(self, a: Self::B, b: Self::B) -> Self::B {
        map2(a, b, u8::wrapping_add)
    }
    #[inline(always)]
    fn b_at_least(self, v: Self::B, x: u8) -> Self::B {
        v.map(|v| if v >= x { 0xff } else { 0 })
    }
    #[inline(always)]
    fn b_shr<const N: i32>(self, v: Self::B) -> Self::B {
        v.map(|x| x >> N)
    }
    #[inline(always)]
    fn b_shl<const N: i32>(self, v: Self::B) -> Self::B {
        v.map(|x| x << N)
    }
    #[inline(always)]
    fn b_lookup(self, table: &[u8; 16], v: Self::B) -> Self::B {
        v.map(|x| table[usize::from(x & 15)])
    }
    #[inline(always)]
    fn b_scaled<const SHIFT: i32>(
        self,
        quants: &[i16; 8],
        offset: i16,
        v: Self::B,
        scales: Self::B,
        pair: usize,
    ) -> Self::B {
        let scales = i16s(scales);
        std::array::from_fn(|i| {
            ((quants[usize::from(v[i] & 7)] * scales[2 * pair + i / 16] + offset) >> SHIFT) as u8
        })
    }
    #[inline(always)]
    fn b_from_bits(self, bits: OfRows<u32>) -> Self::B {
        std::array::from_fn(|i| if bits[0] >> i & 1 == 1 { 0xff } else { 0 })
    }
    #[inline(always)]
    fn b_sevens(self, v: Self::B) -> Self::B {
        std::array::from_fn(|i| {
            let word = u32::from_le_bytes(first(&v[i / 4 * 4..]));
            (word >> (7 * (i % 4)) & 0x7f) as u8
        })
    }
    #[inline(always)]
    fn b_tops_twice(self, v: Self::B) -> Self::B {
        from_i16s(std::array::from_fn(|i| i16::from(v[i / 2 * 4 + 3] >> 4)))
    }
    #[inline(always)]
    fn b_high_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| if i < 16 { a[2 * i + 1] } else { b[2 * (i - 16) + 1] })
    }
    #[inline(always)]
    fn b_widen_u8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        from_i16s(from[0].map(i16::from))
    }
    #[inline(always)]
    fn b_widen_i8(self, from: OfRows<&[u8; 16]>) -> Self::B {
        from_i16s(from[0].map(|x| i16::from(x as i8)))
    }
    #[inline(always)]
    fn b_widen_words(self, from: OfRows<[u64; 2]>) -> Self::B {
        from_i16s(std::array::from_fn(|i| i16::from(from[0][i / 8].to_le_bytes()[i % 8])))
    }
    #[inline(always)]
    fn b_add_i16(self, a: Self::B, b: Self::B) -> Self::B {
        let (a, b) = (i16s(a), i16s(b));
        from_i16s(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }
    #[inline(always)]
    fn b_widen_twice(self, from: OfRows<u64>) -> Self::B {
        let bytes = from[0].to_le_bytes();
        from_i16s(std::array::from_fn(|i| i16::from(bytes[i / 2])))
    }
    #[inline(always)]
    fn n_spread_i16(self, v: Self::B, pair: usize) -> Self::N {
        let v = i16s(v);
        std::array::from_fn(|i| i32::from(v[2 * pair + i / 4]))
    }

    #[inline(always)]
    fn n_zero(self) -> Self::N {
        [0; 8]
    }
    #[inline(always)]
    fn n_add(self, a: Self::N, b: Self::N) -> Self::N {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn n_sub(self, a: Self::N, b: Self::N) -> Self::N {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn n_mul(self, a: Self::N, b: Self::N) -> Self::N {
        map2(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn n_splat(self, x: i32) -> Self::N {
        [x; 8]
    }
    #[inline(always)]
    fn n_store(self, v: Self::N, to: &mut [i32]) {
        to[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn n_dot4<const WIDE: bool>(self, acc: Self::N, u: Self::B, a: Self::B) -> Self::N {
        std::array::from_fn(|i| dot4(acc[i], first(&u[4 * i..]), first(&a[4 * i..])))
    }
    #[inline(always)]
    fn n_dot4_scaled(self, acc: Self::N, u: Self::B, a: Self::B, scales: Self::B, pair: usize) -> Self::N {
        let products = self.n_dot4::<false>([0; 8], u, a);
        self.n_add(acc, self.n_mul(products, self.n_spread_i16(scales, pair)))
    }
    #[inline(always)]
    fn n_dot2_i16(self, acc: Self::N, a: Self::B, b: Self::B) -> Self::N {
        let (a, b) = (i16s(a), i16s(b));
        std::array::from_fn(|i| {
            (2 * i..2 * i + 2).fold(acc[i], |acc, j| acc.wrapping_add(i32::from(a[j]) * i32::from(b[j])))
        })
    }
    #[inline(always)]
    fn n_sums8(self, v: [Self::N; 8]) -> Self::N {
        v.map(|x| x.iter().fold(0, |a: i32, &b| a.wrapping_add(b)))
    }
    #[inline(always)]
    fn n_half_sums4(self, v: [Self::N; 4]) -> Self::N {
        std::array::from_fn(|i| {
            let half = 4 * (i / 4);
            v[i % 4][half..half + 4].iter().fold(0, |a: i32, &b| a.wrapping_add(b))
        })
    }

    #[inline(always)]
    fn g_zero(self) -> Self::G {
        [0.0; 8]
    }
    #[inline(always)]
    fn g_load(self, from: &[f32]) -> Self::G {
        first(from)
    }
    #[inline(always)]
    fn g_all(self, from: &[f32; 8]) -> Self::G {
        *from
    }
    #[inline(always)]
    fn g_store(self, v: Self::G, to: &mut [f32]) {
        to[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn g_from_halves(self, bits: &[u16; 8 * MAX_ROWS]) -> Self::G {
        std::array::from_fn(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    fn g_from_halves_twice(self, bits: OfRows<u64>) -> Self::G {
        std::array::from_fn(|i| half::f16::from_bits((bits[0] >> (16 * (i % 4))) as u16).to_f32())
    }
    #[inline(always)]
    fn g_splat(self, x: f32) -> Self::G {
        [x; 8]
    }
    #[inline(always)]
    fn g_pair(self, [a, b]: [f32; 2]) -> Self::G {
        [a, a, a, a, b, b, b, b]
    }
    #[inline(always)]
    fn g_from_n(self, v: Self::N) -> Self::G {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn g_mul(self, a: Self::G, b: Self::G) -> Self::G {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn g_fma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn g_fnma(self, a: Self::G, b: Self::G, c: Self::G) -> Self::G {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn w_splat(self, x: i32) -> Self::W {
        [x; 8]
    }
    #[inline(always)]
    fn w_load(self, from: &[i32]) -> Self::W {
        first(from)
    }
    #[inline(always)]
    fn w_load_i8(self, from: &[i8]) -> Self::W {
        let mut to = [0; 8];
        for i in 0..8 {
            to[i] = i32::from(from[i]);
        }
        to
    }
    #[inline(always)]
    fn w_store(self, v: Self::W, to: &mut [i32]) {
        to[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn w_store_i8(self, v: Self::W, to: &mut [i8]) {
        for i in 0..8 {
            to[i] = v[i] as i8;
        }
    }
    #[inline(always)]
    fn w_add(self, a: Self::W, b: Self::W) -> Self::W {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn w_mul(self, a: Self::W, b: Self::W) -> Self::W {
        map2(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn w_dot4<const WIDE: bool>(self, acc: Self::W, u: Self::W, a: Self::W) -> Self::W {
        std::array::from_fn(|i| dot4(acc[i], u[i].to_le_bytes(), a[i].to_le_bytes()))
    }
    #[inline(always)]
    fn w_dot2_i16(self, acc: Self::W, a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| {
            let (low, high) = (i32::from(a[i] as i16) * i32::from(b[i] as i16), (a[i] >> 16) * (b[i] >> 16));
            acc[i].wrapping_add(low).wrapping_add(high)
        })
    }
    #[inline(always)]
    fn w_store_i16(self, v: [Self::W; 2], to: &mut [i32]) {
        let v = v.as_flattened();
        for i in 0..8 {
            to[i] = v[2 * i] & 0xffff | v[2 * i + 1] << 16;
        }
    }
    #[inline(always)]
    fn w_transpose(self, from: &[u8], from_stride: usize, to: &mut [i32], to_stride: usize) {
        for c in 0..8 {
            for r in 0..8 {
                let at = 4 * (r * from_stride + c);
                to[c * to_stride + r] =
                    i32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]]);
            }
        }
    }

    #[inline(always)]
    fn f_low_bf16(self, v: Self::W) -> Self::F {
        v.map(|x| f32::from_bits((x as u32) << 16))
    }
    #[inline(always)]
    fn f_high_bf16(self, v: Self::W) -> Self::F {
        v.map(|x| f32::from_bits(x as u32 & 0xffff_0000))
    }
    #[inline(always)]
    fn f_round_bf16(self, v: Self::F) -> Self::F {
        v.map(|x| {
            let bits = x.to_bits();
            f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
        })
    }
    #[inline(always)]
    fn f_store_bf16(self, v: Self::F, to: &mut [i32]) {
        for i in 0..4 {
            to[i] = (v[2 * i].to_bits() >> 16 | v[2 * i + 1].to_bits() & 0xffff_0000) as i32;
        }
    }
    #[inline(always)]
    fn f_from_w(self, v: Self::W) -> Self::F {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn f_to_w(self, a: Self::F) -> Self::W {
        a.map(|x| x.round_ties_even() as i32)
    }
}
