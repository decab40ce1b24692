//! The random numbers that llama-perplexity chooses tasks with, so that the same ones are chosen.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne twister MT19937 (Matsumoto and Nishimura 1998).
pub struct Twister {
    state: [u32; SIZE],
    next: usize,
}

impl Twister {
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; SIZE];
        for i in 1..SIZE {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    pub fn next(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
            let magic = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (y >> 1) ^ magic;
        }
        self.next = 0;
    }

    /// A number below `range`, without bias (Lemire 2019), as libstdc++ draws it.
    pub fn below(&mut self, range: u32) -> usize {
        let mut product = u64::from(self.next()) * u64::from(range);
        if (product as u32) < range {
            let threshold = range.wrapping_neg() % range;
            while (product as u32) < threshold {
                product = u64::from(self.next()) * u64::from(range);
            }
        }
        (product >> 32) as usize
    }

    /// A number below `range`, by scaling in single precision.
    pub fn scaled(&mut self, range: usize) -> usize {
        let fraction = self.next() as f32 / 4_294_967_296.0;
        ((fraction * range as f32) as usize).min(range.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_thousandth_number_is_the_standards() {
        // ISO C++ [rand.predef]: seeded with 5489.
        let mut twister = Twister::new(5489);
        let last = (0..10_000).map(|_| twister.next()).last();
        assert_eq!(last, Some(4_123_659_995));
        assert!((0..1000).all(|_| twister.below(7) < 7 && twister.scaled(3) < 3));
    }
}
