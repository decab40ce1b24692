//! Matmul tiles, attention, norm, RoPE, activation: each algorithm once, generic over ISA and format.
//!
//! Order of arithmetic is part of a kernel's contract. A (row, token) product has one order of float
//! operations whatever the batch, the tile or the thread that computes it, so a token's logits do not
//! depend on what else is in flight.

use std::marker::PhantomData;

use crate::machine::prefer_large_pages;
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, MAX_LANES};

pub mod activation;
pub mod activations;
pub mod attention;
pub mod elementwise;
pub mod float;
pub mod kv;
pub mod matmul;
pub mod matvec;
mod panel;
pub mod pool;
pub mod region;

pub use activations::Activations;
pub use pool::Pool;

/// Float accumulators that a (row, token) product is spread over: span `s` goes to number
/// `s % partial_sums`.
#[inline(always)]
const fn partial_sums(span: usize) -> usize {
    256 / span
}

/// The largest size of a signed quant of `F`.
const fn largest_quant<F: Unpack>() -> i32 {
    let (above, below) = (F::LARGEST as i32 - F::OFFSET, F::OFFSET);
    if above > below { above } else { below }
}

/// The sum of sums.
#[inline(always)]
fn sum(sums: &[i16]) -> i32 {
    let mut all = 0;
    for &s in sums {
        all += i32::from(s);
    }
    all
}

/// Two i16 in a word, `low` in the low half.
#[inline(always)]
fn pair(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}

/// Four i8 in a word.
#[inline(always)]
fn word_of([a, b, c, d]: [i8; 4]) -> i32 {
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

/// Asks for the bytes that lie `distance` after `block`. Rows are too short for the hardware to see the
/// stream before it ends, and a missed line costs more than a block's arithmetic.
#[inline(always)]
fn prefetch_ahead<I: Isa>(isa: I, block: &[u8], distance: usize) {
    prefetch_bytes(isa, block.as_ptr().wrapping_add(distance), block.len());
}

/// Asks for the lines that every 64 of `length` bytes from `at` on begin in.
#[inline(always)]
fn prefetch_bytes<I: Isa>(isa: I, at: *const u8, length: usize) {
    let mut line = 0;
    while line < length {
        isa.prefetch(at.wrapping_add(line));
        line += 64;
    }
}

/// Asks for part number `part` of `parts` of `bytes`, whole lines, for the second cache.
#[inline(always)]
fn prefetch_part<I: Isa>(isa: I, bytes: &[u8], part: usize, parts: usize) {
    let bytes = part_of(bytes, part, parts);
    let mut at = 0;
    while at < bytes.len() {
        isa.prefetch_far(bytes.as_ptr().wrapping_add(at));
        at += 64;
    }
}

/// Part number `part` of `parts` of `bytes`, whole lines.
#[inline(always)]
fn part_of(bytes: &[u8], part: usize, parts: usize) -> &[u8] {
    let each = bytes.len().div_ceil(64).div_ceil(parts) * 64;
    &bytes[(part * each).min(bytes.len())..((part + 1) * each).min(bytes.len())]
}

/// Stores as many of the first lanes of `v` as `to` has room for.
#[inline(always)]
fn store_some<I: Isa>(isa: I, v: I::F, to: &mut [f32]) {
    if to.len() == I::LANES {
        return isa.f_store(v, to);
    }
    let mut lanes = [0.0; MAX_LANES];
    isa.f_store(v, &mut lanes);
    to.copy_from_slice(&lanes[..to.len()]);
}

/// Words of 32 bits in whole cache lines: vectors that lie across two lines cost twice as much.
#[derive(Clone, Debug, Default)]
pub struct Lines<T>(Vec<Line<T>>);

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line<T>([T; 16]);

impl<T: Word> Lines<T> {
    /// At least `length` words; new ones are 0.
    pub fn resize(&mut self, length: usize) {
        self.0.resize(length.div_ceil(16), Line([T::default(); 16]));
    }

    /// `length` words, all 0, in large pages where the system has such.
    pub fn in_large_pages(length: usize) -> Self {
        let mut lines = Self(Vec::with_capacity(length.div_ceil(16)));
        // Before the first write, which decides what pages there are.
        prefer_large_pages(&mut lines.0);
        lines.resize(length);
        lines
    }
}

/// What [`Lines`] are made of: four bytes.
pub trait Word: Copy + Default {}
impl Word for i32 {}
impl Word for f32 {}

impl<T: Word> std::ops::Deref for Lines<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // Sound: a line is sixteen words of four bytes and nothing else.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }
}

impl<T: Word> std::ops::DerefMut for Lines<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // Sound: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// A slice that threads may share, each writing its own part.
pub struct SharedMut<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// Sound: `SharedMut::slice` is unsafe and makes its caller promise disjoint ranges.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares `slice` for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len(), PhantomData)
    }

    /// `length` elements from `start`.
    ///
    /// # Safety
    /// No two slices that are alive at once may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn slice(&self, start: usize, length: usize) -> &mut [T] {
        assert!(start.checked_add(length).is_some_and(|end| end <= self.1));
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }
}

#[cfg(test)]
mod tests;
