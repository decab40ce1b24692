//! Every kernel against the CPU's: on a device, or on one that emulation.rs makes up.

mod emulation;
mod model;

use super::modules::Module;
use super::{Adapter, Cache, CacheShape, Cuda};
use crate::Result;
use crate::backend::cpu;
use crate::backend::device_tests::{
    CPU, Random, Subject, assert_close, both, difference, heads, matrices, shared_tests,
};
use crate::backend::{Backend, Matrix, Part, Rotation, Vector};
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

impl Subject for Cuda {
    const TOLERANCE: f64 = 3.0 * TOLERANCE_INT8;

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

    fn seen(x: Vec<f32>) -> Vec<f32> {
        rounded(&x)
    }
}

shared_tests!(cuda());

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
                // Floats are not rounded, and halves are exact enough.
                if !kind.is_quantized() || tokens > 8 {
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
        assert!(normed.is_rounded);
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
        // A graph is of launches that came before; at 128, attention begins to take one more kernel.
        let x = random.floats(64);
        let replays = cuda.context.launches().replays;
        let got = token(&cuda, &weights, &mut cache, position, &x);
        assert_eq!(got, token(&plain, &weights, &mut plain_cache, position, &x), "position {position}");
        let is_graph = cuda.context.launches().replays > replays;
        let may_be = cuda.context.driver.graphs.is_some();
        assert_eq!(is_graph, may_be && ![0, 128].contains(&position), "position {position}");
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
