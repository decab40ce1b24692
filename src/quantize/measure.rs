//! What quantization changes: squared differences between values and what is left of them.

use super::Planned;
use crate::gguf::TensorType;
use crate::{Result, quant};

/// Sums over the elements measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Squared differences, and squares of the original values.
    error: f64,
    signal: f64,
    /// The same with each column weighted by its importance; 0 without an importance matrix.
    weighted_error: f64,
    weighted_signal: f64,
}

/// Sums run in this many lanes, which the compiler makes vector code of.
const LANES: usize = 16;

impl ErrorSums {
    /// Adds one row: `values` became `decoded`; `weights` has the columns' importance. All of one length.
    pub fn add_row(&mut self, values: &[f32], decoded: &[f32], weights: Option<&[f32]>) {
        let (error, signal) = sums(values, decoded, |_| 1.0);
        self.error += error;
        self.signal += signal;
        if let Some(weights) = weights {
            let (error, signal) = sums(values, decoded, |column| weights.get(column).copied().unwrap_or(0.0));
            self.weighted_error += error;
            self.weighted_signal += signal;
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.error += other.error;
        self.signal += other.signal;
        self.weighted_error += other.weighted_error;
        self.weighted_signal += other.weighted_signal;
    }

    /// Root of the squared error relative to the values' squares: 0.01 is an error of 1 %.
    pub fn relative(&self) -> Option<f64> {
        (self.signal > 0.0).then(|| (self.error / self.signal).sqrt())
    }

    /// The same, with columns weighted by their importance; `None` without an importance matrix.
    pub fn relative_weighted(&self) -> Option<f64> {
        (self.weighted_signal > 0.0).then(|| (self.weighted_error / self.weighted_signal).sqrt())
    }

    /// Squared relative error, weighted where weights are known: the noise a matrix adds to its output.
    pub fn noise(&self) -> f64 {
        let root = self.relative_weighted().or(self.relative()).unwrap_or(0.0);
        root * root
    }
}

/// Weighted sums of squared differences and of squared values.
fn sums(values: &[f32], decoded: &[f32], weight: impl Fn(usize) -> f32) -> (f64, f64) {
    let (mut error, mut signal) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for (at, (values, decoded)) in values.chunks(LANES).zip(decoded.chunks(LANES)).enumerate() {
        for (lane, (value, decoded)) in values.iter().zip(decoded).enumerate() {
            let weight = weight(at * LANES + lane);
            error[lane] += weight * (value - decoded) * (value - decoded);
            signal[lane] += weight * value * value;
        }
    }
    let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum();
    (total(error), total(signal))
}

/// Rows of a tensor, spread evenly over it.
pub(super) struct Sample<'a> {
    /// [rows, columns].
    pub values: &'a [f32],
    /// The matrix (expert) that each row belongs to.
    pub matrices: Vec<usize>,
}

impl Sample<'_> {
    /// The noise of the sample as `kind`; `weights` is [matrices, columns].
    pub fn noise(
        &self,
        tensor: &Planned,
        kind: TensorType,
        weights: Option<&[f32]>,
        encoded: &mut Vec<u8>,
    ) -> Result<f64> {
        let columns = tensor.columns() as usize;
        let row_bytes = kind.row_bytes(tensor.columns()).unwrap_or(0) as usize;
        encoded.resize(row_bytes, 0);
        let mut decoded = vec![0.0; columns];
        let mut sums = ErrorSums::default();
        for (values, matrix) in self.values.chunks_exact(columns).zip(&self.matrices) {
            let weights = weights.and_then(|all| all.get(matrix * columns..(matrix + 1) * columns));
            quant::encode(kind, values, columns, weights, encoded)?;
            quant::decode(kind, encoded, &mut decoded)?;
            sums.add_row(values, &decoded, weights);
        }
        Ok(sums.noise())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_values() {
        let mut sums = ErrorSums::default();
        assert_eq!(sums.relative(), None);
        sums.add_row(&[3.0, 4.0], &[3.0, 3.5], None);
        assert!((sums.relative().unwrap() - 0.1).abs() < 1e-9);
        assert_eq!(sums.relative_weighted(), None);
        let mut weighted = ErrorSums::default();
        weighted.add_row(&[3.0, 4.0], &[3.0, 3.5], Some(&[1.0, 0.0]));
        assert_eq!(weighted.relative_weighted(), Some(0.0));
        weighted.merge(&sums);
        assert!((weighted.relative().unwrap() - 0.1).abs() < 1e-9);
    }
}
