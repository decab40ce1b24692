//! How keys and values of one head are stored: f32, 16-bit integers, bf16, or blocks of 32 elements with a scale.
//!
//! Keys are kept sixteen positions side by side ([`KEYS`]), element by element, so that scores of a vector
//! of keys need no horizontal sums; values position by position. Of 16-bit types, two elements of a key, or those of two
//! positions of values, share a word, for dot products of pairs. Quantized elements are those of the
//! GGUF types of the same name, only laid out anew.
//!
//! What is asked for as f16 is kept as integers with a scale for each position and head ([`Sixteen`]). They err less, as a head's
//! elements are of one size: half precision spends five of its sixteen bits on exponents. And their dot products are sums of integers,
//! which no order of additions changes and which a CPU makes two at a time.

use super::region::{Piece, Region};
use crate::gguf::TensorType;
use crate::quant;
use crate::simd::{Isa, MAX_LANES};

/// Positions whose keys are interleaved.
pub const KEYS: usize = 16;
/// Positions of a page.
pub const PAGE: usize = 256;
/// Elements that share a scale in the quantized types.
const SHARED: usize = 32;

/// An element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    F32,
    /// Sixteen bits an element: half precision, or on the CPU [`Sixteen`].
    F16,
    Bf16,
    Q8_0,
    Q4_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 5] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0, KvType::Q4_0];

    /// The one that `kind` names, if it can be one.
    pub fn from_tensor_type(kind: TensorType) -> Option<Self> {
        Self::ALL.into_iter().find(|kv| kv.tensor_type() == kind)
    }

    /// The GGUF type of its elements.
    pub fn tensor_type(self) -> TensorType {
        match self {
            KvType::F32 => TensorType::F32,
            KvType::F16 => TensorType::F16,
            KvType::Bf16 => TensorType::BF16,
            KvType::Q8_0 => TensorType::Q8_0,
            KvType::Q4_0 => TensorType::Q4_0,
        }
    }

    /// Bytes of one head's keys, or values, of `positions` with `padded` elements each.
    pub fn bytes(self, positions: usize, padded: usize) -> usize {
        let kind = self.tensor_type();
        let scales = if self == KvType::F16 { positions * size_of::<f32>() } else { 0 };
        positions * padded / kind.block_elements() * kind.block_bytes() + scales
    }
}

/// Head size rounded up to whole vectors on every ISA and to whole blocks.
pub const fn padded_head(head: usize) -> usize {
    head.next_multiple_of(if MAX_LANES > SHARED { MAX_LANES } else { SHARED })
}

/// [`PAGE`] keys or values of one head.
#[derive(Debug)]
pub enum KvData {
    F32(Piece<f32>),
    Sixteen(Sixteen),
    /// Pairs, the first in the low half of a word: elements `2 i` and `2 i + 1` of keys, `[PAGE / KEYS, padded / 2, KEYS]`, or
    /// positions `2 i` and `2 i + 1` of values, `[PAGE / 2, padded]`.
    Bf16(Piece<i32>),
    /// Quants, and a half-precision scale for every 32.
    Q8_0(Piece<i8>, Piece<u16>),
    /// Nibbles: element `i` of 32 in the low half of byte `i`, element `16 + i` in the high half.
    Q4_0(Piece<u8>, Piece<u16>),
}

impl KvData {
    /// Zeros for heads of `padded` elements: [`KvType::bytes`] of `region` for a page.
    pub fn new(kind: KvType, padded: usize, region: &mut Region) -> Self {
        let elements = PAGE * padded;
        match kind {
            KvType::F32 => KvData::F32(region.take(elements)),
            KvType::F16 => {
                KvData::Sixteen(Sixteen { pairs: region.take(elements / 2), scales: region.take(PAGE) })
            }
            KvType::Bf16 => KvData::Bf16(region.take(elements / 2)),
            KvType::Q8_0 => KvData::Q8_0(region.take(elements), region.take(elements / SHARED)),
            KvType::Q4_0 => KvData::Q4_0(region.take(elements / 2), region.take(elements / SHARED)),
        }
    }

    /// Where element `at` is, unless it is quantized.
    #[inline(always)]
    pub fn address(&self, at: usize) -> Option<*const u8> {
        match self {
            KvData::F32(data) => Some(data[at..].as_ptr().cast()),
            KvData::Sixteen(data) => Some(data.pairs[at / 2..].as_ptr().cast()),
            KvData::Bf16(data) => Some(data[at / 2..].as_ptr().cast()),
            KvData::Q8_0(..) | KvData::Q4_0(..) => None,
        }
    }

    /// Writes the key of position `at` of the page; `key` is `[padded]`.
    #[inline(always)]
    pub fn store_key<I: Isa>(&mut self, isa: I, at: usize, key: &[f32]) {
        let padded = key.len();
        let (group, lane) = (at / KEYS * padded, at % KEYS);
        match self {
            KvData::F32(to) => spread(key, &mut to[group * KEYS..], lane),
            KvData::Sixteen(to) => {
                let unit = key_unit(isa, key);
                to.scales[at] = unit;
                let mut i = 0;
                while i < padded {
                    let mut some = [0; MAX_LANES];
                    store_integers(isa, &key[i..i + 2 * MAX_LANES], 1.0 / unit, &mut some);
                    spread(&some, &mut to.pairs[(group + i) / 2 * KEYS..], lane);
                    i += 2 * MAX_LANES;
                }
            }
            KvData::Bf16(to) => {
                let mut i = 0;
                while i < padded {
                    let mut some = [0; MAX_LANES / 2];
                    isa.f_store_bf16(isa.f_round_bf16(isa.f_load(&key[i..])), &mut some);
                    spread(&some[..I::LANES / 2], &mut to[(group + i) / 2 * KEYS..], lane);
                    i += I::LANES;
                }
            }
            KvData::Q8_0(to, scales) => {
                let (quants, d) = to_q8_0(key);
                spread(&quants[..padded], &mut to[group * KEYS..], lane);
                spread(&d[..padded / SHARED], &mut scales[group / SHARED * KEYS..], lane);
            }
            KvData::Q4_0(to, scales) => {
                let (nibbles, d) = to_q4_0(key);
                spread(&nibbles[..padded / 2], &mut to[group / 2 * KEYS..], lane);
                spread(&d[..padded / SHARED], &mut scales[group / SHARED * KEYS..], lane);
            }
        }
    }

    /// Writes the value of position `at` of the page; `value` is `[padded]`. A position comes after the one before it.
    #[inline(always)]
    pub fn store_value<I: Isa>(&mut self, isa: I, at: usize, value: &[f32]) {
        let padded = value.len();
        let first = at * padded;
        match self {
            KvData::F32(to) => to[first..first + padded].copy_from_slice(value),
            KvData::Sixteen(to) => {
                let unit = value_unit(isa, value);
                to.scales[at] = unit;
                let to = &mut to.pairs[at / 2 * padded..][..padded];
                let inverse = isa.f_splat(1.0 / unit);
                let mut i = 0;
                while i < padded {
                    let mut some = [0; MAX_LANES];
                    isa.w_store(isa.f_to_w(isa.f_mul(isa.f_load(&value[i..]), inverse)), &mut some);
                    for lane in 0..I::LANES {
                        let new = some[lane] & 0xffff;
                        to[i + lane] =
                            if at.is_multiple_of(2) { new } else { new << 16 | to[i + lane] & 0xffff };
                    }
                    i += I::LANES;
                }
            }
            KvData::Bf16(to) => {
                let to = &mut to[at / 2 * padded..][..padded];
                let mut i = 0;
                while i < padded {
                    let mut some = [0.0; MAX_LANES];
                    isa.f_store(isa.f_round_bf16(isa.f_load(&value[i..])), &mut some);
                    for lane in 0..I::LANES {
                        let bits = some[lane].to_bits();
                        // The second of a pair may be multiplied, by 0, before there is one: what was there before could be no number.
                        let pair = if at.is_multiple_of(2) {
                            bits >> 16
                        } else {
                            bits | to[i + lane] as u32 & 0xffff
                        };
                        to[i + lane] = pair as i32;
                    }
                    i += I::LANES;
                }
            }
            KvData::Q8_0(to, scales) => {
                let (quants, d) = to_q8_0(value);
                to[first..first + padded].copy_from_slice(&quants[..padded]);
                scales[first / SHARED..][..padded / SHARED].copy_from_slice(&d[..padded / SHARED]);
            }
            KvData::Q4_0(to, scales) => {
                let (nibbles, d) = to_q4_0(value);
                to[first / 2..][..padded / 2].copy_from_slice(&nibbles[..padded / 2]);
                scales[first / SHARED..][..padded / SHARED].copy_from_slice(&d[..padded / SHARED]);
            }
        }
    }

    /// The keys of `count` groups of [`KEYS`] positions from group `first` on: `out` gets `[count, padded, KEYS]`. Not of 16-bit types.
    #[inline(always)]
    pub fn load_keys<I: Isa>(&self, isa: I, first: usize, count: usize, padded: usize, out: &mut [f32]) {
        let (at, elements) = (first * padded * KEYS, count * padded * KEYS);
        let out = &mut out[..elements];
        match self {
            KvData::F32(from) => out.copy_from_slice(&from[at..at + elements]),
            KvData::Sixteen(_) | KvData::Bf16(_) => unreachable!("pairs are multiplied as they are"),
            KvData::Q8_0(from, scales) => {
                // A scale for each position of 32 elements.
                for block in 0..elements / (SHARED * KEYS) {
                    let scales = &scales[(at / SHARED) + block * KEYS..][..KEYS];
                    for row in 0..SHARED {
                        let i = (block * SHARED + row) * KEYS;
                        scaled_row(isa, &from[at + i..][..KEYS], scales, &mut out[i..i + KEYS]);
                    }
                }
            }
            KvData::Q4_0(from, scales) => {
                for block in 0..elements / (SHARED * KEYS) {
                    let scales = &scales[(at / SHARED) + block * KEYS..][..KEYS];
                    for row in 0..SHARED / 2 {
                        let nibbles = &from[at / 2 + (block * SHARED / 2 + row) * KEYS..][..KEYS];
                        let (low, high) = split_nibbles(nibbles);
                        let i = (block * SHARED + row) * KEYS;
                        scaled_row(isa, &low, scales, &mut out[i..i + KEYS]);
                        let i = i + SHARED / 2 * KEYS;
                        scaled_row(isa, &high, scales, &mut out[i..i + KEYS]);
                    }
                }
            }
        }
    }

    /// The values of `count` positions from `first` on: `out` gets `[count, padded]`. Not of 16-bit types.
    #[inline(always)]
    pub fn load_values<I: Isa>(&self, isa: I, first: usize, count: usize, padded: usize, out: &mut [f32]) {
        let (at, elements) = (first * padded, count * padded);
        let out = &mut out[..elements];
        match self {
            KvData::F32(from) => out.copy_from_slice(&from[at..at + elements]),
            KvData::Sixteen(_) | KvData::Bf16(_) => unreachable!("pairs are multiplied as they are"),
            KvData::Q8_0(from, scales) => {
                for block in 0..elements / SHARED {
                    let d = [scales[at / SHARED + block]; KEYS];
                    for half in 0..2 {
                        let i = block * SHARED + half * KEYS;
                        scaled_row(isa, &from[at + i..][..KEYS], &d, &mut out[i..i + KEYS]);
                    }
                }
            }
            KvData::Q4_0(from, scales) => {
                for block in 0..elements / SHARED {
                    let d = [scales[at / SHARED + block]; KEYS];
                    let (low, high) = split_nibbles(&from[(at + block * SHARED) / 2..][..KEYS]);
                    let out = &mut out[block * SHARED..][..SHARED];
                    scaled_row(isa, &low, &d, &mut out[..KEYS]);
                    scaled_row(isa, &high, &d, &mut out[KEYS..]);
                }
            }
        }
    }
}

/// Pairs of 16-bit integers, and for each position what one of them stands for.
#[derive(Debug)]
pub struct Sixteen {
    /// Laid out as [`KvData::Bf16`]. The norm of a key is about 32767, so that no product with a query exceeds 32 bits; no element
    /// of a value exceeds [`LARGEST_VALUE`].
    pub pairs: Piece<i32>,
    /// `[PAGE]`.
    pub scales: Piece<f32>,
}

/// The largest 16-bit element of a value: what leaves a block's weights 18 bits.
pub const LARGEST_VALUE: i32 = 8191;

/// What a query or key is divided by to be integers whose norm is at most 32767, but for rounding: the sum of two such vectors'
/// products then fits 32 bits, whatever the order, by Cauchy's inequality. `[padded]`.
#[inline(always)]
pub fn key_unit<I: Isa>(isa: I, key: &[f32]) -> f32 {
    // As many sums, lane by lane, on every ISA.
    let mut sums = [isa.f_splat(0.0); MAX_LANES];
    let mut i = 0;
    while i < key.len() {
        for v in 0..MAX_LANES / I::LANES {
            let x = isa.f_load(&key[i + v * I::LANES..]);
            sums[v] = isa.f_fma(x, x, sums[v]);
        }
        i += MAX_LANES;
    }
    for v in 1..MAX_LANES / I::LANES {
        sums[0] = isa.f_add(sums[0], sums[v]);
    }
    (isa.f_sum(sums[0]).sqrt() / 32767.0).max(f32::MIN_POSITIVE)
}

/// What a value is divided by to be integers of at most [`LARGEST_VALUE`].
#[inline(always)]
fn value_unit<I: Isa>(isa: I, value: &[f32]) -> f32 {
    let mut largest = isa.f_splat(0.0);
    let mut i = 0;
    while i < value.len() {
        largest = isa.f_max(isa.f_abs(isa.f_load(&value[i..])), largest);
        i += I::LANES;
    }
    (isa.f_largest(largest) / LARGEST_VALUE as f32).max(f32::MIN_POSITIVE)
}

/// `from`, `[n · 2 · MAX_LANES]`, times `inverse`, what 1 is in units, as integers of 16 bits, two in a word.
#[inline(always)]
pub fn store_integers<I: Isa>(isa: I, from: &[f32], inverse: f32, to: &mut [i32]) {
    debug_assert!(from.len().is_multiple_of(2 * MAX_LANES));
    let inverse = isa.f_splat(inverse);
    let from = from.as_chunks::<{ 2 * MAX_LANES }>().0;
    let to = &mut to.as_chunks_mut::<MAX_LANES>().0[..from.len()];
    for i in 0..from.len() {
        for v in 0..MAX_LANES / I::LANES {
            let at = 2 * v * I::LANES;
            let low = isa.f_mul(isa.f_load(&from[i][at..]), inverse);
            let high = isa.f_mul(isa.f_load(&from[i][at + I::LANES..]), inverse);
            isa.w_store_i16([isa.f_to_w(low), isa.f_to_w(high)], &mut to[i][at / 2..]);
        }
    }
}

/// The most elements of a padded head.
pub const MAX_HEAD: usize = 512;

/// `from[i]` goes to `to[i * KEYS + lane]`.
#[inline(always)]
fn spread<T: Copy>(from: &[T], to: &mut [T], lane: usize) {
    let to = &mut to[..from.len() * KEYS];
    for i in 0..from.len() {
        to[i * KEYS + lane] = from[i];
    }
}

/// Quants and scales, as the tensor type has them.
fn to_q8_0(from: &[f32]) -> ([i8; MAX_HEAD], [u16; MAX_HEAD / SHARED]) {
    let (mut quants, mut scales) = ([0; MAX_HEAD], [0; MAX_HEAD / SHARED]);
    blocks::<34>(from, TensorType::Q8_0, |i, block| {
        scales[i] = u16::from_le_bytes([block[0], block[1]]);
        for j in 0..SHARED {
            quants[i * SHARED + j] = block[2 + j] as i8;
        }
    });
    (quants, scales)
}

/// Nibbles and scales, as the tensor type has them.
fn to_q4_0(from: &[f32]) -> ([u8; MAX_HEAD / 2], [u16; MAX_HEAD / SHARED]) {
    let (mut nibbles, mut scales) = ([0; MAX_HEAD / 2], [0; MAX_HEAD / SHARED]);
    blocks::<18>(from, TensorType::Q4_0, |i, block| {
        scales[i] = u16::from_le_bytes([block[0], block[1]]);
        nibbles[i * SHARED / 2..][..SHARED / 2].copy_from_slice(&block[2..]);
    });
    (nibbles, scales)
}

/// Encodes `from` block by block.
fn blocks<const BYTES: usize>(from: &[f32], kind: TensorType, mut each: impl FnMut(usize, &[u8; BYTES])) {
    for (i, source) in from.chunks_exact(SHARED).enumerate() {
        let mut block = [0; BYTES];
        quant::encode(kind, source, SHARED, None, &mut block)
            .expect("a whole block of a type that needs no imatrix");
        each(i, &block);
    }
}

/// Sixteen quants, each times its scale.
#[inline(always)]
fn scaled_row<I: Isa>(isa: I, quants: &[i8], scales: &[u16], out: &mut [f32]) {
    let mut i = 0;
    while i < KEYS {
        let quants = isa.f_from_w(isa.w_load_i8(&quants[i..]));
        isa.f_store(isa.f_mul(quants, isa.f_load_f16(&scales[i..])), &mut out[i..]);
        i += I::LANES;
    }
}

/// The low and the high halves of sixteen bytes, less 8.
#[inline(always)]
fn split_nibbles(bytes: &[u8]) -> ([i8; KEYS], [i8; KEYS]) {
    let (mut low, mut high) = ([0; KEYS], [0; KEYS]);
    for i in 0..KEYS {
        low[i] = (bytes[i] & 15) as i8 - 8;
        high[i] = (bytes[i] >> 4) as i8 - 8;
    }
    (low, high)
}
