//! The machine's own limits: how fast the kernels' operations can stream from memory and multiply.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::engine::Cost;
use crate::kernel::{Pool, SharedMut};
use crate::simd::{Isa, Kernel, Level, MAX_LANES, PROBED, Tiles, dispatch_at};

/// How long each limit is measured.
const TIME: Duration = Duration::from_millis(250);
/// More than any core's share of the last cache.
const STREAM_BYTES: usize = 512 << 20;
/// What a task of the read probe streams, as the memory-bound product does.
const TASK_BYTES: usize = 256 << 10;
/// Bytes that the read probe asks for ahead of time: some processors do it well enough by themselves, others must
/// be told, above all across the borders of small pages. The better counts.
const AHEAD: [usize; 2] = [0, 1024];
/// Independent sums: enough to hide an operation's latency.
const SUMS: usize = 12;
/// Vectors of the operand that changes, few enough for the first cache.
const OPERANDS: usize = 64;
/// Turns over the operands in a task: some 100 µs.
const TURNS: usize = 500;

/// What this machine can do at best with so many threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes a second read from memory.
    pub read: f64,
    /// Products of bytes a second (multiply and add is one), summed in 32-bit integers.
    pub integer: f64,
    /// Products of 16-bit integers a second: of vectors, which make half as many of them as of bytes.
    pub pairs: f64,
    /// Products of floats a second.
    pub float: f64,
}

impl Limits {
    /// Measures them, which takes less than two seconds.
    pub fn measure(threads: usize) -> Self {
        let (pool, level) = (Pool::new(threads), Level::current());
        let lanes = dispatch_at(level, Lanes) as f64;
        let multiplied = (SUMS * OPERANDS * TURNS * threads) as f64;
        // Each of four bytes 1 or 0, whichever: only the time counts.
        let (bytes, floats) = (Operands::new(1), Operands::new(1.0));
        let integer = best(|| pool.run(threads, |_| _ = black_box(dispatch_at(level, Dots(&bytes)))));
        let of_vectors = multiplied * 4.0 * lanes / integer;
        let of_matrices = dispatch_at(level, Matrices(TURNS)).map(|_| {
            let seconds = best(|| pool.run(threads, |_| _ = black_box(dispatch_at(level, Matrices(TURNS)))));
            (PROBED * TURNS * threads) as f64 / seconds
        });
        let float = best(|| pool.run(threads, |_| _ = black_box(dispatch_at(level, Fmas(&floats)))));
        Self {
            read: read(&pool, level),
            integer: of_matrices.unwrap_or(of_vectors),
            pairs: of_vectors / 2.0,
            float: multiplied * lanes / float,
        }
    }

    /// The time that `cost` takes when reading and multiplying overlap and each meets its limit.
    pub fn least_time(&self, cost: &Cost) -> Duration {
        let reading = cost.bytes as f64 / self.read;
        let integers = cost.integer_products as f64 / self.integer + cost.pair_products as f64 / self.pairs;
        let multiplying = integers + cost.float_products as f64 / self.float;
        Duration::from_secs_f64(reading.max(multiplying))
    }
}

/// Seconds of the fastest of many runs.
fn best(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || start.elapsed() < TIME {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Bytes a second that all threads together read.
fn read(pool: &Pool, level: Level) -> f64 {
    let mut memory = vec![0i32; STREAM_BYTES / 4];
    let unit = TASK_BYTES / 4;
    // Pages are given out when they are first written, each near the thread that will read it.
    let shared = SharedMut::new(&mut memory);
    pool.run_ranges(STREAM_BYTES / 4, unit, |range| {
        // Sound: each task has a range of its own.
        unsafe { shared.slice(range.start, range.len()) }.fill(1);
    });
    let seconds = AHEAD.map(|ahead| {
        best(|| {
            pool.run_ranges(memory.len(), unit, |range| {
                black_box(dispatch_at(level, Stream { memory: &memory[range], ahead }));
            });
        })
    });
    STREAM_BYTES as f64 / seconds.into_iter().fold(f64::INFINITY, f64::min)
}

/// 32-bit lanes of a wide vector.
struct Lanes;

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> usize {
        I::LANES
    }
}

/// Places that a task reads at once: memory delivers more to several streams than to one.
const STREAMS: usize = 4;

/// Adds up memory, asking for what lies some bytes ahead.
struct Stream<'a> {
    memory: &'a [i32],
    ahead: usize,
}

impl Kernel for Stream<'_> {
    type Output = i32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> i32 {
        // Plain loops: what is not inlined here is not compiled for the ISA.
        let mut sums = [isa.w_splat(0); 2 * STREAMS];
        let part = self.memory.len() / STREAMS;
        for at in (0..part).step_by(2 * I::LANES) {
            for k in 0..2 * STREAMS {
                let vector = &self.memory[k / 2 * part + at + k % 2 * I::LANES..][..I::LANES];
                isa.prefetch(vector.as_ptr().cast::<u8>().wrapping_add(self.ahead));
                sums[k] = isa.w_add(sums[k], isa.w_load(vector));
            }
        }
        let mut total = isa.w_splat(0);
        for k in 0..sums.len() {
            total = isa.w_add(total, sums[k]);
        }
        let mut lanes = [0; MAX_LANES];
        isa.w_store(total, &mut lanes);
        lanes[0]
    }
}

/// What a multiplying probe works on. The compiler must know neither, or it would multiply once for all.
struct Operands<T> {
    /// `[OPERANDS, lanes]`, each vector multiplied with every factor.
    changing: Vec<T>,
    factors: [T; SUMS],
}

impl<T: Copy> Operands<T> {
    fn new(one: T) -> Self {
        black_box(Self { changing: vec![one; OPERANDS * MAX_LANES], factors: [one; SUMS] })
    }
}

/// Byte dot products, as the matmul tile makes them.
struct Dots<'a>(&'a Operands<i32>);

impl Kernel for Dots<'_> {
    type Output = i32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> i32 {
        let mut factors = [isa.w_splat(0); SUMS];
        for k in 0..SUMS {
            factors[k] = isa.w_splat(self.0.factors[k]);
        }
        let mut sums = [isa.w_splat(0); SUMS];
        for _ in 0..TURNS {
            for o in 0..OPERANDS {
                let operand = isa.w_load(&self.0.changing[o * I::LANES..]);
                for k in 0..SUMS {
                    sums[k] = isa.w_dot4::<false>(sums[k], operand, factors[k]);
                }
            }
        }
        let mut total = isa.w_splat(0);
        for k in 0..sums.len() {
            total = isa.w_add(total, sums[k]);
        }
        let mut lanes = [0; MAX_LANES];
        isa.w_store(total, &mut lanes);
        lanes[0]
    }
}

/// So many turns of a unit that multiplies matrices of bytes, if there is one. Gives one of the sums.
struct Matrices(usize);

impl Kernel for Matrices {
    type Output = Option<i32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Option<i32> {
        isa.tiles().map(|unit| unit.probe(self.0))
    }
}

/// Fused multiplications of floats.
struct Fmas<'a>(&'a Operands<f32>);

impl Kernel for Fmas<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut factors = [isa.f_splat(0.0); SUMS];
        for k in 0..SUMS {
            factors[k] = isa.f_splat(self.0.factors[k]);
        }
        let mut sums = [isa.f_splat(0.0); SUMS];
        for _ in 0..TURNS {
            for o in 0..OPERANDS {
                let operand = isa.f_load(&self.0.changing[o * I::LANES..]);
                for k in 0..SUMS {
                    sums[k] = isa.f_fma(operand, factors[k], sums[k]);
                }
            }
        }
        let mut total = isa.f_splat(0.0);
        for k in 0..sums.len() {
            total = isa.f_add(total, sums[k]);
        }
        let mut lanes = [0.0; MAX_LANES];
        isa.f_store(total, &mut lanes);
        lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::PROBED_OF_SUM;

    #[test]
    fn the_probes_do_all_the_work_they_are_timed_for() {
        for level in Level::available() {
            let times = (SUMS * OPERANDS * TURNS) as i32;
            // Four ones in a word: four products.
            assert_eq!(dispatch_at(level, Dots(&Operands::new(0x0101_0101))), 4 * times, "{level:?}");
            assert_eq!(dispatch_at(level, Fmas(&Operands::new(1.0))), times as f32, "{level:?}");
            if let Some(sum) = dispatch_at(level, Matrices(TURNS)) {
                assert_eq!(sum as usize, PROBED_OF_SUM * TURNS, "{level:?}");
            }
            let lanes = dispatch_at(level, Lanes);
            let memory = vec![1; 80 * lanes];
            assert_eq!(dispatch_at(level, Stream { memory: &memory, ahead: 64 }), 80, "{level:?}");
        }
    }

    #[test]
    fn the_slower_of_reading_and_multiplying_counts() {
        let limits = Limits { read: 100.0, integer: 1000.0, pairs: 500.0, float: 10.0 };
        let cost = Cost { bytes: 200, integer_products: 300, pair_products: 100, float_products: 1 };
        assert_eq!(limits.least_time(&cost), Duration::from_secs(2));
        let cost = Cost { bytes: 20, ..cost };
        assert_eq!(limits.least_time(&cost), Duration::from_millis(600));
    }
}
