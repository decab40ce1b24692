//! Matrices for tests.

use std::sync::Arc;

use super::Matrix;
use crate::gguf::{Gguf, Metadata, Output, TensorDecl, TensorType, Writer};
use crate::quant;

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
