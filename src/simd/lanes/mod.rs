//! Float lanes for the encoders: one algorithm, one sub-block a lane, on every machine.
//!
//! Every operation is a single IEEE operation a lane, rounded once, in the order it is written: nothing here
//! fuses, reassociates or approximates, so a lane computes the same bits as plain `f32` code would.

mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

pub use portable::Scalar;

#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2, avx512::Avx512};

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

/// The most lanes any token has; scratch arrays are sized by it.
pub const MAX_WIDTH: usize = 16;

/// 1.5 × 2^23: adding it to |v| < 2^22 leaves v, rounded to nearest even, in the low mantissa bits.
const ROUNDING_MAGIC: f32 = 12_582_912.0;

/// A proof that this machine has some vector instructions, and the operations they offer.
///
/// A token is a zero-sized value that only its `new` makes, after asking the processor. Methods are
/// meaningful fast code only inside [`Path::run`], which compiles its kernel for the token's features.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// `f32` values a vector holds.
    const WIDTH: usize;
    /// The path this token belongs to.
    const PATH: Path;

    /// `WIDTH` floats.
    type F: Copy;
    /// `WIDTH` 32-bit integers.
    type I: Copy;
    /// `WIDTH` truth values.
    type M: Copy;

    /// The token, if this machine has the instructions.
    fn new() -> Option<Self>;

    /// All lanes `v`.
    fn splat(self, v: f32) -> Self::F;
    /// The first `WIDTH` values of `from`.
    fn load(self, from: &[f32]) -> Self::F;
    /// Writes `WIDTH` values to the start of `to`.
    fn store(self, v: Self::F, to: &mut [f32]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`, so the second operand when either is NaN or both are zeros.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`, so the second operand when either is NaN or both are zeros.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b`, false for NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`, false for NaN.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;

    /// `a` where the mask is true, else `b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;
    fn and(self, a: Self::M, b: Self::M) -> Self::M;
    fn not(self, a: Self::M) -> Self::M;
    /// Whether any lane is true.
    fn any(self, mask: Self::M) -> bool;

    fn splat_i(self, v: i32) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The bits of floats as integers.
    fn bits(self, a: Self::F) -> Self::I;
    /// Integers to floats; exact below 2^24.
    fn to_float(self, a: Self::I) -> Self::F;
    /// Floats to integers toward zero; `i32::MIN` for what does not fit, as x86's conversion has it.
    fn truncate(self, a: Self::F) -> Self::I;
    /// Writes the low byte of every lane.
    fn store_bytes(self, v: Self::I, to: &mut [u8]);

    /// `WIDTH` half-precision floats (their bits) to single precision; NaNs keep their payload, quieted.
    fn load_half(self, from: &[u16]) -> Self::F;
    /// To half precision, nearest even; NaN becomes some NaN.
    fn store_half(self, v: Self::F, to: &mut [u16]);

    fn or(self, a: Self::M, b: Self::M) -> Self::M;
    /// One bit a lane, lane 0 lowest.
    fn bitmask(self, mask: Self::M) -> u32;
    /// The smallest lane; none may be NaN.
    fn smallest(self, v: Self::F) -> f32;

    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn eq_i(self, a: Self::I, b: Self::I) -> Self::M;
    /// `a < b`, signed.
    fn lt_i(self, a: Self::I, b: Self::I) -> Self::M;
    /// Shifts every lane `by` bits to the left.
    fn shl(self, a: Self::I, by: u32) -> Self::I;
    /// Shifts every lane `by` bits to the right, zeros coming in.
    fn shr(self, a: Self::I, by: u32) -> Self::I;
    /// `a` where the mask is true, else `b`.
    fn select_i(self, mask: Self::M, a: Self::I, b: Self::I) -> Self::I;
    /// The first `WIDTH` values of `from`.
    fn load_i(self, from: &[i32]) -> Self::I;
    /// Writes `WIDTH` values to the start of `to`.
    fn store_i(self, v: Self::I, to: &mut [i32]);
    /// The first `WIDTH` values of `from`, zero-extended.
    fn load_u16(self, from: &[u16]) -> Self::I;
    /// Writes the low 16 bits of every lane.
    fn store_u16(self, v: Self::I, to: &mut [u16]);
    /// Lane by lane, the entry of a table of 4 that the two lowest bits choose.
    fn lookup4(self, table: &[f32], at: Self::I) -> Self::F;
    /// Lane by lane, the entry of a table of 8 that the three lowest bits choose.
    fn lookup8(self, table: &[f32], at: Self::I) -> Self::F;
    /// Lane by lane, the entry of a table of 16 that the four lowest bits choose.
    fn lookup16(self, table: &[f32], at: Self::I) -> Self::F;

    /// Columns of a row-major matrix of `WIDTH` rows: lane `r` of `out[c]` is `rows[r * stride + c]`.
    ///
    /// Panics if `rows` is too short for that.
    #[inline(always)]
    fn columns(self, rows: &[f32], stride: usize, out: &mut [Self::F]) {
        gather_columns(self, rows, stride, 0, out);
    }

    #[inline(always)]
    fn gt(self, a: Self::F, b: Self::F) -> Self::M {
        self.lt(b, a)
    }

    /// The nearest integer, ties to even, for |v| < 2^22; the result is never -0.
    #[inline(always)]
    fn nearest_small(self, v: Self::F) -> Self::F {
        let magic = self.splat(ROUNDING_MAGIC);
        self.sub(self.add(v, magic), magic)
    }

    /// The nearest integer, ties to even, with the reference's wrap-around for |v| ≥ 2^22, infinities and
    /// NaN: it reads 23 mantissa bits of `v` + 1.5 × 2^23 whatever the exponent came out as.
    #[inline(always)]
    fn nearest(self, v: Self::F) -> Self::I {
        let bits = self.bits(self.add(v, self.splat(ROUNDING_MAGIC)));
        self.sub_i(self.and_i(bits, self.splat_i(0x007f_ffff)), self.splat_i(0x0040_0000))
    }
}

/// [`Lanes::columns`] one value at a time, starting with column `first`: what is left beyond whole tiles.
#[inline(always)]
fn gather_columns<L: Lanes>(lanes: L, rows: &[f32], stride: usize, first: usize, out: &mut [L::F]) {
    for (c, column) in out.iter_mut().enumerate() {
        let mut gathered = [0.0; MAX_WIDTH];
        for (r, lane) in gathered.iter_mut().enumerate().take(L::WIDTH) {
            *lane = rows[r * stride + first + c];
        }
        *column = lanes.load(&gathered);
    }
}

/// [`Lanes::nearest`] for one value.
#[inline(always)]
pub fn nearest(v: f32) -> i32 {
    ((v + ROUNDING_MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Half precision to single, exact; NaNs are quieted and keep their payload.
pub fn half_value(half: u16) -> f32 {
    portable::half_value(half)
}

/// Single precision to half, nearest even; every NaN becomes the quiet one with its sign.
pub fn half_bits(v: f32) -> u16 {
    portable::half_bits(v)
}

/// Code to run on some [`Lanes`]. Mark `run` `#[inline(always)]`, and what it calls too: only what is inlined
/// into the token's own function is compiled for its instructions.
pub trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Which instructions to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Scalar,
    Avx2,
    Avx512,
    Neon,
}

impl Path {
    /// Every path this machine can take, slowest first.
    pub fn available() -> impl Iterator<Item = Path> {
        [Path::Scalar, Path::Neon, Path::Avx2, Path::Avx512].into_iter().filter(|path| path.is_available())
    }

    /// The fastest path here, or the one that the environment variable `PHI_ISA` asks for if it is available.
    pub fn best() -> Path {
        static BEST: OnceLock<Path> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wanted = std::env::var("PHI_ISA").unwrap_or_default().to_ascii_lowercase();
            // Encoders have no use for dot products.
            let wanted = match wanted.as_str() {
                "avxvnni" => "avx2",
                "avx512-plain" | "amx" => "avx512",
                other => other,
            };
            let asked = Path::available().find(|path| path.name() == wanted);
            asked.or(Path::available().last()).unwrap_or(Path::Scalar)
        })
    }

    /// The name that `PHI_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
            Path::Neon => "neon",
        }
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Path::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Avx512::new().is_some(),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => Neon::new().is_some(),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Runs `kernel` compiled for this path; on [`Scalar`] if the machine lacks its instructions.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => {
                if let Some(lanes) = Avx512::new() {
                    return lanes.vectorize(kernel);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                if let Some(lanes) = Avx2::new() {
                    return lanes.vectorize(kernel);
                }
            }
            #[cfg(target_arch = "aarch64")]
            Path::Neon => {
                if let Some(lanes) = Neon::new() {
                    return lanes.vectorize(kernel);
                }
            }
            _ => {}
        }
        kernel.run(Scalar)
    }
}
