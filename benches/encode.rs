//! Encoding speed of every type, on every ISA of this machine; the bytes are compared with the scalar path's first.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use phi::gguf::TensorType;
use phi::quant::{self, Rows};
use phi::simd::lanes::Path;

const ROWS: usize = 16;
const COLUMNS: usize = 3072;

/// Weights as a model has them: roughly normal, small, rounded to half precision.
fn values() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let bell = |_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    (0..ROWS * COLUMNS)
        .map(bell)
        .map(|z| quant::float::half_value(quant::float::half_bits(z * 0.02)))
        .collect()
}

fn encode(c: &mut Criterion) {
    let x = values();
    let importance: Vec<f32> = x[..COLUMNS].iter().map(|v| v * v).collect();
    for kind in TensorType::all().filter(|kind| quant::is_supported(*kind)) {
        for (label, weights) in [("plain", None), ("imatrix", Some(&importance[..]))] {
            if weights.is_none() && quant::needs_weights(kind) || weights.is_some() && !kind.is_quantized() {
                continue;
            }
            let rows = Rows { values: &x, columns: COLUMNS, weights };
            let bytes = kind.row_bytes(x.len() as u64).expect("whole blocks") as usize;
            let mut want = vec![0; bytes];
            quant::encode_on(Path::Scalar, kind, rows, &mut want).expect("the lengths fit");
            let mut group = c.benchmark_group(format!("encode/{kind}/{label}"));
            group.throughput(Throughput::Elements(x.len() as u64)).sample_size(10);
            for path in Path::available() {
                let mut got = vec![0; bytes];
                quant::encode_on(path, kind, rows, &mut got).expect("the lengths fit");
                assert!(got == want, "{kind} on {} differs from the scalar path", path.name());
                group.bench_function(path.name(), |b| {
                    b.iter(|| quant::encode_on(path, kind, black_box(rows), &mut got));
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
