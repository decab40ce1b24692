//! Every kernel against the CPU's, on whatever device there is: a real one, or Mesa's software driver.

use super::kernels::{Activation, Ending, Kernel, Kernels};
use super::pipeline_cache::PipelineCache;
use super::{Adapter, Cache, CacheShape, Gpu};
use crate::backend::cpu;
use crate::backend::device_tests::{self, CPU, Random, Subject, TOLERANCE, assert_close, matrices, matrix};
use crate::backend::{Backend, BlockSparse, Gate, Heads, Part, Rotation, Vector};
use crate::gguf::TensorType;
use crate::kernel::kv::KvType;

/// Opens the first device, whose kernels see at most `bytes` of a buffer; says so where there is none.
fn gpu(bytes: u64) -> Option<Gpu> {
    let adapter = Adapter::all(true).into_iter().next();
    if adapter.is_none() {
        eprintln!(
            "skipped: there is no device with a driver (Mesa's mesa-vulkan-drivers has one in software)"
        );
    }
    adapter.map(|adapter| Gpu::with_limit(&adapter, bytes).expect("the device opens"))
}

/// The same buffer on both.
fn both(gpu: &Gpu, data: &[f32], columns: usize) -> (super::Buffer, cpu::Buffer) {
    let mut device = super::Buffer::default();
    gpu.write(data, data.len() / columns, columns, &mut device).unwrap();
    let mut host = cpu::Buffer::default();
    host.fill(data, columns);
    (device, host)
}

fn all_types() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|kind| super::blocks::source(*kind).is_some())
}

#[test]
fn products_of_every_type_equal_the_cpus() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let mut random = Random(1);
    for kind in all_types() {
        for (rows, columns) in [(5, 512), (70, 256 * 3)] {
            let [weights, decoded] = matrices(kind, &random.floats(rows * columns), columns);
            gpu.upload(&weights, &mut |_| {}).unwrap();
            for tokens in [1, 3, 9, 70] {
                let (x, x_cpu) = both(&gpu, &random.floats(tokens * columns), columns);
                let (mut out, mut want) = Default::default();
                gpu.linear(&weights, &x, &mut out).unwrap();
                CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
                let what = format!("{kind}, {rows} rows of {columns}, {tokens} tokens");
                assert_close(&gpu.read(&out).unwrap(), &CPU.read(&want).unwrap(), &what);
            }
        }
    }
}

#[test]
fn products_end_in_sums_and_gates() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let mut random = Random(2);
    let (rows, columns) = (2 * 37, 160);
    let [weights, decoded] = matrices(TensorType::Q8_0, &random.floats(rows * columns), columns);
    let bias = Vector::new(random.floats(rows));
    gpu.upload(&weights, &mut |_| {}).unwrap();
    for tokens in 1..=11 {
        for bias in [None, Some(&bias)] {
            let what = format!("{tokens} tokens, bias: {}", bias.is_some());
            let (x, x_cpu) = both(&gpu, &random.floats(tokens * columns), columns);
            let (mut sum, mut sum_cpu) = both(&gpu, &random.floats(tokens * rows), rows);
            let (mut scratch, mut scratch_cpu) = Default::default();
            gpu.linear_add(&weights, bias, &x, &mut scratch, &mut sum).unwrap();
            CPU.linear_add(&decoded, bias, &x_cpu, &mut scratch_cpu, &mut sum_cpu).unwrap();
            assert_close(&gpu.read(&sum).unwrap(), &CPU.read(&sum_cpu).unwrap(), &what);
            for gate in [Gate::Swiglu, Gate::Gegelu { limit: 1.5 }] {
                let (mut out, mut want) = Default::default();
                gpu.linear_gate(&weights, bias, gate, &x, &mut scratch, &mut out).unwrap();
                CPU.linear_gate(&decoded, bias, gate, &x_cpu, &mut scratch_cpu, &mut want).unwrap();
                assert_close(
                    &gpu.read(&out).unwrap(),
                    &CPU.read(&want).unwrap(),
                    &format!("{what}, {gate:?}"),
                );
            }
        }
    }
}

#[test]
fn matrices_larger_than_a_binding_are_cut_between_rows() {
    let mut random = Random(3);
    let (rows, columns) = (131, 256);
    // 4 KiB are 28 rows of Q4_K, 19 of Q6_K and 8 of F16.
    let Some(gpu) = gpu(4096) else { return };
    for kind in [TensorType::Q4_K, TensorType::Q6_K, TensorType::F16] {
        let [weights, decoded] = matrices(kind, &random.floats(rows * columns), columns);
        gpu.upload(&weights, &mut |_| {}).unwrap();
        assert!(gpu.resident(&weights).unwrap().chunks.len() > 4);
        for tokens in [1, 4, 2 * 9] {
            // The buffers themselves are larger than 4 KiB; only weights and the cache heed the limit.
            let (x, x_cpu) = both(&gpu, &random.floats(tokens * columns), columns);
            let (mut out, mut want) = Default::default();
            gpu.linear(&weights, &x, &mut out).unwrap();
            CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
            assert_close(
                &gpu.read(&out).unwrap(),
                &CPU.read(&want).unwrap(),
                &format!("{kind}, {tokens} tokens"),
            );
        }
        let ids = [0, 130, 27, 28, 64, 8, 7, 19];
        let (mut out, mut want) = Default::default();
        gpu.embed(&weights, &ids, &mut out).unwrap();
        CPU.embed(&decoded, &ids, &mut want).unwrap();
        assert_close(
            &gpu.read(&out).unwrap(),
            &CPU.read(&want).unwrap(),
            &format!("{kind}, rows of a table"),
        );
    }
}

#[test]
fn a_matrix_beyond_the_devices_own_limit() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let columns = 1024;
    let rows = (gpu.device.most_bytes.min(128 << 20) as usize / (2 * columns)) + 77;
    if gpu.device.most_bytes > 128 << 20 {
        eprintln!("skipped: this device has a higher limit than 128 MiB");
        return;
    }
    // One row after the other says its own number.
    let mut bytes = Vec::with_capacity(rows * columns * 2);
    for row in 0..rows {
        let value = half::f16::from_f32((row % 1000) as f32).to_le_bytes();
        (0..columns).for_each(|column| bytes.extend(if column == row % columns { value } else { [0; 2] }));
    }
    let weights = matrix(TensorType::F16, rows, columns, &bytes);
    drop(bytes);
    gpu.upload(&weights, &mut |_| {}).unwrap();
    assert_eq!(gpu.resident(&weights).unwrap().chunks.len(), 2);
    let (x, _) = both(&gpu, &vec![1.0; columns], columns);
    let mut out = super::Buffer::default();
    gpu.linear(&weights, &x, &mut out).unwrap();
    let out = gpu.read(&out).unwrap();
    assert!(out.iter().enumerate().all(|(row, value)| *value == (row % 1000) as f32));
}

#[test]
fn norms_and_elementwise_operations_equal_the_cpus() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let mut random = Random(4);
    for (rows, columns) in [(1, 96), (3, 3072), (7, 40)] {
        let weight = Vector::new(random.floats(columns));
        let bias = Vector::new(random.floats(columns));
        let data = random.floats(rows * columns);
        let (mut x, mut x_cpu) = both(&gpu, &data, columns);
        let (y, y_cpu) = both(&gpu, &random.floats(rows * columns), columns);
        let (mut out, mut want): (super::Buffer, cpu::Buffer) = Default::default();
        macro_rules! same {
            ($ours:expr, $theirs:expr, $what:literal) => {
                assert_close(
                    &gpu.read(&$ours).unwrap(),
                    &CPU.read(&$theirs).unwrap(),
                    &format!("{}, {rows} rows of {columns}", $what),
                )
            };
        }
        gpu.rms_norm(&x, &weight, 1e-5, &mut out);
        CPU.rms_norm(&x_cpu, &weight, 1e-5, &mut want);
        same!(out, want, "RMS norm");
        gpu.layer_norm(&x, &weight, &bias, 1e-5, &mut out);
        CPU.layer_norm(&x_cpu, &weight, &bias, 1e-5, &mut want);
        same!(out, want, "layer norm");
        gpu.add(&mut x, &y);
        CPU.add(&mut x_cpu, &y_cpu);
        same!(x, x_cpu, "sum");
        gpu.add_bias(&mut x, &bias);
        CPU.add_bias(&mut x_cpu, &bias);
        same!(x, x_cpu, "bias");
        gpu.scale(&mut x, 0.7);
        CPU.scale(&mut x_cpu, 0.7);
        same!(x, x_cpu, "scale");
        gpu.concat(&[&x, &y], &mut out);
        CPU.concat(&[&x_cpu, &y_cpu], &mut want);
        same!(out, want, "concat");
        let (mut gated, mut gated_cpu) = Default::default();
        gpu.gate(Gate::Swiglu, &out, &mut gated);
        CPU.gate(Gate::Swiglu, &want, &mut gated_cpu);
        same!(gated, gated_cpu, "swiglu");
        gpu.gelu(&mut x);
        CPU.gelu(&mut x_cpu);
        same!(x, x_cpu, "gelu");
        let chosen = if rows > 2 { vec![2, 0] } else { vec![0] };
        gpu.gather(&x, &chosen, &mut out);
        CPU.gather(&x_cpu, &chosen, &mut want);
        same!(out, want, "gather");
        let (mut sum, mut sum_cpu) = Default::default();
        gpu.zeros_like(&x, &mut sum);
        CPU.zeros_like(&x_cpu, &mut sum_cpu);
        let weights: Vec<f32> = chosen.iter().map(|row| 0.5 + *row as f32).collect();
        gpu.scatter_add(&out, &chosen, &weights, &mut sum);
        gpu.scatter_add(&out, &chosen, &weights, &mut sum);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        CPU.scatter_add(&want, &chosen, &weights, &mut sum_cpu);
        same!(sum, sum_cpu, "scatter-add");
    }
}

/// Runs a test that all kinds of devices have.
fn ask(test: impl Fn(&Subject<'_, Gpu>)) {
    let Some(gpu) = gpu(u64::MAX) else { return };
    test(&Subject {
        device: &gpu,
        write: &|data, columns| both(&gpu, data, columns).0,
        upload: &|matrix| gpu.upload(matrix, &mut |_| {}).unwrap(),
        tolerance: TOLERANCE,
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
fn attention_case(gpu: &Gpu, heads: Heads, kinds: (KvType, KvType), batches: &[usize], what: &str) {
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
        let (qkv, qkv_cpu) = both(gpu, &random.floats(rows * width), width);
        cache.reserve(gpu, position + rows).unwrap();
        cache_cpu.reserve(position + rows).unwrap();
        let (mut out, mut want) = Default::default();
        let mut parts = [Part { cache: &mut cache, rows: 0..rows, position }];
        gpu.attention(3, &heads, &rotation, &qkv, &mut parts, &mut out).unwrap();
        let mut parts = [Part { cache: &mut cache_cpu, rows: 0..rows, position }];
        CPU.attention(3, &heads, &rotation, &qkv_cpu, &mut parts, &mut want).unwrap();
        let what = format!("{what}: {rows} rows at {position}, {heads:?}, {keys:?} and {values:?}");
        assert_close(&gpu.read(&out).unwrap(), &CPU.read(&want).unwrap(), &what);
        position += rows;
    }
}

fn heads(count: usize, kv_count: usize, size: usize, window: usize) -> Heads {
    Heads { count, kv_count, size, scale: 1.0 / (size as f32).sqrt(), window, sparse: None }
}

#[test]
fn attention_equals_the_cpus() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let half = (KvType::F16, KvType::F16);
    for size in [16, 64, 80, 96, 128] {
        for (count, kv_count) in [(2, 2), (6, 2)] {
            attention_case(
                &gpu,
                heads(count, kv_count, size, usize::MAX),
                half,
                &[40, 1, 3, 100, 9, 1],
                "sizes",
            );
        }
    }
    attention_case(&gpu, heads(2, 1, 96, 50), half, &[70, 1, 150, 1, 8, 30], "window");
    let sparse = BlockSparse { block: 64, local: 2, stride: 3, head_step: 1 };
    let sparse = Heads { sparse: Some(sparse), ..heads(4, 2, 64, usize::MAX) };
    attention_case(&gpu, sparse, half, &[300, 1, 2, 90, 1], "block-sparse");
}

#[test]
fn attention_takes_every_type_of_cache() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    for kind in KvType::ALL {
        attention_case(&gpu, heads(2, 2, 96, usize::MAX), (kind, kind), &[20, 1, 200, 2], "types");
    }
    attention_case(
        &gpu,
        heads(2, 2, 80, usize::MAX),
        (KvType::Q8_0, KvType::F16),
        &[20, 1, 60, 2],
        "mixed types",
    );
}

#[test]
fn attention_goes_over_several_segments() {
    // 256 positions of two heads of 64 elements in f16: the smallest segment.
    let Some(gpu) = gpu(2 * 64 * 2 * 256) else { return };
    let kinds = (KvType::F16, KvType::F16);
    attention_case(&gpu, heads(2, 2, 64, usize::MAX), kinds, &[250, 1, 20, 300, 2, 1], "segments");
    attention_case(&gpu, heads(2, 2, 64, 100), kinds, &[250, 30, 1, 300, 1], "segments and window");
}

#[test]
fn sequences_of_a_batch_do_not_mix() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let heads = heads(2, 2, 64, usize::MAX);
    let shape = CacheShape { layers: 0..1, kv_heads: 2, head: 64, keys: KvType::F16, values: KvType::F16 };
    let (mut random, width) = (Random(6), 6 * 64);
    let data = random.floats(5 * width);
    let mut rotation = Rotation { pairs: 2, cos: vec![0.8; 10], sin: vec![0.6; 10], ..Rotation::default() };
    let run = |rotation: &Rotation, ends: &[usize]| {
        let starts = [0].iter().chain(ends);
        let rows: Vec<_> = starts.zip(ends).map(|(start, end)| *start..*end).collect();
        let count = rows.last().unwrap().end;
        let (qkv, _) = both(&gpu, &data[..count * width], width);
        let mut caches: Vec<Cache> = rows.iter().map(|_| Cache::new(shape.clone())).collect();
        let mut parts = Vec::new();
        for (cache, rows) in caches.iter_mut().zip(&rows) {
            cache.reserve(&gpu, rows.len()).unwrap();
            parts.push(Part { cache, rows: rows.clone(), position: 0 });
        }
        let mut out = super::Buffer::default();
        gpu.attention(0, &heads, rotation, &qkv, &mut parts, &mut out).unwrap();
        gpu.read(&out).unwrap()
    };
    rotation.id = 1;
    let together = run(&rotation, &[3, 5]);
    assert_eq!(run(&rotation, &[3]), together[..3 * 128]);
    assert_ne!(run(&rotation, &[5])[3 * 128..], together[3 * 128..]);
}

#[test]
fn a_matrix_that_is_not_there_is_an_error() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let [weights, _] = matrices(TensorType::Q4_0, &[0.5; 64], 32);
    let (x, _) = both(&gpu, &[1.0; 32], 32);
    let error = gpu.linear(&weights, &x, &mut super::Buffer::default()).unwrap_err();
    assert!(error.to_string().contains("was not put on"), "{error}");
    let [odd, _] = matrices(TensorType::F32, &[0.5; 40], 20);
    assert!(gpu.upload(&odd, &mut |_| {}).unwrap_err().to_string().contains("multiple of 16"));
}

#[test]
fn a_lost_device_ends_in_an_error() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    let [weights, _] = matrices(TensorType::Q4_0, &[0.5; 64], 32);
    gpu.upload(&weights, &mut |_| {}).unwrap();
    let (x, _) = both(&gpu, &[1.0; 32], 32);
    let mut out = super::Buffer::default();
    gpu.linear(&weights, &x, &mut out).unwrap();
    gpu.device.raw.destroy();
    let error = gpu.read(&out).unwrap_err();
    assert!(matches!(error, crate::Error::Device(_)), "{error:?}");
    // And nothing after it panics either.
    let _ = gpu.linear(&weights, &x, &mut out);
    assert!(gpu.read(&out).is_err());
}

/// Whether what only some devices run is valid: it cannot give right sums on others.
#[test]
fn sums_by_subgroups_compile() {
    let Some(gpu) = gpu(u64::MAX) else { return };
    if !gpu.device.raw.features().contains(wgpu::Features::SUBGROUP) {
        eprintln!("skipped: this device has no subgroups");
        return;
    }
    let kernels = Kernels::new(PipelineCache::open(&gpu.adapter, &gpu.device), true);
    for ending in [Ending::Store, Ending::Add, Ending::Gate(Activation::Swiglu)] {
        for tokens in [1, 8] {
            kernels.get(&gpu.device, Kernel::MatVec { kind: TensorType::Q4_K, tokens, ending });
        }
    }
    gpu.device.fault.check().unwrap();
}
