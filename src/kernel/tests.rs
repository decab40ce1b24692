//! Every product kernel against a naive reference, at every ISA level this machine has.

use super::activations::Activations;
use super::attention::{self, Attention, BLOCK, BlockMask, GRAIN, HeadPage};
use super::float::{Bf16, F16, F32, Float, FloatProducts, FloatTokens, TASK_ROWS};
use super::kv::{KvType, PAGE, padded_head};
use super::matmul::{MAX_FEW_TOKENS, PackedTokens, Panel, PanelProducts, Way, panel_rows};
use super::matvec::{BySixteen, RowProducts};
use super::panel::largest_sum;
use super::region::Region;
use super::{Pool, SharedMut, partial_sums};
use crate::gguf::TensorType;
use crate::machine::map_zeros;
use crate::quant;
use crate::quant::unpack::*;
use crate::simd::{Level, Scalar, dispatch_at};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float() * self.float() * 4.0).collect()
    }
}

/// `d` and `dmin`.
fn floats<F: Unpack>(scale: Scale) -> (f32, f32) {
    let half = |bits: u16| half::f16::from_bits(bits).to_f32();
    (if F::EXPONENT { Scale::power(scale.d) } else { half(scale.d) }, half(scale.dmin))
}

/// Random bytes with finite, moderate scales; where `extreme`, three of four are 0 or 255, and so are most quants and integer scales.
fn random_blocks<F: Unpack>(random: &mut Random, kind: TensorType, blocks: usize, extreme: bool) -> Vec<u8> {
    assert_eq!((kind.block_elements(), kind.block_bytes()), (F::BLOCK, F::BYTES), "{kind}");
    let mut bytes = Vec::new();
    while bytes.len() < blocks * F::BYTES {
        let mut block: Vec<u8> = (0..F::BYTES).map(|_| random.next() as u8).collect();
        if extreme {
            for byte in &mut block {
                let any = random.next();
                *byte = if any & 3 == 0 { *byte } else { [0, 255][(any >> 2) as usize % 2] };
            }
        }
        let scale = floats::<F>(F::scale(&block));
        if scale.0.abs() < 10.0 && scale.1.abs() < 10.0 && scale.0.abs() > 1e-6 {
            bytes.extend(block);
        }
    }
    bytes
}

/// One product in the contract's order: integers within a span, floats from span to span.
fn naive<F: Unpack>(row: &[u8], tokens: &Activations, token: usize) -> f32 {
    let padded = tokens.padded();
    let quants = &tokens.quants[token * padded..][..padded];
    let mut partial = [0.0f32; 8];
    for (s, columns) in quants.chunks(F::SPAN).enumerate() {
        let at = s * F::SPAN;
        let Some(block) = row.get(at / F::BLOCK * F::BYTES..).and_then(|rest| rest.get(..F::BYTES)) else {
            break;
        };
        let mut lanes = vec![0u8; F::BLOCK];
        for (to, from) in lanes.chunks_mut(32).zip(F::lanes(Scalar, [block; 2]).as_ref()) {
            to.copy_from_slice(from);
        }
        let (scales, mins) = F::groups(Scalar, [block; 2]);
        let i16s =
            |v: [u8; 32]| -> Vec<i16> { v.chunks(2).map(|c| i16::from_le_bytes([c[0], c[1]])).collect() };
        let (scales, mins) = (i16s(scales), i16s(mins));
        let scale = floats::<F>(F::scale(block));
        let (mut sum, mut min) = (0i32, 0i32);
        for (i, &a) in columns.iter().enumerate() {
            let c = at % F::BLOCK + i;
            let s = if F::SCALED { i32::from(scales[c / 16]) } else { 1 };
            sum += s * (i32::from(lanes[c]) - F::OFFSET) * i32::from(a);
            min += if F::MINS { i32::from(mins[c / 16 % 16]) * i32::from(a) } else { 0 };
        }
        let mut value = scale.0 * F::FACTOR * sum as f32;
        if F::MINS {
            value = (-scale.1).mul_add(min as f32, value);
        }
        let d = tokens.scales[token * padded / F::SPAN + s];
        let total = &mut partial[s % partial_sums(F::SPAN)];
        *total = d.mul_add(value, *total);
    }
    let l = partial;
    if partial_sums(F::SPAN) == 2 {
        l[0] + l[1]
    } else {
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    }
}

/// How large activations are beside the largest of them, and so whether groups' sums fit 16 bits.
#[derive(Clone, Copy, PartialEq)]
enum Size {
    /// Mostly small.
    Usual,
    /// All sizes alike.
    Even,
    /// All of the largest size: of one sign in the first tokens, mixed in the others.
    Extreme,
}

impl Size {
    fn activations(self, random: &mut Random, tokens: usize, columns: usize) -> Vec<f32> {
        let mut source = random.floats(tokens * columns);
        for (i, x) in source.iter_mut().enumerate() {
            *x = match self {
                Size::Usual => *x,
                Size::Even => random.float(),
                Size::Extreme if i / columns < 2 => 1.0 - 2.0 * (i / columns) as f32,
                Size::Extreme => x.signum(),
            };
        }
        source
    }
}

fn check_format<F: Unpack>(format: F, kind: TensorType) {
    let mut random = Random(kind.id().into());
    for (rows, blocks, tokens, size) in [
        (1, 1, 1, Size::Usual),
        (5, 3, 2, Size::Usual),
        (9, 4, 3, Size::Usual),
        (25, 1, 4, Size::Extreme),
        (37, 2, 7, Size::Usual),
        (70, 9, 13, Size::Usual),
        (16, 8, 5, Size::Usual),
        (33, 1, 25, Size::Even),
        (45, 8, 8, Size::Extreme),
        // More than a panel stays packed for.
        (35, 3, 33, Size::Usual),
        (64, 2, 34, Size::Even),
        (33, 2, 40, Size::Extreme),
        // More spans than a tile has vectors to store.
        (34, 13, 37, Size::Usual),
        // More than a matrix unit takes side by side, in both directions.
        (101, 3, 70, Size::Even),
    ] {
        let columns = blocks * F::BLOCK;
        let weights = random_blocks::<F>(&mut random, kind, rows * blocks, size == Size::Extreme);
        let row_bytes = blocks * F::BYTES;
        let source = size.activations(&mut random, tokens, columns);
        let mut a = Activations::default();
        a.quantize(format, &source, columns);
        let want: Vec<f32> = (0..tokens)
            .flat_map(|t| weights.chunks(row_bytes).map(move |row| (t, row)))
            .map(|(t, row)| naive::<F>(row, &a, t))
            .collect();
        check_against_decoded::<F>(kind, &weights, columns, &a, &want);
        for level in Level::available() {
            let case = format!("{kind} {rows}×{columns}×{tokens} {level:?}");
            assert_eq!(few(format, level, &weights, row_bytes, &a, false), want, "matvec, {case}");
            if (4..=MAX_FEW_TOKENS).contains(&tokens) {
                assert_eq!(
                    few(format, level, &weights, row_bytes, &a, true),
                    want,
                    "matvec by sixteen, {case}"
                );
            }
            for way in [Way::Lanes, Way::Apart, Way::Sums, Way::Tiles] {
                let got = many(format, level, &weights, row_bytes, &a, way);
                assert_eq!(got, want, "matmul, {case}, by {way:?}");
            }
        }
    }
}

/// The naive product agrees with decoded weights times dequantized activations.
fn check_against_decoded<F: Unpack>(
    kind: TensorType,
    weights: &[u8],
    columns: usize,
    a: &Activations,
    want: &[f32],
) {
    if !quant::is_supported(kind) {
        return;
    }
    let rows = weights.len() / (columns / F::BLOCK * F::BYTES);
    let mut decoded = vec![0.0f32; rows * columns];
    quant::decode(kind, weights, &mut decoded).unwrap();
    let padded = a.padded();
    for (i, want) in want.iter().enumerate() {
        let (t, r) = (i / rows, i % rows);
        let (mut sum, mut size) = (0.0f64, 0.0f64);
        for c in 0..columns {
            let x =
                f64::from(a.scales[t * padded / F::SPAN + c / F::SPAN]) * f64::from(a.quants[t * padded + c]);
            let y = f64::from(decoded[r * columns + c]);
            sum += x * y;
            size += (x * y).abs();
        }
        assert!((sum - f64::from(*want)).abs() <= 2e-6 * size + 1e-9, "{kind} row {r}: {want} is not {sum}");
    }
}

/// The largest sum of a group is what the rows make of it that go farthest.
fn check_largest_sum<F: Unpack>() {
    let mut random = Random(7);
    for largest in [8, 40, 60, 80, 127] {
        for _ in 0..200 {
            let a: Vec<i32> =
                (0..F::GROUP).map(|_| (random.float() * (largest as f32 + 0.5)) as i32).collect();
            let (above, below) = (i32::from(F::LARGEST) - F::OFFSET, -F::OFFSET);
            let most: i32 = a.iter().map(|&a| (a * above).max(a * below)).sum();
            let least: i32 = a.iter().map(|&a| (a * above).min(a * below)).sum();
            let (sum, size) = (a.iter().sum(), a.iter().map(|a| a.abs()).sum());
            assert_eq!(largest_sum::<F>(sum, size), most.max(-least), "{a:?}");
        }
    }
}

#[test]
fn the_largest_sum_of_a_group_is_that_of_the_rows_that_go_farthest() {
    check_largest_sum::<Q4K>();
    check_largest_sum::<Q5K>();
    check_largest_sum::<Q6K>();
    check_largest_sum::<Iq3S>();
}

fn few<F: Unpack>(
    format: F,
    level: Level,
    weights: &[u8],
    row_bytes: usize,
    a: &Activations,
    by_sixteen: bool,
) -> Vec<f32> {
    let rows = weights.len() / row_bytes;
    let mut out = vec![f32::NAN; rows * a.rows];
    let mut slices: Vec<&mut [f32]> = out.chunks_mut(rows).collect();
    let mut tokens = a.clone();
    tokens.arrange(format, level, &Pool::new(1));
    let products =
        RowProducts { format, rows: weights, row_bytes, next: weights, tokens: &tokens, out: &mut slices };
    if by_sixteen {
        dispatch_at(level, BySixteen(products))
    } else {
        products.compute(level)
    }
    out
}

fn many<F: Unpack>(
    format: F,
    level: Level,
    weights: &[u8],
    row_bytes: usize,
    a: &Activations,
    way: Way,
) -> Vec<f32> {
    let rows = weights.len() / row_bytes;
    let mut out = vec![f32::NAN; rows * a.rows];
    let shared = SharedMut::new(&mut out);
    let (mut tokens, mut panel) = (PackedTokens::default(), Panel::default());
    tokens.pack_as(format, level, a, &Pool::new(1), way);
    let each = panel_rows(level, &tokens);
    // A matrix unit takes every format.
    assert!(each == 64 || level != Level::Amx || way != Way::Tiles);
    for (i, bytes) in weights.chunks(each * row_bytes).enumerate() {
        PanelProducts {
            format,
            rows: bytes,
            row_bytes,
            columns: row_bytes / F::BYTES * F::BLOCK,
            next: bytes,
            tokens: &tokens,
            panel: &mut panel,
            out: &shared,
            out_stride: rows,
            first: i * each,
        }
        .compute(level);
    }
    out
}

#[test]
fn quantized_products_equal_the_reference_bit_for_bit() {
    check_format(Q4_0, TensorType::Q4_0);
    check_format(Q4_1, TensorType::Q4_1);
    check_format(Q5_0, TensorType::Q5_0);
    check_format(Q5_1, TensorType::Q5_1);
    check_format(Q8_0, TensorType::Q8_0);
    check_format(Iq4Nl, TensorType::IQ4_NL);
    check_format(Q2K, TensorType::Q2_K);
    check_format(Q3K, TensorType::Q3_K);
    check_format(Q4K, TensorType::Q4_K);
    check_format(Q5K, TensorType::Q5_K);
    check_format(Q6K, TensorType::Q6_K);
    check_format(Iq1S, TensorType::IQ1_S);
    check_format(Iq1M, TensorType::IQ1_M);
    check_format(Iq2Xxs, TensorType::IQ2_XXS);
    check_format(Iq2Xs, TensorType::IQ2_XS);
    check_format(Iq2S, TensorType::IQ2_S);
    check_format(Iq3Xxs, TensorType::IQ3_XXS);
    check_format(Iq3S, TensorType::IQ3_S);
    check_format(Iq4Xs, TensorType::IQ4_XS);
    check_format(Tq1_0, TensorType::TQ1_0);
    check_format(Tq2_0, TensorType::TQ2_0);
    check_format(Mxfp4, TensorType::MXFP4);
}

/// All products, a task after the other.
fn float_products<W: Float>(level: Level, weights: &[W::Bits], source: &[f32], columns: usize) -> Vec<f32> {
    let (rows, mut tokens) = (weights.len() / columns, FloatTokens::default());
    tokens.pack(level, source, columns, &Pool::new(2));
    let mut out = vec![f32::NAN; source.len() / columns * rows];
    let to = SharedMut::new(&mut out);
    for group in 0..tokens.groups() {
        for (i, part) in weights.chunks(TASK_ROWS * columns).enumerate() {
            let (first, tokens) = (i * TASK_ROWS, &tokens);
            FloatProducts::<W> { rows: part, tokens, group, out: &to, out_stride: rows, first }
                .compute(level);
        }
    }
    out
}

fn check_float<W: Float>(bits: impl Fn(f32) -> W::Bits, float: impl Fn(W::Bits) -> f32) {
    let mut random = Random(7);
    let shapes = [
        (1, 1, 1),
        (5, 17, 3),
        (4, 33, 4),
        (9, 96, 6),
        (1, 1, 5),
        (50, 1041, 11),
        (101, 520, 32),
        (13, 20_001, 29),
    ];
    for (rows, columns, tokens) in shapes {
        let weights: Vec<W::Bits> = random.floats(rows * columns).into_iter().map(&bits).collect();
        let source = random.floats(tokens * columns);
        for level in Level::available() {
            let out = float_products::<W>(level, &weights, &source, columns);
            for (i, &got) in out.iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                let products = (0..columns)
                    .map(|c| f64::from(float(weights[r * columns + c])) * f64::from(source[t * columns + c]));
                let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                assert!(
                    (f64::from(got) - sum).abs() <= 1e-6 * size + 1e-12,
                    "{rows}×{columns}×{tokens} {level:?}"
                );
            }
            for t in 0..tokens {
                let alone = float_products::<W>(level, &weights, &source[t * columns..][..columns], columns);
                assert_eq!(
                    alone,
                    out[t * rows..][..rows],
                    "a token alone differs from one in a batch, {level:?}"
                );
            }
        }
    }
}

#[test]
fn float_products_follow_the_reference_and_ignore_the_batch() {
    check_float::<F32>(|x| x, |x| x);
    check_float::<F16>(|x| half::f16::from_f32(x).to_bits(), |x| half::f16::from_bits(x).to_f32());
    check_float::<Bf16>(|x| half::bf16::from_f32(x).to_bits(), |x| half::bf16::from_bits(x).to_f32());
}

/// Which keys queries see: the last `window`, and of those, if there is a stride, the blocks of 64 that are the last two or whose number
/// and the query's add up to one less than a multiple of it.
#[derive(Clone, Copy)]
struct Seen {
    window: usize,
    stride: Option<usize>,
}

/// Pages for `length` positions of a head.
fn empty_pages(kind: KvType, padded: usize, length: usize) -> Vec<HeadPage> {
    let count = length.div_ceil(PAGE);
    let mut region = Region::new(map_zeros(count * HeadPage::bytes(kind, kind, padded)).unwrap());
    (0..count).map(|_| HeadPage::new(kind, kind, padded, &mut region)).collect()
}

fn attention_case(
    kind: KvType,
    head: usize,
    (length, rows): (usize, usize),
    Seen { window, stride }: Seen,
    tolerance: f64,
) {
    let mut random = Random((head * 1000 + length) as u64);
    let padded = padded_head(head);
    let (keys, values) = (random.floats(length * head), random.floats(length * head));
    let pages = |level: Level| {
        let mut pages = empty_pages(kind, padded, length);
        for p in 0..length {
            let (mut key, mut value) = (vec![0.0; padded], vec![0.0; padded]);
            key[..head].copy_from_slice(&keys[p * head..][..head]);
            value[..head].copy_from_slice(&values[p * head..][..head]);
            pages[p / PAGE].store(level, p % PAGE, &key, &value);
        }
        pages
    };
    // Queries of the last positions, as a prompt's tile has them.
    let positions: Vec<usize> = (length - rows..length).collect();
    let mut queries = vec![0.0f32; rows * padded];
    for q in queries.chunks_mut(padded) {
        q[..head].copy_from_slice(&random.floats(head));
        q.iter_mut().for_each(|x| *x /= (head as f32).sqrt());
    }
    let phases: Vec<usize> = (0..rows).collect();
    let mut first: Option<Vec<f32>> = None;
    for level in Level::available() {
        let pages = pages(level);
        let pages: Vec<&HeadPage> = pages.iter().collect();
        let run = |range: std::ops::Range<usize>| {
            let mut out = vec![f32::NAN; range.len() * padded];
            let phases = &phases[range.clone()];
            Attention {
                pages: &pages,
                queries: &queries[range.start * padded..range.end * padded],
                positions: &positions[range],
                padded_head: padded,
                window,
                mask: stride.map(|stride| BlockMask { block: GRAIN, local: 2, stride, phases }),
                scratch: &mut attention::Scratch::default(),
                out: &mut out,
            }
            .compute(level);
            out
        };
        let out = run(0..rows);
        // Bit for bit, with an instruction for pairs of bf16 and without.
        let first = first.get_or_insert_with(|| out.clone());
        assert_eq!(&out, first, "{kind:?}, head {head}, {length} keys: {level:?} differs from other levels");
        for (r, &position) in positions.iter().enumerate() {
            let seen: Vec<usize> = ((position + 1).saturating_sub(window)..position + 1)
                .filter(|p| {
                    let (block, own) = (p / GRAIN, position / GRAIN);
                    stride.is_none_or(|stride| own - block < 2 || (block + r + 1).is_multiple_of(stride))
                })
                .collect();
            let q = &queries[r * padded..][..head];
            let score = |p: usize| -> f64 {
                q.iter().zip(&keys[p * head..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let largest = seen.iter().map(|&p| score(p)).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = seen.iter().map(|&p| (score(p) - largest).exp2()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head {
                let want: f64 =
                    seen.iter().zip(&weights).map(|(p, w)| w / total * f64::from(values[p * head + d])).sum();
                let got = f64::from(out[r * padded + d]);
                assert!(
                    (got - want).abs() < tolerance,
                    "head {head}, {length} keys, query {r}, {level:?}: {got} {want}"
                );
            }
            let few = if r < 10 { 5 } else { 1 };
            for few in (1..=few).filter(|few| r + few <= rows) {
                assert_eq!(
                    run(r..r + few),
                    out[r * padded..][..few * padded],
                    "{few} queries alone differ from those in a tile, {level:?}"
                );
            }
        }
    }
}

#[test]
fn attention_follows_the_reference_and_ignores_the_tile() {
    for (head, length, rows, window, stride) in [
        (96, 1, 1, usize::MAX, None),
        (96, 300, 53, usize::MAX, None),
        (64, 64, 53, usize::MAX, None),
        (20, 65, 53, 40, None),
        (128, 520, 48, 100, None),
        (32, 130, 65, 1, None),
        (160, 390, 53, usize::MAX, Some(3)),
    ] {
        for (kind, tolerance) in [
            (KvType::F32, 2e-5),
            (KvType::F16, 1e-3),
            (KvType::Bf16, 6e-2),
            (KvType::Q8_0, 6e-2),
            (KvType::Q4_0, 2.0),
        ] {
            attention_case(kind, head, (length, rows), Seen { window, stride }, tolerance);
        }
    }
    assert_eq!(PAGE % BLOCK, 0);
}

/// Attention over keys that are all the query times `k / |query|²`, and values that are all `value`: that is what comes out for
/// each of `rows` equal queries.
fn attention_of_equals(query: &[f32], k: f32, value: f32, length: usize, rows: usize) {
    let (padded, norm) = (query.len(), query.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>());
    let key: Vec<f32> =
        query.iter().map(|x| (f64::from(*x) * f64::from(k) / norm.max(1e-300)) as f32).collect();
    for level in Level::available() {
        let mut pages = empty_pages(KvType::F16, padded, length);
        for p in 0..length {
            pages[p / PAGE].store(level, p % PAGE, &key, &vec![value; padded]);
        }
        let pages: Vec<&HeadPage> = pages.iter().collect();
        let mut out = vec![f32::NAN; rows * padded];
        Attention {
            pages: &pages,
            queries: &query.repeat(rows),
            positions: &vec![length - 1; rows],
            padded_head: padded,
            window: usize::MAX,
            mask: None,
            scratch: &mut attention::Scratch::default(),
            out: &mut out,
        }
        .compute(level);
        for x in out {
            assert!(
                (x - value).abs() <= 1e-3 * value.abs(),
                "{x} instead of {value}, {length} keys, {level:?}"
            );
        }
    }
}

#[test]
fn sixteen_bit_attention_has_room_for_the_largest_sums() {
    // The largest score that norms allow, in one element or spread over all, with the largest weights and values.
    for query in
        [[vec![3.0; 96]].concat(), [vec![1e4], vec![0.0; 95]].concat(), vec![-1e-3; 512], vec![0.0; 64]]
    {
        for (k, value) in [(0.0, 1.0), (50.0, -1.0), (-50.0, 1e30), (3.0, 1e-30), (1e4, 0.0)] {
            for length in [1, 63, 64, 300] {
                for rows in [1, 50] {
                    attention_of_equals(&query, k, value, length, rows);
                }
            }
        }
    }
}
