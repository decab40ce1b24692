//! Products by AMX: registers of 16 × 64 bytes and an instruction that multiplies two of them as matrices.
//!
//! Weights are multiplied with tokens in `spans`, numbers of 16 bits (attention) in `sixteen`. Sums go through memory, for there is no other way from
//! these registers to vectors. The unit needs sixteen cycles for a product, and takes one of the two pipes that multiply vectors; additions
//! and shuffles go on beside it as before.
//!
//! Safety, for every `unsafe` in this file: an [`Amx`] exists only if `new()` found the features and the system's permission; registers are set up
//! by [`Setup`] as long as they are used.

/// A product of bytes of `$a` with those of `$b`, added to `$to`; each of the two is signed, `s`, or unsigned, `u`.
macro_rules! product {
    ($signs:literal, $to:literal, $a:literal, $b:literal) => {
        concat!("tdpb", $signs, "d tmm", $to, ", tmm", $a, ", tmm", $b)
    };
}

mod sixteen;
mod spans;

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::Avx512;
use crate::simd::Isa;
use crate::simd::tiles::{PlaneSums, Planes, Sixteens, TakeSums, TileOperands, Tiles};

/// Proof that the machine has AMX with products of bytes, AVX-512 F, BW and VNNI, and that this process may use the registers.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

impl Amx {
    /// The proof, if the machine has the features and the system allows their use.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        if *ALLOWED.get_or_init(|| has_features() && is_allowed()) { Some(Self(())) } else { None }
    }
}

impl Avx512 {
    /// The token that uses AMX, if the machine has it and the system allows it.
    pub fn with_amx() -> Option<Self> {
        match (Self::new(), Amx::new()) {
            (Some(_), Some(amx)) => Some(Self(Some(amx))),
            _ => None,
        }
    }
}

/// AMX-TILE and AMX-INT8: bits 24 and 25 of EDX of leaf 7. (Intel's Software Developer's Manual, volume 1, chapter 18.)
#[cold]
fn has_features() -> bool {
    const BITS: u32 = 0b11 << 24;
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & BITS == BITS
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Asks Linux for the use of the registers, whose 8 KiB it otherwise does not save: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`. It
/// says no where a thread's stack for signals is too small for them.
#[cold]
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    const REQUEST: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // Sound: the call takes two numbers and changes only what threads may do.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cold]
#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// Palette 1: eight registers of up to 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Whole registers.
static WHOLE: Configuration = Configuration::new(64, 16);

/// For products of 32 columns, registers 4 and 5 with half of their columns and 6 and 7 with half of their rows.
static NARROW: Configuration = Configuration::new(32, 8);

impl Configuration {
    /// Operands of so many bytes of a token and so many rows of four columns.
    const fn new(bytes: u16, rows: u8) -> Self {
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, bytes, bytes, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, rows, rows, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// The registers of this thread, set up and zero, until it is dropped: then the system need not save them when threads change.
pub struct Setup(PhantomData<*const ()>);

impl Setup {
    fn new(_proof: Amx, configuration: &'static Configuration) -> Self {
        // Sound: the proof says that the instruction exists and may be used; it reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const *configuration, options(nostack, readonly, preserves_flags));
        }
        Self(PhantomData)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // Sound: the instruction exists, for there is a `Setup`.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Scales as i16, four a row: those of rows 0, 1, 4, 5, 8, …, and of the others.
#[derive(Clone, Copy)]
pub struct Factors([__m512i; 2]);

impl<I: Isa<W = __m512i, F = __m512>> Tiles<I> for Amx {
    type Factors = Factors;

    #[inline(always)]
    fn factors(self, scales: __m512i) -> Factors {
        unsafe {
            let twice = _mm512_or_si512(
                _mm512_and_si512(scales, _mm512_set1_epi32(0xffff)),
                _mm512_slli_epi32::<16>(scales),
            );
            Factors([
                _mm512_shuffle_epi32::<0b01_01_00_00>(twice),
                _mm512_shuffle_epi32::<0b11_11_10_10>(twice),
            ])
        }
    }

    #[inline(always)]
    fn planes(self, planes: Planes, lanes: __m512i, offset: u8, factors: Factors) -> [__m512i; 2] {
        unsafe {
            let (zero, offset) = (_mm512_setzero_si512(), _mm512_set1_epi16(offset.into()));
            let first = _mm512_sub_epi16(_mm512_unpacklo_epi8(lanes, zero), offset);
            let last = _mm512_sub_epi16(_mm512_unpackhi_epi8(lanes, zero), offset);
            let (first, last) =
                (_mm512_mullo_epi16(first, factors.0[0]), _mm512_mullo_epi16(last, factors.0[1]));
            match planes {
                Planes::Unsigned => [_mm512_packus_epi16(first, last), zero],
                Planes::Signed => [_mm512_packs_epi16(first, last), zero],
                Planes::Two => {
                    let byte = _mm512_set1_epi16(0xff);
                    let low =
                        _mm512_packus_epi16(_mm512_and_si512(first, byte), _mm512_and_si512(last, byte));
                    let high =
                        _mm512_packs_epi16(_mm512_srai_epi16::<8>(first), _mm512_srai_epi16::<8>(last));
                    [low, high]
                }
            }
        }
    }

    #[inline(always)]
    fn probe(self, turns: usize) -> i32 {
        let (ones, mut sums) = ([0x0101_0101_i32; 256], [0_i32; 256]);
        let _setup = Setup::new(self, &WHOLE);
        // Sound: the registers are set up; loads and the store take 1 KiB.
        unsafe {
            asm!(
                "tileloadd tmm4, [{ones} + {stride}]",
                "tileloadd tmm5, [{ones} + {stride}]",
                "tileloadd tmm6, [{ones} + {stride}]",
                "tileloadd tmm7, [{ones} + {stride}]",
                "2:",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "sub {turns}, 1",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                ones = in(reg) ones.as_ptr(), sums = in(reg) sums.as_mut_ptr(),
                turns = inout(reg) turns.max(1) => _, stride = in(reg) 64usize,
                options(nostack),
            );
        }
        sums[0]
    }

    #[inline(always)]
    fn products(self, planes: Planes, operands: &TileOperands, totals: &mut [f32], out: &mut [&mut [f32]]) {
        spans::multiply(self, planes, operands, totals, out);
    }

    type Ready = Setup;

    #[inline(always)]
    fn ready(self) -> Setup {
        Setup::new(self, &WHOLE)
    }

    #[inline(always)]
    fn split(self, words: [__m512i; 4]) -> [__m512i; 2] {
        // Sound: the proof covers the features.
        unsafe { sixteen::split(words) }
    }

    #[inline(always)]
    fn quads(self, first: __m512i, last: __m512i) -> [__m512i; 2] {
        // Sound: as above.
        unsafe { sixteen::quads(first, last) }
    }

    #[inline(always)]
    fn multiply<T: TakeSums>(ready: &Setup, operands: &Sixteens, sums: &mut [PlaneSums; 2], take: &mut T) {
        sixteen::multiply(ready, operands, sums, take);
    }

    #[inline(always)]
    fn sum_of_planes(self, sums: [__m512i; 3]) -> __m512i {
        // Sound: as above.
        unsafe { sixteen::sum_of_planes(sums) }
    }
}
