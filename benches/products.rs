//! Quantized matrix products, for one token (memory-bound) and for a prompt (compute-bound). Each case
//! checks first that both kernels give the same result to the bit.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use phi::gguf::TensorType;
use phi::kernel::Pool;
use phi::kernel::matmul::{PackedTokens, Panel, PanelProducts, panel_rows};
use phi::kernel::matvec::RowProducts;
use phi::kernel::{Activations, SharedMut};
use phi::quant;
use phi::quant::unpack::{Q4_0, Q4K, Q5K, Q6K, Q8_0, Unpack};
use phi::simd::Level;

/// Columns of Phi-3.5-mini's matrices.
const COLUMNS: usize = 3072;
/// Tokens of a prompt's batch.
const TOKENS: usize = 256;

fn wave(length: usize) -> Vec<f32> {
    (0..length).map(|i| ((i % 8191) as f32 * 0.37).sin() * 0.05).collect()
}

struct Case {
    weights: Vec<u8>,
    row_bytes: usize,
    tokens: Activations,
}

impl Case {
    fn new<F: Unpack>(format: F, kind: TensorType, rows: usize, tokens: usize) -> Self {
        let row_bytes = kind.row_bytes(COLUMNS as u64).expect("whole blocks") as usize;
        let mut weights = vec![0; rows * row_bytes];
        quant::encode(kind, &wave(rows * COLUMNS), COLUMNS, None, &mut weights)
            .expect("the type can be encoded");
        let mut activations = Activations::default();
        activations.quantize(format, &wave(tokens * COLUMNS), COLUMNS);
        activations.arrange(format, Level::current(), &Pool::new(1));
        Self { weights, row_bytes, tokens: activations }
    }

    fn matvec<F: Unpack>(&self, format: F, out: &mut [f32]) {
        let rows = self.weights.len() / self.row_bytes;
        let mut out: Vec<&mut [f32]> = out.chunks_mut(rows).collect();
        let (rows, row_bytes) = (&self.weights[..], self.row_bytes);
        RowProducts { format, rows, row_bytes, next: rows, tokens: &self.tokens, out: &mut out }
            .compute(Level::current());
    }

    fn matmul<F: Unpack>(&self, format: F, packed: &PackedTokens, panel: &mut Panel, out: &mut [f32]) {
        let level = Level::current();
        let stride = self.weights.len() / self.row_bytes;
        let shared = SharedMut::new(out);
        let each = panel_rows(level, packed);
        for (i, rows) in self.weights.chunks(each * self.row_bytes).enumerate() {
            PanelProducts {
                format,
                rows,
                row_bytes: self.row_bytes,
                columns: COLUMNS,
                next: &[],
                tokens: packed,
                panel,
                out: &shared,
                out_stride: stride,
                first: i * each,
            }
            .compute(level);
        }
    }
}

fn bench<F: Unpack>(criterion: &mut Criterion, format: F, kind: TensorType) {
    let (mut packed, mut panel) = (PackedTokens::default(), Panel::default());
    let case = Case::new(format, kind, 64, TOKENS);
    packed.pack(format, Level::current(), &case.tokens, &Pool::new(1));
    let (mut many, mut few) = (vec![0.0; 64 * TOKENS], vec![0.0; 64 * TOKENS]);
    case.matmul(format, &packed, &mut panel, &mut many);
    case.matvec(format, &mut few);
    assert!(many == few, "the two kernels differ for {kind}");

    let mut group = criterion.benchmark_group("matmul");
    group.throughput(Throughput::Elements((64 * TOKENS * COLUMNS) as u64));
    group.bench_function(kind.name(), |b| {
        b.iter(|| case.matmul(format, &packed, &mut panel, black_box(&mut many)))
    });
    group.finish();

    // Larger than the caches, as a model is.
    let case = Case::new(format, kind, 48 * 1024, 1);
    let mut out = vec![0.0; 48 * 1024];
    let mut group = criterion.benchmark_group("matvec");
    group.throughput(Throughput::Bytes(case.weights.len() as u64));
    group.bench_function(kind.name(), |b| b.iter(|| case.matvec(format, black_box(&mut out))));
    group.finish();
}

fn all(criterion: &mut Criterion) {
    bench(criterion, Q4K, TensorType::Q4_K);
    bench(criterion, Q5K, TensorType::Q5_K);
    bench(criterion, Q6K, TensorType::Q6_K);
    bench(criterion, Q4_0, TensorType::Q4_0);
    bench(criterion, Q8_0, TensorType::Q8_0);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = all
}
criterion_main!(benches);
