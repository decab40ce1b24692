//! Codebooks of points, and how they are looked up where registers hold no large tables.

use super::{Isa, MAX_ROWS};

/// `N` points, a power of two from 64 on, of eight (`T` is u64) or four (u32) coordinates.
#[derive(Debug)]
pub struct Codebook<T, const N: usize> {
    /// The levels of a point's coordinates, of 2 bits each where there are eight, of 3 where there are four, from the lowest bits up.
    pub points: &'static [u16; N],
    /// What the levels stand for.
    pub levels: [u8; 16],
    /// A byte a coordinate, the first one lowest.
    pub entries: [T; N],
}

/// [`Isa::b_points8`] by loads of entries.
#[inline(always)]
pub fn points8<I: Isa, const N: usize>(isa: I, book: &Codebook<u64, N>, numbers: [I::B; 2]) -> [I::B; 8] {
    const { assert!(N.is_power_of_two()) };
    let mut points = [numbers[0]; 8];
    for s in 0..8 {
        let of = isa.b_to_words(numbers[s / 4]);
        let mut words = [[0; 4]; MAX_ROWS];
        for r in 0..I::ROWS {
            for k in 0..4 {
                words[r][k] = book.entries[(of[r][s % 4] >> (16 * k)) as usize & (N - 1)];
            }
        }
        points[s] = isa.b_words(words);
    }
    points
}

/// [`Isa::b_points4`] by loads of entries.
#[inline(always)]
pub fn points4<I: Isa, const N: usize>(isa: I, book: &Codebook<u32, N>, numbers: [I::B; 4]) -> [I::B; 8] {
    const { assert!(N.is_power_of_two()) };
    let mut points = [numbers[0]; 8];
    for s in 0..8 {
        let of = isa.b_to_words(numbers[s / 2]);
        let mut words = [[0; 4]; MAX_ROWS];
        for r in 0..I::ROWS {
            for k in 0..4 {
                let pair = of[r][2 * (s % 2) + k / 2] >> (32 * (k % 2));
                let first = book.entries[pair as usize & (N - 1)];
                let second = book.entries[(pair >> 16) as usize & (N - 1)];
                words[r][k] = u64::from(first) | u64::from(second) << 32;
            }
        }
        points[s] = isa.b_words(words);
    }
    points
}

/// [`Isa::b_fields`] by shifts.
#[inline(always)]
pub fn fields<I: Isa, const N: usize>(isa: I, from: [u64; MAX_ROWS]) -> I::B {
    let mut words = [[0; 4]; MAX_ROWS];
    for r in 0..I::ROWS {
        for k in 0..4 {
            let word = from[r] >> (16 * k) & 0xffff;
            for i in 0..4 {
                words[r][k] |= (word >> (N * i) & 0xff) << (16 * i + 8);
            }
        }
    }
    isa.b_words(words)
}

/// [`Isa::b_negate_all`], vector by vector.
#[inline(always)]
pub fn negate_all<I: Isa>(isa: I, mut v: [I::B; 8], signs: I::B) -> [I::B; 8] {
    let words = isa.b_to_words(signs);
    for s in 0..8 {
        let mut bits = [0; MAX_ROWS];
        for r in 0..I::ROWS {
            bits[r] = (words[r][s / 2] >> (32 * (s % 2))) as u32;
        }
        v[s] = isa.b_negate(v[s], bits);
    }
    v
}

/// [`Isa::b_bits_i16`] by shifts.
#[inline(always)]
pub fn bits_i16<I: Isa, const N: usize>(isa: I, bits: [u32; MAX_ROWS]) -> I::B {
    let mut words = [[0; 4]; MAX_ROWS];
    for r in 0..I::ROWS {
        for k in 0..4 {
            let from = u64::from(bits[r]) >> (4 * N * k);
            for i in 0..4 {
                words[r][k] |= (from >> (N * i) & ((1 << N) - 1)) << (16 * i + 8);
            }
        }
    }
    isa.b_words(words)
}
