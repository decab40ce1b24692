//! Block formats: one file a family, with layout, encoding, scalar decoding and SIMD unpacking; and the recipes.

mod batch;
pub mod extra;
pub mod float;
pub mod fp4;
pub(crate) mod grids;
pub mod iq1;
mod iq1_fit;
pub mod iq2;
pub mod iq3;
pub mod iq4;
pub mod k;
mod lattice;
mod lattice_fit;
pub mod legacy;
pub mod low_bit;
pub mod recipe;
mod search;
pub mod ternary;
pub mod unpack;
pub mod validity;

use crate::gguf::TensorType;
use crate::simd::lanes::{Kernel, Lanes, Path};
use crate::{Error, Result};

/// Whole rows to encode.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// [rows, columns], row-major; a whole number of rows.
    pub values: &'a [f32],
    /// Row length, a multiple of the format's block; not 0.
    pub columns: usize,
    /// Importance of each column (an imatrix row), [columns].
    pub weights: Option<&'a [f32]>,
}

/// A block format.
///
/// Callers have checked every length: `encode` gets room for exactly the blocks of `rows`, `decode` whole
/// blocks and exactly their elements. Both are compiled once an ISA; code that has no use for `lanes` ignores it.
/// Mark both `#[inline(always)]`, and what they call where vector code matters.
pub trait Block {
    const KIND: TensorType;
    /// Whether encoding is impossible without [`Rows::weights`].
    const NEEDS_WEIGHTS: bool = false;

    /// Encodes exactly as the reference quantizer does on x86-64 (no fused multiply-add).
    fn encode<L: Lanes>(lanes: L, rows: Rows<'_>, dst: &mut [u8]);

    /// Exact values of whole blocks; any bytes decode to something.
    fn decode<L: Lanes>(lanes: L, src: &[u8], dst: &mut [f32]);
}

/// One row of the table of formats.
#[derive(Clone, Copy)]
pub struct Codec {
    kind: TensorType,
    needs_weights: bool,
    encode: fn(Path, Rows<'_>, &mut [u8]),
    decode: fn(Path, &[u8], &mut [f32]),
}

/// The table row of `B`.
pub const fn codec<B: Block>() -> Codec {
    Codec { kind: B::KIND, needs_weights: B::NEEDS_WEIGHTS, encode: run_encode::<B>, decode: run_decode::<B> }
}

/// The plain formats; [`extra::TABLE`] has the rest.
const TABLE: &[Codec] = &[
    codec::<float::F32>(),
    codec::<float::F16>(),
    codec::<float::BF16>(),
    codec::<legacy::Q4_0>(),
    codec::<legacy::Q4_1>(),
    codec::<legacy::Q5_0>(),
    codec::<legacy::Q5_1>(),
    codec::<legacy::Q8_0>(),
    codec::<k::Q2_K>(),
    codec::<k::Q3_K>(),
    codec::<k::Q4_K>(),
    codec::<k::Q5_K>(),
    codec::<k::Q6_K>(),
];

fn find(kind: TensorType) -> Result<&'static Codec> {
    let found = TABLE.iter().chain(extra::TABLE).find(|codec| codec.kind == kind);
    found.ok_or_else(|| Error::Unsupported(format!("{kind} tensors cannot be quantized or dequantized")))
}

/// Whether [`encode`] and [`decode`] know the type.
pub fn is_supported(kind: TensorType) -> bool {
    find(kind).is_ok()
}

/// Whether a tensor can be encoded as `kind` only with an importance matrix.
pub fn needs_weights(kind: TensorType) -> bool {
    find(kind).is_ok_and(|codec| codec.needs_weights)
}

/// Encodes whole rows [src.len() / columns, columns] as `kind`, byte for byte as llama-quantize does.
///
/// `weights` is the importance of each column, from an imatrix. `dst` takes exactly the rows' bytes.
/// Rows are independent of each other, so any split of a tensor over threads gives the same bytes.
///
/// # Errors
/// A type without an encoder, lengths that do not fit together, missing weights for a type that needs them.
pub fn encode(
    kind: TensorType,
    src: &[f32],
    columns: usize,
    weights: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<()> {
    encode_on(Path::best(), kind, Rows { values: src, columns, weights }, dst)
}

/// [`encode`] with the instructions of `path`: the bytes are the same on every one.
pub fn encode_on(path: Path, kind: TensorType, rows: Rows<'_>, dst: &mut [u8]) -> Result<()> {
    let codec = find(kind)?;
    let Rows { values, columns, weights } = rows;
    let row_bytes = kind.row_bytes(columns as u64).filter(|_| columns > 0).ok_or_else(|| {
        let block = kind.block_elements();
        Error::Usage(format!("rows of {columns} elements cannot be {kind}: its blocks hold {block}"))
    })?;
    let count = values.len() / columns;
    if !values.len().is_multiple_of(columns)
        || (count as u64).checked_mul(row_bytes) != Some(dst.len() as u64)
    {
        return Err(Error::Usage(format!(
            "{} elements in rows of {columns} do not fill {} bytes of {kind}",
            values.len(),
            dst.len()
        )));
    }
    match weights {
        Some(weights) if weights.len() != columns => Err(Error::Usage(format!(
            "the importance matrix has {} columns where the tensor has {columns}",
            weights.len()
        ))),
        None if codec.needs_weights => {
            Err(Error::Usage(format!("{kind} can only be made with an importance matrix (--imatrix)")))
        }
        _ => {
            (codec.encode)(path, rows, dst);
            Ok(())
        }
    }
}

/// The exact values of whole blocks of `kind`; any bytes decode to something.
///
/// # Errors
/// A type without a decoder; `src` not a whole number of blocks, or `dst` not exactly their elements.
pub fn decode(kind: TensorType, src: &[u8], dst: &mut [f32]) -> Result<()> {
    decode_on(Path::best(), kind, src, dst)
}

/// [`decode`] with the instructions of `path`: the values are the same on every one.
pub fn decode_on(path: Path, kind: TensorType, src: &[u8], dst: &mut [f32]) -> Result<()> {
    let codec = find(kind)?;
    let blocks = src.len() / kind.block_bytes();
    if !src.len().is_multiple_of(kind.block_bytes()) || dst.len() != blocks * kind.block_elements() {
        return Err(Error::Usage(format!(
            "{} bytes of {kind} do not hold exactly {} elements",
            src.len(),
            dst.len()
        )));
    }
    (codec.decode)(path, src, dst);
    Ok(())
}

fn run_encode<B: Block>(path: Path, rows: Rows<'_>, dst: &mut [u8]) {
    struct Encode<'a, B>(Rows<'a>, &'a mut [u8], std::marker::PhantomData<B>);
    impl<B: Block> Kernel for Encode<'_, B> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            B::encode(lanes, self.0, self.1);
        }
    }
    path.run(Encode::<B>(rows, dst, std::marker::PhantomData));
}

fn run_decode<B: Block>(path: Path, src: &[u8], dst: &mut [f32]) {
    struct Decode<'a, B>(&'a [u8], &'a mut [f32], std::marker::PhantomData<B>);
    impl<B: Block> Kernel for Decode<'_, B> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            B::decode(lanes, self.0, self.1);
        }
    }
    path.run(Decode::<B>(src, dst, std::marker::PhantomData));
}
