//! Stores of a tile's sums that are spread over the time of the next one.

use super::{Isa, MAX_LANES};

/// The partial sums of a register tile in memory: a vector for each token and row vector.
pub type Partials<const R: usize, const T: usize> = [[[f32; MAX_LANES]; R]; T];

/// A tile whose products are complete: its partial sums are added up and stored while those of the next tile are computed, a vector now and
/// then. Rows of the result lie far apart, so that each store is likely to miss the caches, and several in a row hold up all that is stored
/// after them.
pub struct Finished<'a, const R: usize, const T: usize> {
    /// Two, or eight.
    partials: &'a [Partials<R, T>],
    /// Of each token, `R` vectors.
    out: [&'a mut [f32]; T],
    /// The number of the vector that is stored next.
    next: usize,
}

impl<'a, const R: usize, const T: usize> Finished<'a, R, T> {
    /// Nothing to store.
    #[inline(always)]
    pub fn nothing() -> Self {
        Self { partials: &[], out: std::array::from_fn(|_| &mut [][..]), next: R * T }
    }

    /// `row` is where the `R` vectors of token `t` go.
    #[inline(always)]
    pub fn add(&mut self, t: usize, row: &'a mut [f32]) {
        self.out[t] = row;
    }

    /// The sums of `partials`, which go to the rows that were added.
    #[inline(always)]
    pub fn of(mut self, partials: &'a [Partials<R, T>]) -> Self {
        (self.partials, self.next) = (partials, 0);
        self
    }

    /// Whether nothing is left to store.
    #[inline(always)]
    pub fn is_stored(&self) -> bool {
        self.next >= R * T
    }

    /// What is done while span number `s` of the next tile is computed: a vector is stored every second span, and its lines are asked for three
    /// spans before that.
    #[inline(always)]
    pub fn at_span<I: Isa>(&mut self, isa: I, s: usize) {
        if !s.is_multiple_of(2) {
            return self.store_one(isa);
        }
        if s == 0 {
            self.ask(isa, 0);
        }
        self.ask(isa, s / 2 + 1);
    }

    /// Asks for where vector `i` goes, if it is still to be stored.
    #[inline(always)]
    fn ask<I: Isa>(&self, isa: I, i: usize) {
        if self.next <= i && i < R * T {
            isa.prefetch(self.out[i / R].as_ptr().wrapping_add(i % R * I::LANES).cast());
        }
    }

    /// Stores a vector if any is left.
    #[inline(always)]
    fn store_one<I: Isa>(&mut self, isa: I) {
        if self.next < R * T {
            let (t, r) = (self.next / R, self.next % R);
            let sum = sum_of_partials(isa, self.partials, t, r);
            isa.f_store(sum, &mut self.out[t][r * I::LANES..]);
            self.next += 1;
        }
    }

    /// Stores all that is left.
    #[inline(always)]
    pub fn store_rest<I: Isa>(&mut self, isa: I) {
        while self.next < R * T {
            self.store_one(isa);
        }
    }
}

/// The sum of two or eight partial sums of token `t` and row vector `r`.
#[inline(always)]
pub fn sum_of_partials<I: Isa, const R: usize, const T: usize>(
    isa: I,
    partials: &[Partials<R, T>],
    t: usize,
    r: usize,
) -> I::F {
    let l = |i: usize| isa.f_load(&partials[i][t][r]);
    if partials.len() == 2 {
        return sum_of_vectors(isa, &[l(0), l(1)]);
    }
    sum_of_vectors(isa, &[l(0), l(1), l(2), l(3), l(4), l(5), l(6), l(7)])
}

/// The sum of two or eight vectors, in the order that is part of every product's contract.
#[inline(always)]
pub fn sum_of_vectors<I: Isa, const N: usize>(isa: I, l: &[I::F; N]) -> I::F {
    const { assert!(N == 2 || N == 8) };
    if N == 2 {
        return isa.f_add(l[0], l[1]);
    }
    let even = isa.f_add(isa.f_add(l[0], l[4]), isa.f_add(l[2], l[6]));
    isa.f_add(even, isa.f_add(isa.f_add(l[1], l[5]), isa.f_add(l[3], l[7])))
}
