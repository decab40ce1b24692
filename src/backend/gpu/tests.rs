//! Every kernel against the CPU's, on whatever device there is: a real one, or Mesa's software driver.

use super::kernels::{Activation, Ending, Kernel, Kernels, Matrices, Subgroups, Team};
use super::pipeline_cache::PipelineCache;
use super::{Adapter, Cache, CacheShape, Gpu};
use crate::Result;
use crate::backend::device_tests::{
    CPU, Random, Subject, TOLERANCE, assert_close, attention_case, both, heads, matrices, matrix,
    shared_tests,
};
use crate::backend::{Backend, Matrix};
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

impl Subject for Gpu {
    const TOLERANCE: f64 = TOLERANCE;

    fn put(&self, matrix: &Matrix) -> Result<()> {
        self.upload(matrix, &mut |_| {})
    }

    fn send(&self, data: &[f32], columns: usize) -> super::Buffer {
        let mut buffer = super::Buffer::default();
        self.write(data, data.len() / columns, columns, &mut buffer).unwrap();
        buffer
    }

    fn cache(&self, shape: CacheShape) -> Cache {
        Cache::new(shape)
    }

    fn room(&self, cache: &mut Cache, positions: usize) {
        cache.reserve(self, positions).unwrap();
    }
}

shared_tests!(gpu(u64::MAX));

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

/// A device that stands for one with matrix units.
fn emulating() -> Option<Gpu> {
    let adapter = Adapter::all(true).into_iter().next()?.emulating_matrices();
    let gpu = Gpu::open(&adapter).expect("the device opens");
    if !gpu.device.raw.features().contains(wgpu::Features::SHADER_F16) {
        eprintln!("skipped: this device has no half precision");
        return None;
    }
    assert!(gpu.kernels.subgroups.matrices == Matrices::Emulated, "the trial");
    Some(gpu)
}

#[test]
fn products_in_half_precision_equal_the_cpus() {
    let Some(gpu) = emulating() else { return };
    let mut random = Random(7);
    for kind in all_types() {
        let (rows, columns, tokens) = (70, 512, 130);
        let [weights, decoded] = matrices(kind, &random.floats(rows * columns), columns);
        gpu.upload(&weights, &mut |_| {}).unwrap();
        let (x, x_cpu) = both(&gpu, &random.floats(tokens * columns), columns);
        let (mut out, mut want) = Default::default();
        gpu.linear(&weights, &x, &mut out).unwrap();
        CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
        assert_close(&gpu.read(&out).unwrap(), &CPU.read(&want).unwrap(), kind.name());
    }
}

#[test]
fn halves_hold_weights_of_any_size() {
    let Some(gpu) = emulating() else { return };
    let mut random = Random(8);
    let (rows, columns, tokens) = (20, 64, 10);
    for size in [1e-30, 1e-9, 1e-3, 1e5, 1e15] {
        let values: Vec<f32> = random.floats(rows * columns).iter().map(|x| x * size).collect();
        let [weights, decoded] = matrices(TensorType::BF16, &values, columns);
        gpu.upload(&weights, &mut |_| {}).unwrap();
        for x_size in [1e-5, 1e5] {
            let x: Vec<f32> = random.floats(tokens * columns).iter().map(|x| x * x_size).collect();
            let (x, x_cpu) = both(&gpu, &x, columns);
            let (mut out, mut want) = Default::default();
            gpu.linear(&weights, &x, &mut out).unwrap();
            CPU.linear(&decoded, &x_cpu, &mut want).unwrap();
            let scaled =
                |values: Vec<f32>| -> Vec<f32> { values.iter().map(|x| x / size / x_size).collect() };
            let (ours, want) = (scaled(gpu.read(&out).unwrap()), scaled(CPU.read(&want).unwrap()));
            assert_close(&ours, &want, &format!("weights of {size:e}, inputs of {x_size:e}"));
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
fn attention_goes_over_several_segments() {
    // 256 positions of two heads of 64 elements in f16: the smallest segment.
    let Some(gpu) = gpu(2 * 64 * 2 * 256) else { return };
    let kinds = (KvType::F16, KvType::F16);
    attention_case(&gpu, heads(2, 2, 64, usize::MAX), kinds, &[250, 1, 20, 300, 2, 1], "segments");
    attention_case(&gpu, heads(2, 2, 64, 100), kinds, &[250, 30, 1, 300, 1], "segments and window");
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
    let subgroups = Subgroups { smallest: 32, fixed: true, matrices: Matrices::None };
    let kernels = Kernels::new(PipelineCache::open(&gpu.adapter, &gpu.device), subgroups);
    for ending in [Ending::Store, Ending::Add, Ending::Gate(Activation::Swiglu)] {
        for tokens in [1, 8] {
            let team = Team { threads: 128, lanes: 32, rows: 2 };
            kernels.get(&gpu.device, Kernel::MatVec { kind: TensorType::Q4_K, tokens, ending, team });
        }
    }
    gpu.device.fault.check().unwrap();
}
