//! What a whole file is quantized to: `llama_ftype` in llama.h, and the names llama-quantize accepts.

use std::fmt;

use crate::gguf::TensorType;

/// The recipe a file is made by. Discriminants are the numbers stored as `general.file_type`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum FileType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 7,
    Q5_0 = 8,
    Q5_1 = 9,
    Q2_K = 10,
    Q3_K_S = 11,
    Q3_K_M = 12,
    Q3_K_L = 13,
    Q4_K_S = 14,
    Q4_K_M = 15,
    Q5_K_S = 16,
    Q5_K_M = 17,
    Q6_K = 18,
    IQ2_XXS = 19,
    IQ2_XS = 20,
    Q2_K_S = 21,
    IQ3_XS = 22,
    IQ3_XXS = 23,
    IQ1_S = 24,
    IQ4_NL = 25,
    IQ3_S = 26,
    IQ3_M = 27,
    IQ2_S = 28,
    IQ2_M = 29,
    IQ4_XS = 30,
    IQ1_M = 31,
    BF16 = 32,
    TQ1_0 = 36,
    TQ2_0 = 37,
    MXFP4_MOE = 38,
    Q1_0 = 40,
    Q2_0 = 41,
}

/// One row of the file type table.
struct Row {
    file_type: FileType,
    name: &'static str,
    /// What tensors become where no rule of the recipe says otherwise.
    base: TensorType,
    /// For the list of types in the help text.
    about: &'static str,
}

const fn row(file_type: FileType, name: &'static str, base: TensorType, about: &'static str) -> Row {
    Row { file_type, name, base, about }
}

/// Every recipe, smallest files first.
const TABLE: &[Row] = {
    use FileType as F;
    use TensorType as T;
    &[
        row(F::Q1_0, "Q1_0", T::Q1_0, "1.1 bits: signs only, groups of 128"),
        row(F::IQ1_S, "IQ1_S", T::IQ1_S, "1.6 bits, needs an importance matrix"),
        row(F::TQ1_0, "TQ1_0", T::TQ1_0, "1.7 bits, for models trained with ternary weights"),
        row(F::IQ1_M, "IQ1_M", T::IQ1_M, "1.8 bits, needs an importance matrix"),
        row(F::TQ2_0, "TQ2_0", T::TQ2_0, "2.1 bits, for models trained with ternary weights"),
        row(F::IQ2_XXS, "IQ2_XXS", T::IQ2_XXS, "2.1 bits, needs an importance matrix"),
        row(F::Q2_0, "Q2_0", T::Q2_0, "2.3 bits, groups of 64"),
        row(F::IQ2_XS, "IQ2_XS", T::IQ2_XS, "2.3 bits, needs an importance matrix"),
        row(F::IQ2_S, "IQ2_S", T::IQ2_XS, "2.5 bits, needs an importance matrix"),
        row(F::Q2_K_S, "Q2_K_S", T::Q2_K, "2.6 bits, needs an importance matrix"),
        row(F::IQ2_M, "IQ2_M", T::IQ2_S, "2.7 bits, needs an importance matrix"),
        row(F::Q2_K, "Q2_K", T::Q2_K, "3.0 bits, mixed with Q3_K"),
        row(F::IQ3_XXS, "IQ3_XXS", T::IQ3_XXS, "3.1 bits, needs an importance matrix"),
        row(F::IQ3_XS, "IQ3_XS", T::IQ3_S, "3.3 bits, needs an importance matrix"),
        row(F::Q3_K_S, "Q3_K_S", T::Q3_K, "3.4 bits"),
        row(F::IQ3_S, "IQ3_S", T::IQ3_S, "3.4 bits"),
        row(F::IQ3_M, "IQ3_M", T::IQ3_S, "3.7 bits, mixed with Q4_K"),
        row(F::Q3_K_M, "Q3_K_M", T::Q3_K, "3.9 bits, mixed with Q4_K and Q5_K"),
        row(F::Q3_K_L, "Q3_K_L", T::Q3_K, "4.3 bits, mixed with Q5_K"),
        row(F::IQ4_XS, "IQ4_XS", T::IQ4_XS, "4.3 bits, non-linear levels"),
        row(F::MXFP4_MOE, "MXFP4_MOE", T::MXFP4, "4.3 bits for experts, Q8_0 for all else"),
        row(F::Q4_0, "Q4_0", T::Q4_0, "4.5 bits"),
        row(F::IQ4_NL, "IQ4_NL", T::IQ4_NL, "4.5 bits, non-linear levels"),
        row(F::Q4_K_S, "Q4_K_S", T::Q4_K, "4.6 bits"),
        row(F::Q4_K_M, "Q4_K_M", T::Q4_K, "4.8 bits, mixed with Q5_K and Q6_K: a good first choice"),
        row(F::Q4_1, "Q4_1", T::Q4_1, "5.0 bits"),
        row(F::Q5_0, "Q5_0", T::Q5_0, "5.5 bits"),
        row(F::Q5_K_S, "Q5_K_S", T::Q5_K, "5.5 bits"),
        row(F::Q5_K_M, "Q5_K_M", T::Q5_K, "5.7 bits, mixed with Q6_K"),
        row(F::Q5_1, "Q5_1", T::Q5_1, "6.0 bits"),
        row(F::Q6_K, "Q6_K", T::Q6_K, "6.6 bits"),
        row(F::Q8_0, "Q8_0", T::Q8_0, "8.5 bits, next to lossless"),
        row(F::F16, "F16", T::F16, "16 bits"),
        row(F::BF16, "BF16", T::BF16, "16 bits, the range of F32"),
        row(F::F32, "F32", T::F32, "32 bits"),
    ]
};

/// Short names that stand for the medium mix of their family.
const ALIASES: &[(&str, FileType)] =
    &[("Q3_K", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("Q5_K", FileType::Q5_K_M)];

impl FileType {
    /// Every recipe, smallest files first.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.file_type)
    }

    /// The recipe with this number, if it is one that can be asked for.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|file_type| file_type.id() == id)
    }

    /// The recipe meant by a name, an alias or a number, in any case: "Q4_K_M", "q4_k", "15".
    pub fn from_name(name: &str) -> Option<Self> {
        let named = TABLE.iter().map(|row| (row.name, row.file_type)).chain(ALIASES.iter().copied());
        named
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, file_type)| file_type)
            .or_else(|| Self::from_id(name.parse().ok()?))
    }

    /// The number stored as `general.file_type`.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The recipe's own name, such as "Q4_K_M".
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What tensors become where no rule of the recipe says otherwise.
    pub fn base(self) -> TensorType {
        self.row().base
    }

    /// A few words for a list of types: bits an element and what it is for.
    pub fn about(self) -> &'static str {
        self.row().about
    }

    /// The `general.file_type` of a file that does not say it itself: that of its most frequent tensor
    /// type, with the bit set that marks a guess. `kinds` come in the order of the file's tensors.
    pub fn guess(kinds: impl Iterator<Item = TensorType>) -> u32 {
        const GUESSED: u32 = 1024;
        let mut counts = std::collections::BTreeMap::<TensorType, usize>::new();
        let mut most = (0, TensorType::F32);
        for kind in kinds {
            let count = counts.entry(kind).or_default();
            *count += 1;
            if *count > most.0 {
                most = (*count, kind);
            }
        }
        let guess = match most.1 {
            TensorType::Q3_K => Self::Q3_K_M.id(),
            TensorType::Q4_K => Self::Q4_K_M.id(),
            TensorType::Q5_K => Self::Q5_K_M.id(),
            TensorType::NVFP4 => 39,
            TensorType::MXFP4 => Self::F32.id(), // as llama.cpp, which has no guess for it
            kind => Self::from_name(kind.name()).map_or(Self::F32.id(), Self::id),
        };
        guess | GUESSED
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.file_type == self).expect("every variant has a table row (tested)")
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_numbers_in_any_case() {
        for file_type in FileType::all() {
            assert_eq!(FileType::from_name(file_type.name()), Some(file_type));
            assert_eq!(FileType::from_name(&file_type.name().to_lowercase()), Some(file_type));
            assert_eq!(FileType::from_name(&file_type.id().to_string()), Some(file_type));
        }
        assert_eq!(FileType::from_name("q4_k"), Some(FileType::Q4_K_M));
        assert_eq!(FileType::from_name("Q3_K"), Some(FileType::Q3_K_M));
        assert_eq!(FileType::from_name("q5_K"), Some(FileType::Q5_K_M));
        for unknown in ["", "4", "5", "33", "39", "1024", "-1", "2.gguf", "Q9_K", "copy"] {
            assert_eq!(FileType::from_name(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn guesses_follow_the_commonest_tensor_type() {
        use TensorType as T;
        assert_eq!(FileType::guess([T::F32, T::Q4_K, T::Q4_K].into_iter()), 15 | 1024);
        assert_eq!(FileType::guess([T::F32, T::F16].into_iter()), 1024, "the first of equals");
        assert_eq!(FileType::guess(std::iter::empty()), 1024);
    }
}
