//! What is asked of every kind of device alike, and what its tests are made of.

use std::sync::LazyLock;

use super::cpu::{self, Cpu};
use super::device_cache::CacheShape;
pub use super::test_matrices::{matrices, matrix};
use super::{Backend, BlockSparse, Gate, Heads, Largest, Matrix, Mixture, Part, Rotation, Vector};
use crate::Result;
use crate::gguf::TensorType;
use crate::kernel::kv::KvType;

/// Largest relative error in the l2 norm.
pub const TOLERANCE: f64 = 1e-3;

/// What everything is compared with. Two threads are enough for shapes this small.
pub static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(2));

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float() * self.float() * 2.0).collect()
    }
}

pub fn difference(ours: &[f32], want: &[f32]) -> f64 {
    assert_eq!(ours.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 = ours.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    (error / want.iter().map(|x| square(f64::from(*x))).sum::<f64>().max(1e-30)).sqrt()
}

pub fn assert_close(ours: &[f32], want: &[f32], what: &str) {
    let difference = difference(ours, want);
    assert!(difference <= TOLERANCE, "{what}: {difference:e}");
}

/// A device as tests see it.
pub trait Subject: Backend {
    /// Relative error of several products of quantized weights in a row.
    const TOLERANCE: f64;

    fn put(&self, matrix: &Matrix) -> Result<()>;

    fn send(&self, data: &[f32], columns: usize) -> Self::Buffer;

    fn cache(&self, shape: CacheShape) -> Self::Cache;

    /// Makes room in `cache` for `positions` in all.
    fn room(&self, cache: &mut Self::Cache, positions: usize);

    /// `x` as products with quantized weights see it.
    fn seen(x: Vec<f32>) -> Vec<f32> {
        x
    }
}

/// Makes tests of all functions that are for every device: `$open` opens one, if there is one.
macro_rules! shared_tests {
    ($open:expr) => {
        $crate::backend::device_tests::shared_tests! {
            $open,
            products_end_in_sums_and_gates
            norms_and_elementwise_operations_equal_the_cpus
            the_largest_elements_are_found
            experts_are_chosen_on_the_device
            attention_equals_the_cpus
            attention_takes_every_type_of_cache
            sequences_of_a_batch_do_not_mix
            sequences_that_go_on_together_do_not_mix
            a_matrix_that_is_not_there_is_an_error
        }
    };
    ($open:expr, $($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                if let Some(device) = $open {
                    $crate::backend::device_tests::$name(&device);
                }
            }
        )+
    };
}

pub(crate) use shared_tests;

/// The same buffer on both.
pub fn both<S: Subject>(device: &S, data: &[f32], columns: usize) -> (S::Buffer, cpu::Buffer) {
    let mut host = cpu::Buffer::default();
    host.fill(data, columns);
    (device.send(data, columns), host)
}

/// As the definition has it: the `count` largest, NaN first, -0 as 0, of equals the lower number first.
fn largest(row: &[f32], count: usize) -> Largest {
    let mut all: Largest =
        (0..).zip(row.iter().map(|x| if x.is_nan() { f32::NAN } else { x + 0.0 })).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

/// Bits, so that NaN is equal to itself.
fn bits(rows: &[Largest]) -> Vec<Vec<(u32, u32)>> {
    rows.iter().map(|row| row.iter().map(|(id, x)| (*id, x.to_bits())).collect()).collect()
}

pub fn the_largest_elements_are_found<S: Subject>(device: &S) {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Few distinct values, so that there are ties.
        (state >> 20) as f32 / 16.0 - 128.0
    };
    for (rows, columns) in [(1, 5000), (3, 700), (2, 512), (1, 300)] {
        let mut data: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        (data[17], data[40], data[41]) = (-0.0, f32::NEG_INFINITY, 0.0);
        if rows == 3 {
            (data[5], data[columns + 3], data[columns + 9]) = (f32::INFINITY, f32::NAN, -f32::NAN);
        }
        let x = device.send(&data, columns);
        for count in [1, 2, 40, 255, 256] {
            let want: Vec<Largest> = data.chunks_exact(columns).map(|row| largest(row, count)).collect();
            let found = device.largest(&x, count).unwrap().expect("so few are looked for there");
            assert_eq!(bits(&found), bits(&want), "{count} of {rows} rows of {columns}");
        }
        assert_eq!(device.largest(&x, 257).unwrap(), None, "the host is as fast");
        assert_eq!(device.largest(&x, columns).unwrap(), None, "all are wanted");
    }
    let nothing = [f32::NEG_INFINITY, f32::NEG_INFINITY, -0.0, 0.0].repeat(40);
    let found = device.largest(&device.send(&nothing, 160), 90).unwrap().unwrap();
    assert_eq!(bits(&found), bits(&[largest(&nothing, 90)]));
}

/// SparseMixer's choice by its definition: the experts in order, and their weights.
fn two_best(scores: &[f32], jitter: f32) -> [(usize, f32); 2] {
    let best = |taken: usize| {
        let free = || (0..scores.len()).filter(|&expert| expert != taken);
        let at = free().reduce(|best, next| if scores[next] > scores[best] { next } else { best }).unwrap();
        let is_close = |&expert: &usize| {
            let size = scores[expert].abs().max(scores[at]);
            size == 0.0 || (scores[at] - scores[expert]) / size <= 2.0 * jitter
        };
        let sum: f32 = free().filter(is_close).map(|expert| (scores[expert] - scores[at]).exp()).sum();
        (at, 1.0 / sum)
    };
    let first = best(usize::MAX);
    let second = best(first.0);
    if first.0 < second.0 { [first, second] } else { [second, first] }
}

/// A row through one expert on the CPU.
fn expert(parts: [&Matrix; 3], row: &[f32]) -> Vec<f32> {
    let [gate, up, down] = parts;
    let mut x = cpu::Buffer::default();
    x.fill(row, row.len());
    let (mut opened, mut wide, mut both, mut out) = Default::default();
    CPU.linear(gate, &x, &mut opened).unwrap();
    CPU.linear(up, &x, &mut wide).unwrap();
    CPU.concat(&[&opened, &wide], &mut both);
    CPU.gate(Gate::Swiglu, &both, &mut opened);
    CPU.linear(down, &opened, &mut out).unwrap();
    CPU.read(&out).unwrap()
}

pub fn experts_are_chosen_on_the_device<S: Subject>(device: &S) {
    const EXPERTS: usize = 5;
    const JITTER: f32 = 0.05;
    let mut random = Random(11);
    // Matrices are known by their files, which stay open.
    let mut open = Vec::new();
    for (kind, hidden, width) in
        [(TensorType::F32, 48, 80), (TensorType::Q8_0, 64, 96), (TensorType::Q4_K, 256, 256)]
    {
        let mut stack = |rows: usize, columns: usize| {
            matrices(kind, &random.floats(EXPERTS * rows * columns), columns)
                .map(|all| (0..EXPERTS).map(|i| all.rows_of(i * rows, rows)).collect::<Vec<_>>())
        };
        let ([gate, gate_plain], [up, up_plain]) = (stack(width, hidden), stack(width, hidden));
        let [down, down_plain] = stack(hidden, width);
        let mixture = Mixture { gate: &gate, up: &up, down: &down, jitter: JITTER };
        let (last, others) = down.split_last().unwrap();
        open.extend([gate[0].clone(), up[0].clone(), down[0].clone()]);
        gate.iter().chain(&up).chain(others).for_each(|matrix| device.put(matrix).unwrap());
        for rows in [0, 1, 3, 8, 9] {
            let data = random.floats(rows.max(1) * hidden);
            let mut scores = random.floats(rows.max(1) * EXPERTS);
            // Close ones, equal ones, and none above zero.
            scores[..EXPERTS].copy_from_slice(&[0.5, 0.51, -1.0, 0.49, 0.3]);
            if rows > 2 {
                scores[EXPERTS..3 * EXPERTS]
                    .copy_from_slice(&[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -1.01, -1.0, -7.0, -1.05]);
            }
            let (x, from) = (device.send(&data, hidden), device.send(&scores, EXPERTS));
            let mut out = S::Buffer::default();
            let done = device.mixture(&mixture, &from, &x, &mut out).unwrap();
            if rows == 0 {
                assert!(!done, "an expert is missing");
                device.put(last).unwrap();
                continue;
            }
            assert_eq!(done, rows <= 8, "{rows} rows");
            if !done {
                continue;
            }
            let mut want = Vec::new();
            for (row, scores) in data.chunks_exact(hidden).zip(scores.chunks_exact(EXPERTS)) {
                let mut sum = vec![0.0; hidden];
                for (i, weight) in two_best(scores, JITTER) {
                    let part = expert([&gate_plain[i], &up_plain[i], &down_plain[i]], row);
                    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += weight * part);
                }
                want.extend(sum);
            }
            let difference = difference(&device.read(&out).unwrap(), &want);
            let most = if kind.is_quantized() { S::TOLERANCE } else { TOLERANCE };
            assert!(difference <= most, "{kind}, {rows} rows: {difference:e}");
        }
        // They are matrices like others, too.
        let data = random.floats(hidden);
        let (x, mut x_cpu) = (device.send(&data, hidden), cpu::Buffer::default());
        x_cpu.fill(&data, hidden);
        let (mut out, mut want) = (S::Buffer::default(), cpu::Buffer::default());
        device.linear(&up[3], &x, &mut out).unwrap();
        CPU.linear(&up_plain[3], &x_cpu, &mut want).unwrap();
        let difference = difference(&device.read(&out).unwrap(), &CPU.read(&want).unwrap());
        assert!(difference <= S::TOLERANCE, "{kind}: {difference:e}");
    }
}

pub fn products_end_in_sums_and_gates<S: Subject>(device: &S) {
    let mut random = Random(2);
    let (rows, columns) = (2 * 37, 160);
    let [weights, decoded] = matrices(TensorType::Q8_0, &random.floats(rows * columns), columns);
    let bias = Vector::new(random.floats(rows));
    device.put(&weights).unwrap();
    for tokens in 1..=11 {
        for bias in [None, Some(&bias)] {
            let what = format!("{tokens} tokens, bias: {}", bias.is_some());
            // What rounding costs is another test's.
            let (x, x_cpu) = both(device, &S::seen(random.floats(tokens * columns)), columns);
            let (mut sum, mut sum_cpu) = both(device, &random.floats(tokens * rows), rows);
            let (mut scratch, mut scratch_cpu) = Default::default();
            device.linear_add(&weights, bias, &x, &mut scratch, &mut sum).unwrap();
            CPU.linear_add(&decoded, bias, &x_cpu, &mut scratch_cpu, &mut sum_cpu).unwrap();
            assert_close(&device.read(&sum).unwrap(), &CPU.read(&sum_cpu).unwrap(), &what);
            for gate in [Gate::Swiglu, Gate::Gegelu { limit: 1.5 }] {
                let (mut out, mut want) = Default::default();
                device.linear_gate(&weights, bias, gate, &x, &mut scratch, &mut out).unwrap();
                CPU.linear_gate(&decoded, bias, gate, &x_cpu, &mut scratch_cpu, &mut want).unwrap();
                assert_close(
                    &device.read(&out).unwrap(),
                    &CPU.read(&want).unwrap(),
                    &format!("{what}, {gate:?}"),
                );
            }
        }
    }
}

pub fn norms_and_elementwise_operations_equal_the_cpus<S: Subject>(device: &S) {
    let mut random = Random(4);
    for (rows, columns) in [(1, 96), (3, 3072), (7, 40)] {
        let weight = Vector::new(random.floats(columns));
        let bias = Vector::new(random.floats(columns));
        let data = random.floats(rows * columns);
        let (mut x, mut x_cpu) = both(device, &data, columns);
        let (y, y_cpu) = both(device, &random.floats(rows * columns), columns);
        let (mut out, mut want): (S::Buffer, cpu::Buffer) = Default::default();
        macro_rules! same {
            ($ours:expr, $theirs:expr, $what:literal) => {
                assert_close(
                    &device.read(&$ours).unwrap(),
                    &CPU.read(&$theirs).unwrap(),
                    &format!("{}, {rows} rows of {columns}", $what),
                )
            };
        }
        device.rms_norm(&x, &weight, 1e-5, &mut out);
        CPU.rms_norm(&x_cpu, &weight, 1e-5, &mut want);
        same!(out, want, "RMS norm");
        device.layer_norm(&x, &weight, &bias, 1e-5, &mut out);
        CPU.layer_norm(&x_cpu, &weight, &bias, 1e-5, &mut want);
        same!(out, want, "layer norm");
        device.add(&mut x, &y);
        CPU.add(&mut x_cpu, &y_cpu);
        same!(x, x_cpu, "sum");
        device.add_bias(&mut x, &bias);
        CPU.add_bias(&mut x_cpu, &bias);
        same!(x, x_cpu, "bias");
        device.scale(&mut x, 0.7);
        CPU.scale(&mut x_cpu, 0.7);
        same!(x, x_cpu, "scale");
        device.concat(&[&x, &y], &mut out);
        CPU.concat(&[&x_cpu, &y_cpu], &mut want);
        same!(out, want, "concat");
        let (mut gated, mut gated_cpu) = Default::default();
        device.gate(Gate::Swiglu, &out, &mut gated);
        CPU.gate(Gate::Swiglu, &want, &mut gated_cpu);
        same!(gated, gated_cpu, "swiglu");
        device.gelu(&mut x);
        CPU.gelu(&mut x_cpu);
        same!(x, x_cpu, "gelu");
        let chosen = if rows > 2 { vec![2, 0] } else { vec![0] };
        device.gather(&x, &chosen, &mut out);
        CPU.gather(&x_cpu, &chosen, &mut want);
        same!(out, want, "gather");
        let (mut sum, mut sum_cpu) = Default::default();
        device.zeros_like(&x, &mut sum);
        CPU.zeros_like(&x_cpu, &mut sum_cpu);
        let weights: Vec<f32> = chosen.iter().map(|row| 0.5 + *row as f32).collect();
        device.scatter_add(&out, &chosen, &weights, &mut sum);
        device.scatter_add(&out, &chosen, &weights, &mut sum);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        same!(sum, sum_cpu, "scatter-add");
    }
}

/// Feeds batches of these sizes to a sequence on both backends and compares what attention gives.
pub fn attention_case<S: Subject>(
    device: &S,
    heads: Heads,
    kinds: (KvType, KvType),
    batches: &[usize],
    what: &str,
) {
    let (keys, values) = kinds;
    // Where keys or values are bf16, the CPU rounds queries or weights, too.
    let most = if keys == KvType::Bf16 || values == KvType::Bf16 { 5.0 * TOLERANCE } else { TOLERANCE };
    let mut random = Random(5);
    let shape = CacheShape { layers: 3..4, kv_heads: heads.kv_count, head: heads.size, keys, values };
    let mut cache = device.cache(shape);
    let shape = cpu::CacheShape { layers: 4, kv_heads: heads.kv_count, head: heads.size, keys, values };
    let mut cache_cpu = cpu::Cache::new(shape);
    let width = (heads.count + 2 * heads.kv_count) * heads.size;
    let pairs = heads.size / 4;
    let mut position = 0;
    for &rows in batches {
        let mut rotation = Rotation::default();
        rotation.clear();
        rotation.pairs = pairs;
        for i in 0..rows * pairs {
            let angle = (position + i / pairs) as f32 * 0.01 * (i % pairs + 1) as f32;
            rotation.cos.push(angle.cos());
            rotation.sin.push(angle.sin());
        }
        let (qkv, qkv_cpu) = both(device, &random.floats(rows * width), width);
        device.room(&mut cache, position + rows);
        cache_cpu.reserve(position + rows).unwrap();
        let (mut out, mut want) = Default::default();
        let mut parts = [Part { cache: &mut cache, rows: 0..rows, position }];
        device.attention(3, &heads, &rotation, &qkv, &mut parts, &mut out).unwrap();
        let mut parts = [Part { cache: &mut cache_cpu, rows: 0..rows, position }];
        CPU.attention(3, &heads, &rotation, &qkv_cpu, &mut parts, &mut want).unwrap();
        let what = format!("{what}: {rows} rows at {position}, {heads:?}, {keys:?} and {values:?}");
        let difference = difference(&device.read(&out).unwrap(), &CPU.read(&want).unwrap());
        assert!(difference <= most, "{what}: {difference:e}");
        position += rows;
    }
}

/// Attention heads that see `window` positions.
pub fn heads(count: usize, kv_count: usize, size: usize, window: usize) -> Heads {
    Heads { count, kv_count, size, scale: 1.0 / (size as f32).sqrt(), window, sparse: None }
}

pub fn attention_equals_the_cpus<S: Subject>(device: &S) {
    let half = (KvType::F16, KvType::F16);
    for size in [16, 64, 80, 96, 128] {
        for (count, kv_count) in [(2, 2), (6, 2)] {
            attention_case(
                device,
                heads(count, kv_count, size, usize::MAX),
                half,
                &[40, 1, 3, 100, 9, 1],
                "sizes",
            );
        }
    }
    attention_case(device, heads(2, 1, 96, 50), half, &[70, 1, 150, 1, 8, 30], "window");
    let sparse = BlockSparse { block: 64, local: 2, stride: 3, head_step: 1 };
    let sparse = Heads { sparse: Some(sparse), ..heads(4, 2, 64, usize::MAX) };
    attention_case(device, sparse, half, &[300, 1, 2, 90, 1], "block-sparse");
}

pub fn attention_takes_every_type_of_cache<S: Subject>(device: &S) {
    for kind in KvType::ALL {
        attention_case(device, heads(2, 2, 96, usize::MAX), (kind, kind), &[20, 1, 200, 2], "types");
    }
    attention_case(
        device,
        heads(2, 2, 80, usize::MAX),
        (KvType::Q8_0, KvType::F16),
        &[20, 1, 60, 2],
        "mixed types",
    );
}

pub fn sequences_of_a_batch_do_not_mix<S: Subject>(device: &S) {
    let heads = heads(2, 2, 64, usize::MAX);
    let shape = CacheShape { layers: 0..1, kv_heads: 2, head: 64, keys: KvType::F16, values: KvType::F16 };
    let (mut random, width) = (Random(6), 6 * 64);
    let data = random.floats(5 * width);
    let mut rotation = Rotation { pairs: 2, cos: vec![0.8; 10], sin: vec![0.6; 10], ..Rotation::default() };
    let run = |rotation: &Rotation, ends: &[usize]| {
        let starts = [0].iter().chain(ends);
        let rows: Vec<_> = starts.zip(ends).map(|(start, end)| *start..*end).collect();
        let count = rows.last().unwrap().end;
        let (qkv, _) = both(device, &data[..count * width], width);
        let mut caches: Vec<S::Cache> = rows.iter().map(|_| device.cache(shape.clone())).collect();
        let mut parts = Vec::new();
        for (cache, rows) in caches.iter_mut().zip(&rows) {
            device.room(cache, rows.len());
            parts.push(Part { cache, rows: rows.clone(), position: 0 });
        }
        let mut out = S::Buffer::default();
        device.attention(0, &heads, rotation, &qkv, &mut parts, &mut out).unwrap();
        device.read(&out).unwrap()
    };
    rotation.id = 1;
    let together = run(&rotation, &[3, 5]);
    assert_eq!(run(&rotation, &[3]), together[..3 * 128]);
    assert_ne!(run(&rotation, &[5])[3 * 128..], together[3 * 128..]);
}

/// As answers are made: each sequence has its own length, and one row of the batch.
pub fn sequences_that_go_on_together_do_not_mix<S: Subject>(device: &S) {
    let (heads, width) = (heads(4, 2, 64, 200), 8 * 64);
    let shape = CacheShape { layers: 3..5, kv_heads: 2, head: 64, keys: KvType::F16, values: KvType::F16 };
    let mut random = Random(8);
    let lengths = [1, 130, 40, 300];
    let mut rotation = Rotation { pairs: 2, cos: vec![0.8; 600], sin: vec![0.6; 600], ..Rotation::default() };
    let prompts: Vec<Vec<f32>> = lengths.iter().map(|length| random.floats(length * width)).collect();
    let rows = random.floats(lengths.len() * width);
    // What follows the prompts numbered `which`, all of it at once.
    let mut run = |which: &[usize]| {
        let mut caches: Vec<S::Cache> = Vec::new();
        let mut out = S::Buffer::default();
        for &i in which {
            let mut cache = device.cache(shape.clone());
            device.room(&mut cache, lengths[i] + 1);
            rotation.id += 1;
            for layer in 3..5 {
                let (qkv, _) = both(device, &prompts[i], width);
                let mut parts = [Part { cache: &mut cache, rows: 0..lengths[i], position: 0 }];
                device.attention(layer, &heads, &rotation, &qkv, &mut parts, &mut out).unwrap();
            }
            caches.push(cache);
        }
        rotation.id += 1;
        let data: Vec<f32> = which.iter().flat_map(|&i| &rows[i * width..(i + 1) * width]).copied().collect();
        let (qkv, _) = both(device, &data, width);
        let mut parts: Vec<Part<'_, S::Cache>> = Vec::new();
        for (row, (cache, &i)) in caches.iter_mut().zip(which).enumerate() {
            parts.push(Part { cache, rows: row..row + 1, position: lengths[i] });
        }
        let layers = [3, 4].map(|layer| {
            device.attention(layer, &heads, &rotation, &qkv, &mut parts, &mut out).unwrap();
            device.read(&out).unwrap()
        });
        layers.concat()
    };
    let together = run(&[0, 1, 2, 3]);
    let half = together.len() / 2;
    for i in 0..lengths.len() {
        let alone = run(&[i]);
        let size = alone.len() / 2;
        for (layer, alone) in alone.chunks(size).enumerate() {
            let start = layer * half + i * size;
            assert_close(alone, &together[start..start + size], &format!("layer {layer}, sequence {i}"));
        }
    }
}

pub fn a_matrix_that_is_not_there_is_an_error<S: Subject>(device: &S) {
    let [weights, _] = matrices(TensorType::Q4_0, &[0.5; 64], 32);
    let (x, _) = both(device, &[1.0; 32], 32);
    let error = device.linear(&weights, &x, &mut S::Buffer::default()).unwrap_err();
    assert!(error.to_string().contains("was not put on"), "{error}");
    let [odd, _] = matrices(TensorType::F32, &[0.5; 40], 20);
    assert!(device.put(&odd).unwrap_err().to_string().contains("multiple of 16"));
}
