//! Every ISA level against plain arithmetic, where bits are easily lost: NaN, signed zeros, ties, half precision.

use super::{
    CHUNK_WORDS, DotBf16, Isa, Kernel, Level, MAX_LANES, MAX_ROWS, NARROW_SPAN, PlaneSums, ROUNDER, SPAN,
    Sixteens, TakeSums, Tiles, dispatch_at, place_of_columns, place_of_row, turn_of,
};

/// Runs operations on each `LANES` of `a` and `b`; one list of bits an operation.
struct Floats<'a>(&'a [f32], &'a [f32]);

impl Kernel for Floats<'_> {
    type Output = [Vec<u32>; 9];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut out: Self::Output = Default::default();
        let (mut lanes, mut words) = ([0.0f32; MAX_LANES], [0i32; MAX_LANES]);
        for (a, b) in self.0.chunks_exact(I::LANES).zip(self.1.chunks_exact(I::LANES)) {
            let (a, b) = (isa.f_load(a), isa.f_load(b));
            let by = isa.f_add(b, isa.f_splat(ROUNDER));
            let floats = [
                isa.f_max(a, b),
                isa.f_min(a, b),
                isa.f_raise(a, by),
                isa.f_raise_from(a, by, b, a),
                isa.f_fma(a, b, a),
                isa.f_fnma(a, b, a),
                isa.f_div(a, b),
            ];
            for (i, &v) in floats.iter().enumerate() {
                isa.f_store(v, &mut lanes);
                out[i].extend(lanes[..I::LANES].iter().map(|x| bits(*x)));
            }
            let small = isa.f_max(isa.f_min(a, isa.f_splat(1e6)), isa.f_splat(-1e6));
            isa.w_store(isa.f_to_w(small), &mut words);
            out[7].extend(words[..I::LANES].iter().map(|&w| w as u32));
            let mut bytes = [0i8; MAX_LANES];
            isa.w_store_i8(isa.f_to_w(small), &mut bytes);
            isa.w_store(isa.w_load_i8(&bytes), &mut words);
            out[8].extend(words[..I::LANES].iter().map(|&w| w as u32));
        }
        out
    }
}

/// Bits of `x`; NaNs are all the same.
fn bits(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

#[test]
fn floats_keep_their_bits_at_every_level() {
    let values = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        1.0 + f32::EPSILON,
        127.5,
        -128.5,
        8_388_609.0,
        1e-40,
        3e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let a: Vec<f32> = values.iter().flat_map(|&a| values.map(|_| a)).collect();
    let b: Vec<f32> = values.iter().flat_map(|_| values).collect();
    let round = |x: f32| x.round_ties_even();
    for level in Level::available() {
        let got = dispatch_at(level, Floats(&a, &b));
        for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
            let small = if a < 1e6 { a } else { 1e6 };
            let small = round(if small > -1e6 { small } else { -1e6 }) as i32;
            let raised = f32::from_bits(a.to_bits().wrapping_add((b + ROUNDER).to_bits() << 23));
            let want = [
                bits(if a > b { a } else { b }),
                bits(if a < b { a } else { b }),
                bits(raised),
                bits(if b >= a { raised } else { 0.0 }),
                bits(a.mul_add(b, a)),
                bits((-a).mul_add(b, a)),
                bits(a / b),
                small as u32,
                i32::from(small as i8) as u32,
            ];
            for (op, want) in want.into_iter().enumerate() {
                assert_eq!(got[op][i], want, "operation {op} of {a} and {b} at {level:?}");
            }
        }
    }
}

/// Loads every half, and stores it again.
struct Halves<'a>(&'a [u16]);

impl Kernel for Halves<'_> {
    /// Widened halves, halves of those a little off, and widened bfloat16.
    type Output = (Vec<u32>, Vec<u16>, Vec<u32>);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut out: Self::Output = Default::default();
        let (mut lanes, mut halves) = ([0.0f32; MAX_LANES], [0u16; MAX_LANES]);
        for from in self.0.chunks_exact(I::LANES) {
            let wide = isa.f_load_f16(from);
            isa.f_store(wide, &mut lanes);
            out.0.extend(lanes[..I::LANES].iter().map(|x| bits(*x)));
            isa.f_store_f16(isa.f_mul(wide, isa.f_splat(OFF)), &mut halves);
            out.1.extend(&halves[..I::LANES]);
            isa.f_store(isa.f_load_bf16(from), &mut lanes);
            out.2.extend(lanes[..I::LANES].iter().map(|x| bits(*x)));
        }
        out
    }
}

/// Takes halves to their neighbours' middles, and some of the largest beyond the range.
const OFF: f32 = 1.0 + 1.0 / 2048.0;

#[test]
fn halves_round_to_even_at_every_level() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for level in Level::available() {
        let (wide, narrow, brain) = dispatch_at(level, Halves(&all));
        for (i, &h) in all.iter().enumerate() {
            let x = half::f16::from_bits(h).to_f32();
            assert_eq!(wide[i], bits(x), "half {h:#06x} at {level:?}");
            let back = half::f16::from_bits(narrow[i]);
            let want = half::f16::from_f32(x * OFF);
            assert!(back.to_bits() == want.to_bits() || back.is_nan() && want.is_nan(), "{x} at {level:?}");
            assert_eq!(brain[i], bits(f32::from_bits(u32::from(h) << 16)), "bfloat16 {h:#06x} at {level:?}");
        }
    }
}

/// Pairs of 16-bit integers times the same pair, from a start on; the low halves of those sums; the sum and the largest lane of each of
/// [`MAX_LANES`] vectors made of `2 * MAX_LANES` floats, where `count` of them count.
struct Pairs<'a> {
    words: &'a [i32; MAX_LANES],
    pair: i32,
    /// Of 16 bits each.
    halves: &'a [i32; 2 * MAX_LANES],
    floats: &'a [f32; 2 * MAX_LANES],
    count: usize,
}

impl Kernel for Pairs<'_> {
    /// Sums of products, halves of words, the sum and the largest lane of each vector, and how many lanes it has.
    type Output = ([i32; MAX_LANES], [i32; MAX_LANES], Vec<f32>, Vec<f32>, usize);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let (mut sums, mut halves) = ([0; MAX_LANES], [0; MAX_LANES]);
        for i in (0..MAX_LANES).step_by(I::LANES) {
            let mut sum = [isa.w_splat(7)];
            isa.w_dot2_pair(&mut sum, &[isa.w_load(&self.words[i..])], &self.pair);
            isa.w_store(sum[0], &mut sums[i..]);
        }
        for i in (0..2 * MAX_LANES).step_by(2 * I::LANES) {
            let words = [isa.w_load(&self.halves[i..]), isa.w_load(&self.halves[i + I::LANES..])];
            isa.w_store_i16(words, &mut halves[i / 2..]);
        }
        let mut vectors = [0.0; MAX_LANES * MAX_LANES];
        for i in 0..I::LANES {
            for lane in 0..I::LANES {
                vectors[i * I::LANES + lane] = self.floats[i + lane];
            }
        }
        let (mut sum, mut largest) = (vec![0.0; MAX_LANES], vec![0.0; MAX_LANES]);
        isa.f_store(isa.f_across::<false>(&vectors, self.count.min(I::LANES)), &mut sum);
        isa.f_store(isa.f_across::<true>(&vectors, self.count.min(I::LANES)), &mut largest);
        (sums, halves, sum, largest, I::LANES)
    }
}

#[test]
fn pairs_are_multiplied_and_lanes_summed_alike_at_every_level() {
    let number = |i: usize| (i as i32 * 2_654_435).wrapping_mul(40_503);
    let words = std::array::from_fn(|i| number(i + 1));
    let floats = std::array::from_fn(|i| number(i) as f32 / 1e6);
    let mut halves = std::array::from_fn(|i| i32::from(number(i) as i16));
    halves[..2].copy_from_slice(&[i32::from(i16::MIN), i32::from(i16::MAX)]);
    for level in Level::available() {
        for (i, count) in (1..=MAX_LANES).enumerate() {
            let pair = number(i + 100);
            let pairs = Pairs { words: &words, pair, halves: &halves, floats: &floats, count };
            let (sums, stored, sum, largest, lanes) = dispatch_at(level, pairs);
            for (got, word) in sums.iter().zip(words) {
                let low = i32::from(word as i16) * i32::from(pair as i16);
                let want = 7i32.wrapping_add(low).wrapping_add((word >> 16) * (pair >> 16));
                assert_eq!(*got, want, "{word:#x} and {pair:#x} at {level:?}");
            }
            for (both, two) in stored.iter().zip(halves.as_chunks::<2>().0) {
                assert_eq!(*both, two[0] & 0xffff | two[1] << 16, "{level:?}");
            }
            for i in 0..count.min(lanes) {
                let mut all = floats[i..i + lanes].to_vec();
                assert_eq!(largest[i], all.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{level:?}");
                while all.len() > 1 {
                    let (low, high) = all.split_at(all.len() / 2);
                    all = low.iter().zip(high).map(|(a, b)| a + b).collect();
                }
                assert_eq!(sum[i], all[0], "vector {i} of {count} at {level:?}");
            }
        }
    }
}

/// Every byte below 8 times scales, row after row.
struct Scaled<'a> {
    quants: &'a [i16; 8],
    offset: i16,
    scales: &'a [i16; 16],
}

impl Kernel for Scaled<'_> {
    /// For each pair of scales the bytes, whole and halved.
    type Output = Vec<(Vec<u8>, Vec<u8>)>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let (mut from, mut out) = ([0i8; 32], Vec::new());
        for i in 0..32 {
            from[i] = (i % 8) as i8;
        }
        let (v, scales) = (isa.b_all_i8(&from), isa.b_all_i16(self.scales));
        for pair in 0..8 {
            let whole = isa.b_scaled::<0>(self.quants, self.offset, v, scales, pair);
            let half = isa.b_scaled::<1>(self.quants, self.offset, v, scales, pair);
            let mut bytes = [[0u8; 32 * MAX_ROWS]; 2];
            isa.b_store(whole, &mut bytes[0], 32);
            isa.b_store(half, &mut bytes[1], 32);
            out.push((bytes[0][..32 * I::ROWS].to_vec(), bytes[1][..32 * I::ROWS].to_vec()));
        }
        out
    }
}

#[test]
fn bytes_are_scaled_alike_at_every_level() {
    let mut scales = [0i16; 16];
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = -32 + 4 * i as i16 + i16::from(i > 8);
    }
    let (quants, offset) = ([-4, -3, -2, -1, 0, 1, 2, 3], 128);
    for level in Level::available() {
        let got = dispatch_at(level, Scaled { quants: &quants, offset, scales: &scales });
        for (pair, (whole, half)) in got.iter().enumerate() {
            for (i, (&whole, &half)) in whole.iter().zip(half).enumerate() {
                let sum = quants[i % 8] * scales[2 * pair + i % 32 / 16] + offset;
                assert_eq!(
                    (whole, half),
                    (sum as u8, (sum >> 1) as u8),
                    "byte {i}, pair {pair} at {level:?}"
                );
            }
        }
    }
}

/// Rounds floats, and multiplies the pairs they make.
struct Brains<'a>(&'a [f32]);

impl Kernel for Brains<'_> {
    /// Words of two rounded floats, and dot products of each word with the one after it.
    type Output = (Vec<i32>, Vec<u32>);

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let mut words = vec![0; self.0.len() / 2];
        for (i, from) in self.0.chunks_exact(I::LANES).enumerate() {
            isa.f_store_bf16(isa.f_round_bf16(isa.f_load(from)), &mut words[i * I::LANES / 2..]);
        }
        let mut products = Vec::new();
        for word in 0..words.len() - MAX_LANES {
            let (lanes, pair) = (isa.w_load(&words[word + 1..]), &words[word]);
            let mut sum = [isa.f_from_w(isa.w_splat(word as i32))];
            match isa.dot_bf16() {
                Some(dot) => dot.add(&mut sum, &[lanes], pair),
                None => {
                    let pair = isa.w_splat(*pair);
                    sum[0] = isa.f_fma(isa.f_high_bf16(pair), isa.f_high_bf16(lanes), sum[0]);
                    sum[0] = isa.f_fma(isa.f_low_bf16(pair), isa.f_low_bf16(lanes), sum[0]);
                }
            }
            let mut out = [0.0f32; MAX_LANES];
            isa.f_store(sum[0], &mut out);
            products.push(bits(out[0]));
        }
        (words, products)
    }
}

#[test]
fn bfloat16_rounds_to_even_and_multiplies_in_pairs_at_every_level() {
    let mut state = 1u64;
    let floats: Vec<f32> = (0..4096)
        .map(|i| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Of some size; every third lies between two bfloat16.
            let x =
                ((state >> 40) as f32 / 8_388_608.0 - 1.0) * (2.0f32).powi((state >> 20 & 31) as i32 - 16);
            if i % 3 == 0 { f32::from_bits(x.to_bits() & 0xffff_0000 | 0x8000) } else { x }
        })
        .collect();
    let halves: Vec<half::bf16> = floats.iter().map(|&x| half::bf16::from_f32(x)).collect();
    for level in Level::available() {
        let (words, products) = dispatch_at(level, Brains(&floats));
        for (i, &word) in words.iter().enumerate() {
            let want = (halves[2 * i + 1].to_bits() as u32) << 16 | halves[2 * i].to_bits() as u32;
            assert_eq!(word as u32, want, "{} and {} at {level:?}", floats[2 * i], floats[2 * i + 1]);
        }
        for (i, &product) in products.iter().enumerate() {
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| halves[2 * i + k].to_f32());
            assert_eq!(product, bits(a.mul_add(c, b.mul_add(d, i as f32))), "pair {i} at {level:?}");
        }
    }
}

/// The products of sixteen rows with `sixteens` times sixteen rows of 16-bit numbers, `chunks` times 64 columns each, by the matrix unit, if there is one.
struct Matrices<'a> {
    left: &'a [i16],
    right: &'a [i16],
    chunks: usize,
    sixteens: usize,
}

impl Kernel for Matrices<'_> {
    type Output = Option<Vec<i32>>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let unit = isa.tiles()?;
        let Self { left, right, chunks, sixteens } = self;
        let columns = 64 * chunks;
        let mut rows = vec![0; 2 * chunks * CHUNK_WORDS];
        for (row, left) in left.chunks_exact(columns).enumerate() {
            let rows = &mut rows[row / 16 * chunks * CHUNK_WORDS..];
            for (chunk, left) in left.chunks_exact(64).enumerate() {
                let mut words = [isa.w_splat(0); 4];
                for (v, left) in left.chunks_exact(16).enumerate() {
                    let wide: Vec<i32> = left.iter().map(|&x| x.into()).collect();
                    words[v] = isa.w_load(&wide);
                }
                store(isa, unit.split(words), place_of_row(chunk, row % 16), rows);
            }
        }
        let mut all = vec![0; sixteens * chunks * CHUNK_WORDS];
        for (right, to) in right.chunks_exact(16 * columns).zip(all.chunks_exact_mut(chunks * CHUNK_WORDS)) {
            let pairs = |column: usize| {
                let pair = |row: usize| {
                    let pair = &right[row * columns + column..];
                    i32::from(pair[0]) & 0xffff | i32::from(pair[1]) << 16
                };
                let pairs: Vec<i32> = (0..16).map(pair).collect();
                isa.w_load(&pairs)
            };
            for quad in 0..columns / 4 {
                let quads = unit.quads(pairs(4 * quad), pairs(4 * quad + 2));
                store(isa, quads, place_of_columns(quad), to);
            }
        }
        let mut take = Collected { isa, unit, all: Vec::new() };
        let operands = Sixteens { left: &rows, right: &all, count: sixteens, apart: chunks, chunks };
        <I::Tiles as Tiles<I>>::multiply(&unit.ready(), &operands, &mut Default::default(), &mut take);
        Some(take.all)
    }
}

/// The sums of products, as they come.
struct Collected<I: Isa> {
    isa: I,
    unit: I::Tiles,
    all: Vec<i32>,
}

impl<I: Isa> TakeSums for Collected<I> {
    fn take(&mut self, sixteen: usize, sums: &PlaneSums) {
        assert_eq!(sixteen * 2 * 16 * 16, self.all.len());
        for planes in &sums.0 {
            for row in 0..16 {
                let planes = [0, 1, 2].map(|plane| self.isa.w_load(&planes[plane][row]));
                let mut words = [0; MAX_LANES];
                self.isa.w_store(self.unit.sum_of_planes(planes), &mut words);
                self.all.extend(words);
            }
        }
    }
}

fn store<I: Isa>(isa: I, [low, high]: [I::W; 2], at: usize, to: &mut [i32]) {
    isa.w_store(low, &mut to[at..]);
    isa.w_store(high, &mut to[at + CHUNK_WORDS / 2..]);
}

#[test]
fn matrices_of_16_bit_numbers_are_multiplied_exactly() {
    let mut state = 1u32;
    let mut random = |largest: i16| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 28 {
            0 => largest,
            1 => -largest - 1,
            _ => ((state >> 8) as i16) % largest,
        }
    };
    for (chunks, sixteens, largest) in [(1, 1, i16::MAX), (2, 4, i16::MAX), (3, 5, 255), (1, 10, 128)] {
        let columns = 64 * chunks;
        let left: Vec<i16> = (0..32 * columns).map(|_| random(largest)).collect();
        let right: Vec<i16> = (0..16 * sixteens * columns).map(|_| random(largest)).collect();
        let mut want = Vec::new();
        for right in right.chunks_exact(16 * columns) {
            for left in left.chunks_exact(columns) {
                for right in right.chunks_exact(columns) {
                    let products = left.iter().zip(right).map(|(a, b)| i32::from(*a) * i32::from(*b));
                    want.push(products.fold(0, i32::wrapping_add));
                }
            }
        }
        for level in Level::available() {
            let case = Matrices { left: &left, right: &right, chunks, sixteens };
            if let Some(got) = dispatch_at(level, case) {
                assert!(got == want, "{chunks} chunks, {sixteens} sixteens, up to {largest}, {level:?}");
            }
        }
    }
}

#[test]
fn spans_take_turns_by_their_partial_sums() {
    for span in [NARROW_SPAN, SPAN] {
        for spans in 1..40 {
            let mut order: Vec<usize> = (0..spans).collect();
            order.sort_by_key(|&number| (number % (256 / span), number));
            for (turn, number) in order.into_iter().enumerate() {
                assert_eq!(turn_of(number, spans, span), turn, "{number} of {spans}, {span} columns each");
            }
        }
    }
}
