//! The data types a GGUF tensor can have: numbers, names and sizes (`ggml_type` in ggml.h).

use std::fmt;

/// A tensor's data type. Discriminants are the numbers stored in the file.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// One row of the type table.
struct Row {
    kind: TensorType,
    name: &'static str,
    /// Elements a block holds; a tensor's row length is a multiple of it.
    block_elements: usize,
    /// Bytes a block takes in the file.
    block_bytes: usize,
}

const fn row(kind: TensorType, name: &'static str, block_elements: usize, block_bytes: usize) -> Row {
    Row { kind, name, block_elements, block_bytes }
}

/// Every type, ascending by number.
const TABLE: &[Row] = &[
    row(TensorType::F32, "F32", 1, 4),
    row(TensorType::F16, "F16", 1, 2),
    row(TensorType::Q4_0, "Q4_0", 32, 18),
    row(TensorType::Q4_1, "Q4_1", 32, 20),
    row(TensorType::Q5_0, "Q5_0", 32, 22),
    row(TensorType::Q5_1, "Q5_1", 32, 24),
    row(TensorType::Q8_0, "Q8_0", 32, 34),
    row(TensorType::Q2_K, "Q2_K", 256, 84),
    row(TensorType::Q3_K, "Q3_K", 256, 110),
    row(TensorType::Q4_K, "Q4_K", 256, 144),
    row(TensorType::Q5_K, "Q5_K", 256, 176),
    row(TensorType::Q6_K, "Q6_K", 256, 210),
    row(TensorType::IQ2_XXS, "IQ2_XXS", 256, 66),
    row(TensorType::IQ2_XS, "IQ2_XS", 256, 74),
    row(TensorType::IQ3_XXS, "IQ3_XXS", 256, 98),
    row(TensorType::IQ1_S, "IQ1_S", 256, 50),
    row(TensorType::IQ4_NL, "IQ4_NL", 32, 18),
    row(TensorType::IQ3_S, "IQ3_S", 256, 110),
    row(TensorType::IQ2_S, "IQ2_S", 256, 82),
    row(TensorType::IQ4_XS, "IQ4_XS", 256, 136),
    row(TensorType::I8, "I8", 1, 1),
    row(TensorType::I16, "I16", 1, 2),
    row(TensorType::I32, "I32", 1, 4),
    row(TensorType::I64, "I64", 1, 8),
    row(TensorType::F64, "F64", 1, 8),
    row(TensorType::IQ1_M, "IQ1_M", 256, 56),
    row(TensorType::BF16, "BF16", 1, 2),
    row(TensorType::TQ1_0, "TQ1_0", 256, 54),
    row(TensorType::TQ2_0, "TQ2_0", 256, 66),
    row(TensorType::MXFP4, "MXFP4", 32, 17),
    row(TensorType::NVFP4, "NVFP4", 64, 36),
    row(TensorType::Q1_0, "Q1_0", 128, 18),
    row(TensorType::Q2_0, "Q2_0", 64, 18),
];

impl TensorType {
    /// Every type, ascending by number.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TABLE.iter().map(|row| row.kind)
    }

    /// The type that `id` stands for in a file, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().map(|row| row.kind).find(|kind| kind.id() == id)
    }

    /// The type with this name, in any case ("q4_k", "Q4_K").
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.kind)
    }

    /// The number stored in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The field's own name for the type, such as "Q4_K".
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements in a block (1 for plain types). A tensor's row length is a multiple of it.
    pub fn block_elements(self) -> usize {
        self.row().block_elements
    }

    /// Bytes a block takes.
    pub fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Whether elements are packed in blocks with shared scales.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    /// Bytes of a row of `elements`; `None` if that is no whole number of blocks or overflows.
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        let row = self.row();
        elements
            .is_multiple_of(row.block_elements as u64)
            .then(|| (elements / row.block_elements as u64).checked_mul(row.block_bytes as u64))?
    }

    /// Bits an element takes on average.
    pub fn bits_per_element(self) -> f64 {
        let row = self.row();
        row.block_bytes as f64 * 8.0 / row.block_elements as f64
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.kind == self).expect("every variant has a table row (tested)")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_the_type() {
        for kind in TensorType::all() {
            assert_eq!(TensorType::from_id(kind.id()), Some(kind));
            assert_eq!(TensorType::from_name(&kind.name().to_lowercase()), Some(kind));
        }
        assert_eq!(TensorType::from_id(4), None, "Q4_2 was removed from the format");
        assert_eq!(TensorType::from_name("q9_k"), None);
    }

    #[test]
    fn row_bytes_is_checked() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(100), None);
        assert_eq!(TensorType::F32.row_bytes(u64::MAX), None);
    }
}
