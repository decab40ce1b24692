//! Dot products of pairs of bfloat16, where an ISA has an instruction for them.

use super::Isa;

/// Proof that there is an instruction for dot products of pairs of bfloat16.
pub trait DotBf16<I: Isa>: Copy {
    /// `sum[v][i]` plus the products of the two halves of `lanes[v][i]` with those of `pair`: the high halves' first, and each added
    /// as by an FMA.
    fn add<const V: usize>(self, sum: &mut [I::F; V], lanes: &[I::W; V], pair: &i32);
}

/// No ISA level without the instruction has this.
#[derive(Clone, Copy, Debug)]
pub enum NoDotBf16 {}

impl<I: Isa> DotBf16<I> for NoDotBf16 {
    #[inline(always)]
    fn add<const V: usize>(self, _sum: &mut [I::F; V], _lanes: &[I::W; V], _pair: &i32) {
        match self {}
    }
}

#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512Bf16;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    use super::super::Isa;
    use super::DotBf16;

    /// Proof that the machine has AVX-512 F and BF16.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512Bf16(());

    impl Avx512Bf16 {
        /// The proof, if the machine has the features and gains from them: Intel's CPUs start `vdpbf16ps` every second cycle,
        /// and two FMAs, which make as many products, in one.
        #[inline(always)]
        pub fn new() -> Option<Self> {
            static FAST: OnceLock<bool> = OnceLock::new();
            if *FAST.get_or_init(fast) { Some(Self(())) } else { None }
        }
    }

    #[cold]
    fn fast() -> bool {
        // The vendor's name begins in EBX.
        __cpuid(0).ebx.to_le_bytes() == *b"Auth"
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bf16")
    }

    impl<I: Isa<F = __m512, W = __m512i>> DotBf16<I> for Avx512Bf16 {
        #[inline(always)]
        fn add<const V: usize>(self, sum: &mut [__m512; V], lanes: &[__m512i; V], pair: &i32) {
            for v in 0..V {
                // Sound: `self` proves the features.
                sum[v] = unsafe { add_pair(sum[v], lanes[v], pair) };
            }
        }
    }

    /// `vdpbf16ps`. It takes the high halves first and rounds after each product, but takes numbers below 2^-126 for 0.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add_pair(mut sum: __m512, lanes: __m512i, pair: &i32) -> __m512 {
        // Sound where the machine has AVX-512 BF16: reads `pair`, and writes registers only.
        unsafe {
            std::arch::asm!(
                "vdpbf16ps {sum}, {lanes}, dword ptr [{pair}]{{1to16}}",
                sum = inout(zmm_reg) sum, lanes = in(zmm_reg) lanes, pair = in(reg) pair,
                options(readonly, pure, nostack, preserves_flags),
            );
        }
        sum
    }
}
