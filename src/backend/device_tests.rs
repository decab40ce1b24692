//! What is asked of every kind of device alike, and what its tests are made of.

use std::sync::{Arc, LazyLock};

use super::cpu::{self, Cpu};
use super::{Backend, Gate, Largest, Matrix, Mixture};
use crate::gguf::{Gguf, Metadata, Output, TensorDecl, TensorType, Writer};
use crate::quant;

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

/// The rows as a matrix of type `kind`, and as one of what its blocks decode to.
pub fn matrices(kind: TensorType, values: &[f32], columns: usize) -> [Matrix; 2] {
    let rows = values.len() / columns;
    let mut bytes = vec![0; rows * kind.row_bytes(columns as u64).unwrap() as usize];
    let importance = vec![1.0; columns];
    let importance = quant::needs_weights(kind).then_some(&importance[..]);
    quant::encode(kind, values, columns, importance, &mut bytes).unwrap();
    let mut decoded = vec![0.0; values.len()];
    quant::decode(kind, &bytes, &mut decoded).unwrap();
    let plain: Vec<u8> = decoded.iter().flat_map(|x| x.to_le_bytes()).collect();
    [matrix(kind, rows, columns, &bytes), matrix(TensorType::F32, rows, columns, &plain)]
}

pub fn matrix(kind: TensorType, rows: usize, columns: usize, bytes: &[u8]) -> Matrix {
    let tensor = TensorDecl { name: "w".to_owned(), shape: vec![columns as u64, rows as u64], kind };
    let mut writer = Writer::in_memory("test", &Metadata::new(), &[tensor]).unwrap();
    writer.write(bytes).unwrap();
    let Output::Memory(image) = writer.finish().unwrap() else { panic!("it is in memory") };
    Matrix::new(Arc::new(Gguf::from_bytes(image, "test").unwrap()), 0)
}

/// A device, and how things get there.
pub struct Subject<'a, B: Backend> {
    pub device: &'a B,
    /// Elements and columns.
    pub write: &'a dyn Fn(&[f32], usize) -> B::Buffer,
    pub upload: &'a dyn Fn(&Matrix),
    /// Relative error of several products of quantized weights in a row.
    pub tolerance: f64,
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

pub fn the_largest_elements_are_found<B: Backend>(subject: &Subject<'_, B>) {
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
        let x = (subject.write)(&data, columns);
        for count in [1, 2, 40, 255, 256] {
            let want: Vec<Largest> = data.chunks_exact(columns).map(|row| largest(row, count)).collect();
            let found = subject.device.largest(&x, count).unwrap().expect("so few are looked for there");
            assert_eq!(bits(&found), bits(&want), "{count} of {rows} rows of {columns}");
        }
        assert_eq!(subject.device.largest(&x, 257).unwrap(), None, "the host is as fast");
        assert_eq!(subject.device.largest(&x, columns).unwrap(), None, "all are wanted");
    }
    let nothing = [f32::NEG_INFINITY, f32::NEG_INFINITY, -0.0, 0.0].repeat(40);
    let found = subject.device.largest(&(subject.write)(&nothing, 160), 90).unwrap().unwrap();
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

pub fn experts_are_chosen_on_the_device<B: Backend>(subject: &Subject<'_, B>) {
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
        gate.iter().chain(&up).chain(others).for_each(subject.upload);
        for rows in [0, 1, 3, 8, 9] {
            let data = random.floats(rows.max(1) * hidden);
            let mut scores = random.floats(rows.max(1) * EXPERTS);
            // Close ones, equal ones, and none above zero.
            scores[..EXPERTS].copy_from_slice(&[0.5, 0.51, -1.0, 0.49, 0.3]);
            if rows > 2 {
                scores[EXPERTS..3 * EXPERTS]
                    .copy_from_slice(&[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -1.01, -1.0, -7.0, -1.05]);
            }
            let (x, from) = ((subject.write)(&data, hidden), (subject.write)(&scores, EXPERTS));
            let mut out = B::Buffer::default();
            let done = subject.device.mixture(&mixture, &from, &x, &mut out).unwrap();
            if rows == 0 {
                assert!(!done, "an expert is missing");
                (subject.upload)(last);
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
            let difference = difference(&subject.device.read(&out).unwrap(), &want);
            let most = if kind.is_quantized() { subject.tolerance } else { TOLERANCE };
            assert!(difference <= most, "{kind}, {rows} rows: {difference:e}");
        }
        // They are matrices like others, too.
        let data = random.floats(hidden);
        let (x, mut x_cpu) = ((subject.write)(&data, hidden), cpu::Buffer::default());
        x_cpu.fill(&data, hidden);
        let (mut out, mut want) = (B::Buffer::default(), cpu::Buffer::default());
        subject.device.linear(&up[3], &x, &mut out).unwrap();
        CPU.linear(&up_plain[3], &x_cpu, &mut want).unwrap();
        let difference = difference(&subject.device.read(&out).unwrap(), &CPU.read(&want).unwrap());
        assert!(difference <= subject.tolerance, "{kind}: {difference:e}");
    }
}
