//! Four lanes of NEON.

use std::arch::aarch64::*;

use super::{Kernel, Lanes, Path, portable};

/// This machine has NEON.
#[derive(Clone, Copy, Debug)]
pub struct Neon {
    _detected: (),
}

const N: usize = 4;

impl Neon {
    /// Runs `kernel` compiled with NEON.
    pub fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn compiled<K: Kernel>(lanes: Neon, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `new` detected the feature; nothing else makes a token.
        unsafe { compiled(self, kernel) }
    }
}

// SAFETY of every block below: the token exists, so `new` detected NEON; pointers come from slices whose
// length is checked on the line before.
impl Lanes for Neon {
    const WIDTH: usize = N;
    const PATH: Path = Path::Neon;
    type F = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;

    #[inline]
    fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self { _detected: () })
    }

    #[inline(always)]
    fn splat(self, v: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(v) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        let from = &from[..N];
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: float32x4_t, to: &mut [f32]) {
        let to = &mut to[..N];
        unsafe { vst1q_f32(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        unsafe { vsqrtq_f32(a) }
    }

    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        unsafe { vabsq_f32(a) }
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }

    #[inline(always)]
    fn lt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        unsafe { vcltq_f32(a, b) }
    }

    #[inline(always)]
    fn eq(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        unsafe { vceqq_f32(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(mask, a, b) }
    }

    #[inline(always)]
    fn and(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vandq_u32(a, b) }
    }

    #[inline(always)]
    fn not(self, a: uint32x4_t) -> uint32x4_t {
        unsafe { vmvnq_u32(a) }
    }

    #[inline(always)]
    fn any(self, mask: uint32x4_t) -> bool {
        unsafe { vmaxvq_u32(mask) != 0 }
    }

    #[inline(always)]
    fn splat_i(self, v: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(v) }
    }

    #[inline(always)]
    fn sub_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vsubq_s32(a, b) }
    }

    #[inline(always)]
    fn and_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vandq_s32(a, b) }
    }

    #[inline(always)]
    fn min_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vminq_s32(a, b) }
    }

    #[inline(always)]
    fn max_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vmaxq_s32(a, b) }
    }

    #[inline(always)]
    fn bits(self, a: float32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_f32(a) }
    }

    #[inline(always)]
    fn to_float(self, a: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(a) }
    }

    #[inline(always)]
    fn truncate(self, a: float32x4_t) -> int32x4_t {
        // NEON saturates; x86 gives i32::MIN for whatever does not fit.
        unsafe {
            let fits = vcltq_f32(vabsq_f32(a), vdupq_n_f32(2_147_483_648.0));
            vbslq_s32(fits, vcvtq_s32_f32(a), vdupq_n_s32(i32::MIN))
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: int32x4_t, to: &mut [u8]) {
        let mut lanes = [0_i32; N];
        unsafe { vst1q_s32(lanes.as_mut_ptr(), v) };
        for (byte, lane) in to[..N].iter_mut().zip(lanes) {
            *byte = lane as u8;
        }
    }

    #[inline(always)]
    fn load_half(self, from: &[u16]) -> float32x4_t {
        self.load(&portable::from_half(from))
    }

    #[inline(always)]
    fn store_half(self, v: float32x4_t, to: &mut [u16]) {
        let mut lanes = [0.0; N];
        self.store(v, &mut lanes);
        portable::to_half(lanes, to);
    }

    #[inline(always)]
    fn or(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vorrq_u32(a, b) }
    }

    #[inline(always)]
    fn bitmask(self, mask: uint32x4_t) -> u32 {
        const BITS: [u32; N] = [1, 2, 4, 8];
        unsafe { vaddvq_u32(vandq_u32(mask, vld1q_u32(BITS.as_ptr()))) }
    }

    #[inline(always)]
    fn smallest(self, v: float32x4_t) -> f32 {
        unsafe { vminvq_f32(v) }
    }

    #[inline(always)]
    fn add_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(a, b) }
    }

    #[inline(always)]
    fn xor_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { veorq_s32(a, b) }
    }

    #[inline(always)]
    fn eq_i(self, a: int32x4_t, b: int32x4_t) -> uint32x4_t {
        unsafe { vceqq_s32(a, b) }
    }

    #[inline(always)]
    fn lt_i(self, a: int32x4_t, b: int32x4_t) -> uint32x4_t {
        unsafe { vcltq_s32(a, b) }
    }

    #[inline(always)]
    fn shl(self, a: int32x4_t, by: u32) -> int32x4_t {
        unsafe { vshlq_s32(a, vdupq_n_s32(by as i32)) }
    }

    #[inline(always)]
    fn shr(self, a: int32x4_t, by: u32) -> int32x4_t {
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(by as i32)))) }
    }

    #[inline(always)]
    fn select_i(self, mask: uint32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vbslq_s32(mask, a, b) }
    }

    #[inline(always)]
    fn load_i(self, from: &[i32]) -> int32x4_t {
        let from = &from[..N];
        unsafe { vld1q_s32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_i(self, v: int32x4_t, to: &mut [i32]) {
        let to = &mut to[..N];
        unsafe { vst1q_s32(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_u16(self, from: &[u16]) -> int32x4_t {
        let from = &from[..N];
        unsafe { vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from.as_ptr()))) }
    }

    #[inline(always)]
    fn store_u16(self, v: int32x4_t, to: &mut [u16]) {
        let to = &mut to[..N];
        unsafe { vst1_u16(to.as_mut_ptr(), vmovn_u32(vreinterpretq_u32_s32(v))) }
    }

    #[inline(always)]
    fn lookup4(self, table: &[f32], at: int32x4_t) -> float32x4_t {
        let table = &table[..4];
        unsafe {
            let table = vld1q_u8(table.as_ptr().cast());
            vreinterpretq_f32_u8(vqtbl1q_u8(table, byte_positions(at, 3)))
        }
    }

    #[inline(always)]
    fn lookup8(self, table: &[f32], at: int32x4_t) -> float32x4_t {
        let table = &table[..8];
        unsafe {
            let table = vld1q_u8_x2(table.as_ptr().cast());
            vreinterpretq_f32_u8(vqtbl2q_u8(table, byte_positions(at, 7)))
        }
    }

    #[inline(always)]
    fn lookup16(self, table: &[f32], at: int32x4_t) -> float32x4_t {
        let table = &table[..16];
        unsafe {
            let table = vld1q_u8_x4(table.as_ptr().cast());
            vreinterpretq_f32_u8(vqtbl4q_u8(table, byte_positions(at, 15)))
        }
    }
}

/// The four byte positions of each lane's `f32` in a table in memory order; `mask` keeps the index's bits.
#[inline(always)]
unsafe fn byte_positions(at: int32x4_t, mask: i32) -> uint8x16_t {
    // SAFETY: called from NEON code only.
    unsafe {
        let at = vandq_s32(at, vdupq_n_s32(mask));
        let positions = vmlaq_s32(vdupq_n_s32(0x0302_0100), at, vdupq_n_s32(0x0404_0404));
        vreinterpretq_u8_s32(positions)
    }
}
