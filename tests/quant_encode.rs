//! Encoded blocks and their decoded values against llama.cpp's, on every ISA of this machine.
//!
//! `scripts/quant_goldens.py` took the sums from llama.cpp and generates the same values.

use phi::gguf::TensorType;
use phi::quant::{self, Rows};
use phi::simd::lanes::Path;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Goldens {
    rows: usize,
    columns: usize,
    goldens: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    r#type: String,
    case: String,
    imatrix: String,
    encoded: String,
    decoded: String,
}

const CASES: [&str; 14] = [
    "normal", "small", "cubed", "zeros", "constant", "negative", "positive", "repeated", "outlier", "sparse",
    "tiny", "huge", "mixed", "bits",
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal: the sum of twelve uniform numbers, the same bits on every machine.
    fn bell(&mut self) -> f64 {
        let mut total = 0.0;
        for _ in 0..12 {
            total += (self.next() >> 11) as f64 * 2.0_f64.powi(-53);
        }
        total - 6.0
    }
}

fn values(case: &str, count: usize) -> Vec<f32> {
    let seed = 1000 + CASES.iter().position(|c| *c == case).expect("a known case") as u64;
    let (mut bells, mut numbers) = (Random(seed), Random(seed + 500));
    let value = |i: usize| {
        let (z, r) = (bells.bell(), numbers.next());
        let v = match case {
            "normal" => z,
            "small" => z * 2.0_f64.powi(-6),
            "cubed" => z * z * z,
            "zeros" => 0.0,
            "constant" => 0.375,
            "negative" => -z.abs() - 0.125,
            "positive" => z.abs() + 0.5,
            "repeated" => (z * 2.0).floor() / 2.0,
            "outlier" if i % 256 == 77 => [9.0, -9.0][(r & 1) as usize],
            "outlier" => z * 2.0_f64.powi(-7),
            "sparse" => [0.0, z][usize::from(r % 8 == 0)],
            "tiny" => z * 2.0_f64.powi(-140),
            "huge" => z * 2.0_f64.powi(120),
            "mixed" => z * 2.0_f64.powi((i / 16 % 40) as i32 - 20),
            "bits" => Some(f32::from_bits(r as u32)).filter(|v| v.is_finite()).unwrap_or(0.0).into(),
            _ => unreachable!("{case}"),
        };
        v as f32
    };
    (0..count).map(value).collect()
}

fn importance(kind: &str, columns: usize) -> Option<Vec<f32>> {
    let (mut bells, mut numbers) = (Random(7), Random(8));
    let weight = |_| {
        let (z, r) = (bells.bell(), numbers.next());
        match kind {
            "squares" => (z * z) as f32,
            _ if r % 4 == 0 => 0.0,
            _ => (z * z * z * z * 64.0) as f32,
        }
    };
    (kind != "none").then(|| (0..columns).map(weight).collect())
}

fn goldens() -> Goldens {
    let read = |text| serde_json::from_str::<Goldens>(text).expect("the goldens are JSON");
    let mut all = read(include_str!("golden/quant-encode.json"));
    let more = read(include_str!("golden/quant-encode-iq.json"));
    assert_eq!((all.rows, all.columns), (more.rows, more.columns));
    all.goldens.extend(more.goldens);
    all
}

fn sum(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn kind(name: &str) -> TensorType {
    TensorType::from_name(name).expect("a known type")
}

fn encoded(path: Path, kind: TensorType, rows: Rows<'_>) -> Vec<u8> {
    let bytes = kind.row_bytes(rows.values.len() as u64).expect("whole blocks");
    let mut out = vec![0xa5; bytes as usize];
    quant::encode_on(path, kind, rows, &mut out).expect("the lengths fit");
    out
}

#[test]
fn blocks_and_values_are_those_of_llama_cpp() {
    let Goldens { rows, columns, goldens } = goldens();
    let mut wrong = Vec::new();
    for golden in &goldens {
        let (kind, weights) = (kind(&golden.r#type), importance(&golden.imatrix, columns));
        let x = values(&golden.case, rows * columns);
        for path in Path::available() {
            let blocks = encoded(path, kind, Rows { values: &x, columns, weights: weights.as_deref() });
            let mut decoded = vec![f32::NAN; x.len()];
            quant::decode_on(path, kind, &blocks, &mut decoded).expect("the lengths fit");
            // Infinite scales make NaNs, whose sign and payload are each machine's own.
            let one_nan = |v: &f32| if v.is_nan() { 0x7fc0_0000_u32 } else { v.to_bits() };
            let bytes: Vec<u8> = decoded.iter().flat_map(|v| one_nan(v).to_le_bytes()).collect();
            // So are those that overflowing searches store as scales (llama-quantize refuses such tensors).
            let portable = cfg!(target_arch = "x86_64") || !decoded.iter().any(|v| v.is_nan());
            let encoded = if portable { sum(&blocks) } else { golden.encoded.clone() };
            for (what, got, want) in
                [("encoded", encoded, &golden.encoded), ("decoded", sum(&bytes), &golden.decoded)]
            {
                if got != *want {
                    let Golden { case, imatrix, .. } = golden;
                    wrong.push(format!("{kind} {case} imatrix={imatrix} {} {what}", path.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(goldens.len() > 400);
}

#[test]
fn any_split_into_rows_gives_the_same_bytes() {
    let (rows, columns) = (7, 512);
    let x = values("cubed", rows * columns);
    let weights = importance("squares", columns);
    for kind in TensorType::all().filter(|kind| quant::is_supported(*kind)) {
        for weights in [None, weights.as_deref()] {
            if weights.is_none() && quant::needs_weights(kind) {
                continue;
            }
            let whole = encoded(Path::best(), kind, Rows { values: &x, columns, weights });
            let parts = x.chunks(3 * columns);
            let parts =
                parts.flat_map(|values| encoded(Path::best(), kind, Rows { values, columns, weights }));
            assert_eq!(parts.collect::<Vec<u8>>(), whole, "{kind}");
        }
    }
}

#[test]
fn any_bytes_decode_the_same_on_every_isa() {
    let mut random = Random(99);
    for kind in TensorType::all().filter(|kind| quant::is_supported(*kind)) {
        let blocks: Vec<u8> = (0..37 * kind.block_bytes()).map(|_| random.next() as u8).collect();
        let mut want = vec![0.0; 37 * kind.block_elements()];
        quant::decode_on(Path::Scalar, kind, &blocks, &mut want).expect("the lengths fit");
        for path in Path::available() {
            let mut got = vec![0.0; want.len()];
            quant::decode_on(path, kind, &blocks, &mut got).expect("the lengths fit");
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(got.iter().zip(&want).all(same), "{kind} {}", path.name());
        }
    }
}

#[test]
fn every_half_precision_value_survives() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut floats = vec![0.0; 1 << 16];
    for path in Path::available() {
        for kind in [TensorType::F16, TensorType::BF16] {
            quant::decode_on(path, kind, &bytes, &mut floats).expect("the lengths fit");
            let back = encoded(path, kind, Rows { values: &floats, columns: 256, weights: None });
            for ((pair, got), v) in bytes.chunks(2).zip(back.chunks(2)).zip(&floats) {
                assert!(pair == got || v.is_nan(), "{kind} {} {pair:?} {got:?}", path.name());
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let x = vec![0.5; 512];
    let check = |columns, weights: Option<&[f32]>, bytes: usize| {
        quant::encode(TensorType::Q4_K, &x, columns, weights, &mut vec![0; bytes]).is_ok()
    };
    assert!(check(256, None, 288));
    assert!(check(256, Some(&x[..256]), 288));
    assert!(!check(0, None, 288), "no columns");
    assert!(!check(128, None, 288), "rows shorter than a block");
    assert!(!check(768, None, 288), "part of a row");
    assert!(!check(256, None, 287), "too few bytes");
    assert!(!check(256, None, 432), "too many bytes");
    assert!(!check(256, Some(&x), 288), "weights of another width");
    let mut out = vec![0.0; 256];
    assert!(quant::decode(TensorType::Q4_K, &[0; 144], &mut out).is_ok());
    assert!(quant::decode(TensorType::Q4_K, &[0; 143], &mut out).is_err());
    assert!(quant::decode(TensorType::Q4_K, &[0; 288], &mut out).is_err());
    assert!(quant::decode(TensorType::I32, &[0; 4], &mut out[..1]).is_err());
}
