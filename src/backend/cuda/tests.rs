//! Every kernel against the CPU's: on a device, or on one that emulation.rs makes up.

mod emulation;

use super::modules::Module;
use super::{Adapter, Cache, CacheShape, Cuda};
use crate::backend::cpu;
use crate::backend::device_tests::{self, CPU, Random, Subject, assert_close, difference, matrices};
use crate::backend::{Backend, BlockSparse, Gate, Heads, Matrix, Part, Rotation, Vector};
use crate::gguf::TensorType;
use crate::kernel::kv::KvType;

/// Largest relative error of products of int8 in the l2 norm.
const TOLERANCE_INT8: f64 = 1e-2;

/// Opens the first device; says so where there is none.
fn cuda() -> Option<Cuda> {
    let adapter = Adapter::all().into_iter().next();
    if adapter.is_none() {
        eprintln!("skipped: there is no device with NVIDIA's driver");
    }
    adapter.map(|adapter| Cuda::open(&adapter).expect("the device opens"))
}

/// As [`assert_close`], for products of int8.
fn assert_close_int8(ours: &[f32], want: &[f32], what: &str) {
    let difference = difference(ours, want);
    assert!(difference <= TOLERANCE_INT8, "{what}: {difference:e}");
}

/// `x` as int8 with a scale for 32 elements has it.
fn rounded(x: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for group in x.chunks(32) {
        let largest = group.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let (scale, inverse) = (largest / 127.0, 127.0 / largest);
        out.extend(group.iter().map(|x| (x * inverse).round_ties_even() * scale));
    }
    out
}

/// The same buffer on both.
fn both(cuda: &Cuda, data: &[f32], columns: usize) -> (super::Buffer, cpu::Buffer) {
    let mut device = super::Buffer::default();
    cuda.write(data, data.len() / columns, columns, &mut device).unwrap();
    let mut host = cpu::Buffer::default();
    host.fill(data, columns);
    (device, host)
}

fn all_types() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|kind| Module::weights(*kind).is_some())
}

#[test]
fn products_of_every_type_equal_the_cpus() {
    let Some(cuda) = cuda() else { return };
    let mut random = Random(1);
    for kind in all_types() {
        for (rows, columns, batches) in [(5, 512, [1, 3, 9]), (130, 256, [2, 7, 70])] {
            let [weights, decoded] = matrices(kind, &random.floats(rows * columns), columns);
            cuda.upload(&weights, &mut |_| {}).unwrap();
            for tokens in batches {
                let data = random.floats(tokens * columns);
                let (x, x_cpu) = both(&cuda, &data, columns);
                let (mut out, mut want) = Default::default();
                cuda.linear(&weights, &x, &mut out).unwrap();
                CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
                let what = format!("{kind}, {rows} rows of {columns}, {tokens} tokens");
                let out = cuda.read(&out).unwrap();
                if !kind.is_quantized() {
                    assert_close(&out, &CPU.read(&want).unwrap(), &what);
                    continue;
                }
                // A handful of results may be small by chance, and what int8 costs large beside them.
                if rows > 5 {
                    assert_close_int8(&out, &CPU.read(&want).unwrap(), &what);
                }
                // Beyond int8, nothing is lost.
                let mut x_cpu = cpu::Buffer::default();
                x_cpu.fill(&rounded(&data), columns);
                CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
                let beyond = difference(&out, &CPU.read(&want).unwrap());
                assert!(beyond < 1e-5, "{what}, rounded: {beyond:e}");
            }
            let ids = [rows as u32 - 1, 0, 3];
            let (mut out, mut want) = Default::default();
            cuda.embed(&weights, &ids, &mut out).unwrap();
            CPU.embed(&decoded, &ids, &mut want).unwrap();
            assert_close(&cuda.read(&out).unwrap(), &CPU.read(&want).unwrap(), &format!("{kind}, rows"));
        }
    }
}

#[test]
fn a_product_takes_what_a_norm_made_int8() {
    let Some(cuda) = cuda() else { return };
    let mut random = Random(7);
    let (rows, columns) = (33, 512);
    let [weights, decoded] = matrices(TensorType::Q5_K, &random.floats(rows * columns), columns);
    cuda.upload(&weights, &mut |_| {}).unwrap();
    for tokens in [1, 5, 20] {
        let data = random.floats(tokens * columns);
        let (x, x_cpu) = both(&cuda, &data, columns);
        let weight = Vector::new(random.floats(columns));
        let (mut normed, mut normed_cpu) = Default::default();
        cuda.rms_norm(&x, &weight, 1e-5, &mut normed);
        CPU.rms_norm(&x_cpu, &weight, 1e-5, &mut normed_cpu);
        assert!(normed.is_quantized);
        let (mut out, mut want) = Default::default();
        cuda.linear(&weights, &normed, &mut out).unwrap();
        CPU.linear(&decoded, &normed_cpu, &mut want).unwrap();
        assert_close_int8(&cuda.read(&out).unwrap(), &CPU.read(&want).unwrap(), "normed");
        cuda.scale(&mut normed, -2.0);
        CPU.scale(&mut normed_cpu, -2.0);
        cuda.linear(&weights, &normed, &mut out).unwrap();
        CPU.linear(&decoded, &normed_cpu, &mut want).unwrap();
        assert_close_int8(&cuda.read(&out).unwrap(), &CPU.read(&want).unwrap(), "changed since");
    }
}

#[test]
fn products_end_in_sums_and_gates() {
    let Some(cuda) = cuda() else { return };
    let mut random = Random(2);
    let (rows, columns) = (2 * 37, 160);
    let [weights, decoded] = matrices(TensorType::Q8_0, &random.floats(rows * columns), columns);
    let bias = Vector::new(random.floats(rows));
    cuda.upload(&weights, &mut |_| {}).unwrap();
    for tokens in 1..=11 {
        for bias in [None, Some(&bias)] {
            let what = format!("{tokens} tokens, bias: {}", bias.is_some());
            // What int8 costs is another test's.
            let (x, x_cpu) = both(&cuda, &rounded(&random.floats(tokens * columns)), columns);
            let (mut sum, mut sum_cpu) = both(&cuda, &random.floats(tokens * rows), rows);
            let (mut scratch, mut scratch_cpu) = Default::default();
            cuda.linear_add(&weights, bias, &x, &mut scratch, &mut sum).unwrap();
            CPU.linear_add(&decoded, bias, &x_cpu, &mut scratch_cpu, &mut sum_cpu).unwrap();
            assert_close(&cuda.read(&sum).unwrap(), &CPU.read(&sum_cpu).unwrap(), &what);
            for gate in [Gate::Swiglu, Gate::Gegelu { limit: 1.5 }] {
                let (mut out, mut want) = Default::default();
                cuda.linear_gate(&weights, bias, gate, &x, &mut scratch, &mut out).unwrap();
                CPU.linear_gate(&decoded, bias, gate, &x_cpu, &mut scratch_cpu, &mut want).unwrap();
                assert_close(
                    &cuda.read(&out).unwrap(),
                    &CPU.read(&want).unwrap(),
                    &format!("{what}, {gate:?}"),
                );
            }
        }
    }
}

#[test]
fn norms_and_elementwise_operations_equal_the_cpus() {
    let Some(cuda) = cuda() else { return };
    let mut random = Random(4);
    for (rows, columns) in [(1, 96), (3, 3072), (7, 40)] {
        let weight = Vector::new(random.floats(columns));
        let bias = Vector::new(random.floats(columns));
        let data = random.floats(rows * columns);
        let (mut x, mut x_cpu) = both(&cuda, &data, columns);
        let (y, y_cpu) = both(&cuda, &random.floats(rows * columns), columns);
        let (mut out, mut want): (super::Buffer, cpu::Buffer) = Default::default();
        macro_rules! same {
            ($ours:expr, $theirs:expr, $what:literal) => {
                assert_close(
                    &cuda.read(&$ours).unwrap(),
                    &CPU.read(&$theirs).unwrap(),
                    &format!("{}, {rows} rows of {columns}", $what),
                )
            };
        }
        cuda.rms_norm(&x, &weight, 1e-5, &mut out);
        CPU.rms_norm(&x_cpu, &weight, 1e-5, &mut want);
        same!(out, want, "RMS norm");
        cuda.layer_norm(&x, &weight, &bias, 1e-5, &mut out);
        CPU.layer_norm(&x_cpu, &weight, &bias, 1e-5, &mut want);
        same!(out, want, "layer norm");
        cuda.add(&mut x, &y);
        CPU.add(&mut x_cpu, &y_cpu);
        same!(x, x_cpu, "sum");
        cuda.add_bias(&mut x, &bias);
        CPU.add_bias(&mut x_cpu, &bias);
        same!(x, x_cpu, "bias");
        cuda.scale(&mut x, 0.7);
        CPU.scale(&mut x_cpu, 0.7);
        same!(x, x_cpu, "scale");
        cuda.concat(&[&x, &y], &mut out);
        CPU.concat(&[&x_cpu, &y_cpu], &mut want);
        same!(out, want, "concat");
        let (mut gated, mut gated_cpu) = Default::default();
        cuda.gate(Gate::Swiglu, &out, &mut gated);
        CPU.gate(Gate::Swiglu, &want, &mut gated_cpu);
        same!(gated, gated_cpu, "swiglu");
        cuda.gelu(&mut x);
        CPU.gelu(&mut x_cpu);
        same!(x, x_cpu, "gelu");
        let chosen = if rows > 2 { vec![2, 0] } else { vec![0] };
        cuda.gather(&x, &chosen, &mut out);
        CPU.gather(&x_cpu, &chosen, &mut want);
        same!(out, want, "gather");
        let (mut sum, mut sum_cpu) = Default::default();
        cuda.zeros_like(&x, &mut sum);
        CPU.zeros_like(&x_cpu, &mut sum_cpu);
        let weights: Vec<f32> = chosen.iter().map(|row| 0.5 + *row as f32).collect();
        cuda.scatter_add(&out, &chosen, &weights, &mut sum);
        cuda.scatter_add(&out, &chosen, &weights, &mut sum);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        same!(sum, sum_cpu, "scatter-add");
    }
}

/// Runs a test that all kinds of devices have.
fn ask(test: impl Fn(&Subject<'_, Cuda>)) {
    let Some(cuda) = cuda() else { return };
    test(&Subject {
        device: &cuda,
        write: &|data, columns| both(&cuda, data, columns).0,
        upload: &|matrix| cuda.upload(matrix, &mut |_| {}).unwrap(),
        tolerance: 3.0 * TOLERANCE_INT8,
    });
}

#[test]
fn the_largest_elements_are_found() {
    ask(device_tests::the_largest_elements_are_found);
}

#[test]
fn experts_are_chosen_on_the_device() {
    ask(device_tests::experts_are_chosen_on_the_device);
}

/// Feeds batches of these sizes to a sequence on both backends and compares what attention gives.
fn attention_case(cuda: &Cuda, heads: Heads, kinds: (KvType, KvType), batches: &[usize], what: &str) {
    let (keys, values) = kinds;
    let mut random = Random(5);
    let shape = CacheShape { layers: 3..4, kv_heads: heads.kv_count, head: heads.size, keys, values };
    let mut cache = Cache::new(shape);
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
        let (qkv, qkv_cpu) = both(cuda, &random.floats(rows * width), width);
        cache.reserve(cuda, position + rows).unwrap();
        cache_cpu.reserve(position + rows).unwrap();
        let (mut out, mut want) = Default::default();
        let mut parts = [Part { cache: &mut cache, rows: 0..rows, position }];
        cuda.attention(3, &heads, &rotation, &qkv, &mut parts, &mut out).unwrap();
        let mut parts = [Part { cache: &mut cache_cpu, rows: 0..rows, position }];
        CPU.attention(3, &heads, &rotation, &qkv_cpu, &mut parts, &mut want).unwrap();
        let what = format!("{what}: {rows} rows at {position}, {heads:?}, {keys:?} and {values:?}");
        assert_close(&cuda.read(&out).unwrap(), &CPU.read(&want).unwrap(), &what);
        position += rows;
    }
}

fn heads(count: usize, kv_count: usize, size: usize, window: usize) -> Heads {
    Heads { count, kv_count, size, scale: 1.0 / (size as f32).sqrt(), window, sparse: None }
}

#[test]
fn attention_equals_the_cpus() {
    let Some(cuda) = cuda() else { return };
    let half = (KvType::F16, KvType::F16);
    for size in [16, 64, 80, 96, 128] {
        for (count, kv_count) in [(2, 2), (6, 2)] {
            attention_case(
                &cuda,
                heads(count, kv_count, size, usize::MAX),
                half,
                &[40, 1, 3, 100, 9, 1],
                "sizes",
            );
        }
    }
    attention_case(&cuda, heads(2, 1, 96, 50), half, &[70, 1, 150, 1, 8, 30], "window");
    let sparse = BlockSparse { block: 64, local: 2, stride: 3, head_step: 1 };
    let sparse = Heads { sparse: Some(sparse), ..heads(4, 2, 64, usize::MAX) };
    attention_case(&cuda, sparse, half, &[300, 1, 2, 90, 1], "block-sparse");
}

#[test]
fn attention_takes_every_type_of_cache() {
    let Some(cuda) = cuda() else { return };
    for kind in KvType::ALL {
        attention_case(&cuda, heads(2, 2, 96, usize::MAX), (kind, kind), &[20, 1, 200, 2], "types");
    }
    attention_case(
        &cuda,
        heads(2, 2, 80, usize::MAX),
        (KvType::Q8_0, KvType::F16),
        &[20, 1, 60, 2],
        "mixed types",
    );
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "one sequence is one range of rows")]
fn sequences_of_a_batch_do_not_mix() {
    let Some(cuda) = cuda() else { return };
    let heads = heads(2, 2, 64, usize::MAX);
    let shape = CacheShape { layers: 0..1, kv_heads: 2, head: 64, keys: KvType::F16, values: KvType::F16 };
    let (mut random, width) = (Random(6), 6 * 64);
    let data = random.floats(5 * width);
    let mut rotation = Rotation { pairs: 2, cos: vec![0.8; 10], sin: vec![0.6; 10], ..Rotation::default() };
    let run = |rotation: &Rotation, rows: &[std::ops::Range<usize>]| {
        let count = rows.last().unwrap().end;
        let (qkv, _) = both(&cuda, &data[..count * width], width);
        let mut caches: Vec<Cache> = rows.iter().map(|_| Cache::new(shape.clone())).collect();
        let mut parts = Vec::new();
        for (cache, rows) in caches.iter_mut().zip(rows) {
            cache.reserve(&cuda, rows.len()).unwrap();
            parts.push(Part { cache, rows: rows.clone(), position: 0 });
        }
        let mut out = super::Buffer::default();
        cuda.attention(0, &heads, rotation, &qkv, &mut parts, &mut out).unwrap();
        cuda.read(&out).unwrap()
    };
    rotation.id = 1;
    let together = run(&rotation, &[0..3, 3..5]);
    assert_eq!(run(&rotation, &[0..3]), together[..3 * 128]);
    assert_ne!(run(&rotation, &[0..5])[3 * 128..], together[3 * 128..]);
}

#[test]
fn a_matrix_that_is_not_there_is_an_error() {
    let Some(cuda) = cuda() else { return };
    let [weights, _] = matrices(TensorType::Q4_0, &[0.5; 64], 32);
    let (x, _) = both(&cuda, &[1.0; 32], 32);
    let error = cuda.linear(&weights, &x, &mut super::Buffer::default()).unwrap_err();
    assert!(error.to_string().contains("was not put on"), "{error}");
    let [odd, _] = matrices(TensorType::F32, &[0.5; 40], 20);
    assert!(cuda.upload(&odd, &mut |_| {}).unwrap_err().to_string().contains("multiple of 16"));
}

/// What a layer does with `x` at `position`, so often that it makes a graph.
fn token(cuda: &Cuda, weights: &Matrix, cache: &mut Cache, position: usize, x: &[f32]) -> Vec<f32> {
    let norm = Vector::new(vec![1.5; 64]);
    let mut rotation = Rotation::default();
    rotation.clear();
    rotation.pairs = 4;
    rotation.cos = (0..4).map(|i| (position as f32 * 0.1 * i as f32).cos()).collect();
    rotation.sin = (0..4).map(|i| (position as f32 * 0.1 * i as f32).sin()).collect();
    let mut x = both(cuda, x, 64).0;
    let (mut y, mut qkv, mut out) = Default::default();
    cache.reserve(cuda, position + 1).unwrap();
    for _ in 0..5 {
        cuda.rms_norm(&x, &norm, 1e-5, &mut y);
        cuda.linear(weights, &y, &mut qkv).unwrap();
        let mut parts = [Part { cache: &mut *cache, rows: 0..1, position }];
        cuda.attention(0, &heads(4, 2, 16, usize::MAX), &rotation, &qkv, &mut parts, &mut out).unwrap();
        cuda.add(&mut x, &out);
    }
    cuda.read(&x).unwrap()
}

#[test]
fn launches_that_repeat_become_a_graph() {
    let (Some(cuda), Some(plain)) = (cuda(), cuda()) else { return };
    plain.context.launches().without_graphs();
    let mut random = Random(9);
    let [weights, _] = matrices(TensorType::Q8_0, &random.floats(128 * 64), 64);
    let shape = CacheShape { layers: 0..1, kv_heads: 2, head: 16, keys: KvType::F16, values: KvType::F16 };
    let (mut cache, mut plain_cache) = (Cache::new(shape.clone()), Cache::new(shape));
    for cuda in [&cuda, &plain] {
        cuda.upload(&weights, &mut |_| {}).unwrap();
    }
    for position in 0..132 {
        // What is uploaded once makes the first one differ; at 128, attention begins to take one more kernel.
        let x = random.floats(64);
        let replays = cuda.context.launches().replays;
        let got = token(&cuda, &weights, &mut cache, position, &x);
        assert_eq!(got, token(&plain, &weights, &mut plain_cache, position, &x), "position {position}");
        let is_graph = cuda.context.launches().replays > replays;
        let may_be = cuda.context.driver.graphs.is_some();
        assert_eq!(is_graph, may_be && ![0, 1, 128].contains(&position), "position {position}");
    }
    assert_eq!(plain.context.launches().replays, 0);
}

/// The emulated driver refuses graphs of more than 1000 launches; a real one takes them.
#[test]
fn a_graph_that_is_refused_goes_launch_by_launch() {
    let Some(cuda) = cuda() else { return };
    let (mut x, _) = both(&cuda, &[0.0; 32], 32);
    let (y, _) = both(&cuda, &[1.0; 32], 32);
    for round in 1..=3 {
        (0..1001).for_each(|_| cuda.add(&mut x, &y));
        assert_eq!(cuda.read(&x).unwrap(), [1001.0 * round as f32; 32]);
    }
    if cuda.context.name() == "emulated GPU" {
        assert_eq!(cuda.context.launches().replays, 0);
    }
}
