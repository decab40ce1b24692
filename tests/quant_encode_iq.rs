//! What the codebook types do with values that make the reference stop, and without an importance matrix.
//!
//! Their bytes are compared with the reference's in `quant_encode.rs`.

use phi::gguf::TensorType;
use phi::quant::{self, Rows};
use phi::simd::lanes::Path;

const COLUMNS: usize = 512;

fn quantized() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|kind| kind.is_quantized() && quant::is_supported(*kind))
}

#[test]
fn values_that_stop_the_reference_are_encoded_without_a_panic() {
    let wave = |i: usize| (i as f32 * 0.37).sin();
    let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e30, 1e-45, -0.0, -1e-39];
    let mut cases: Vec<Vec<f32>> = hostile.iter().map(|&v| vec![v; 2 * COLUMNS]).collect();
    for &v in &hostile {
        for every in [1, 7, 31, 257] {
            cases.push((0..2 * COLUMNS).map(|i| if i % every == 0 { v } else { wave(i) }).collect());
        }
    }
    let importance: Vec<f32> = (0..COLUMNS).map(|i| wave(i).abs()).collect();
    let weights = [vec![0.0; COLUMNS], vec![1e30; COLUMNS], vec![f32::NAN; COLUMNS], importance];
    for kind in quantized() {
        let mut blocks = vec![0; kind.row_bytes(2 * COLUMNS as u64).expect("whole blocks") as usize];
        let mut back = vec![0.0; 2 * COLUMNS];
        for values in &cases {
            for weights in weights.iter().map(Some).chain([None]) {
                let rows = Rows { values, columns: COLUMNS, weights: weights.map(|w| &w[..]) };
                if weights.is_none() && quant::needs_weights(kind) {
                    continue;
                }
                for path in Path::available() {
                    quant::encode_on(path, kind, rows, &mut blocks).expect("the lengths fit");
                    quant::decode_on(path, kind, &blocks, &mut back).expect("the lengths fit");
                }
            }
        }
    }
}

#[test]
fn types_that_need_an_importance_matrix_say_so() {
    let needing: Vec<TensorType> = TensorType::all().filter(|kind| quant::needs_weights(*kind)).collect();
    assert_eq!(needing, [TensorType::IQ2_XXS, TensorType::IQ2_XS, TensorType::IQ1_S]);
    for kind in needing {
        let mut blocks = vec![0; kind.row_bytes(256).expect("whole blocks") as usize];
        let refused = quant::encode(kind, &[0.5; 256], 256, None, &mut blocks).expect_err("no weights");
        assert!(matches!(refused, phi::Error::Usage(_)), "{refused:?}");
        assert!(refused.to_string().contains(kind.name()), "{refused}");
    }
}

#[test]
fn every_quantized_type_of_the_format_is_here() {
    let absent: Vec<TensorType> =
        TensorType::all().filter(|kind| kind.is_quantized() && !quant::is_supported(*kind)).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn what_is_encoded_resembles_what_it_was() {
    let values: Vec<f32> =
        (0..4 * COLUMNS).map(|i| (i as f32 * 0.61).sin() * (i as f32 * 0.013).cos()).collect();
    let ones = vec![1.0; COLUMNS];
    for kind in quantized() {
        let rows = Rows { values: &values, columns: COLUMNS, weights: Some(&ones) };
        let mut blocks = vec![0; kind.row_bytes(values.len() as u64).expect("whole blocks") as usize];
        let mut back = vec![0.0; values.len()];
        quant::encode_on(Path::best(), kind, rows, &mut blocks).expect("the lengths fit");
        quant::decode(kind, &blocks, &mut back).expect("the lengths fit");
        let square = |v: f32| f64::from(v) * f64::from(v);
        let lost: f64 = values.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
        let all: f64 = values.iter().map(|&v| square(v)).sum();
        // Half an amplitude lost is what one bit an element may do.
        assert!(lost / all < 0.6, "{kind} lost {:.3}", lost / all);
    }
}
