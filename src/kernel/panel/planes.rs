//! Quants times scales as planes of bytes, for a unit that multiplies matrices.

use super::{Lanes, Lines};
use crate::quant::unpack::Unpack;
use crate::simd::{Isa, NARROW_SPAN, Planes, SPAN, Tiles, place_of_quad, plane_bytes, turn_of};

/// Whether a matrix unit's products of `F` exist for `I`.
pub(in crate::kernel) const fn has_tiles<F: Unpack, I: Isa>() -> bool {
    I::LANES == 16
        && I::WORDS == 1
        && I::TILE.0 == 2
        && (F::SPAN == SPAN && F::BLOCK == 256 || F::SPAN == NARROW_SPAN && F::BLOCK == NARROW_SPAN)
}

/// The planes that `F` needs.
pub(in crate::kernel) const fn planes<F: Unpack>() -> Planes {
    let (above, below) = (F::LARGEST as i32 - F::OFFSET, -F::OFFSET);
    let scale = if F::SCALED { F::LARGEST_SCALE } else { 1 };
    // Scales of formats with mins have no sign.
    if F::MINS || !F::SCALED {
        return Planes::of(below * scale, above * scale);
    }
    let size = if above > -below { above } else { -below };
    Planes::of(-size * scale, size * scale)
}

/// Makes room for the planes of `columns` columns.
#[inline(always)]
pub(super) fn resize<F: Unpack, I: Isa>(columns: usize, planes: &mut Lines<i32>) {
    planes.resize(columns / 4 * const { self::planes::<F>() }.count() * I::LANES * I::TILE.0);
}

/// Multiplies the lanes of block number `block` of `columns` by their scales, for all rows.
#[inline(always)]
pub(super) fn prepare<F: Unpack, I: Isa>(isa: I, block: usize, columns: usize, panel: &mut Lanes) {
    let Some(tiles) = isa.tiles() else { unreachable!("asked for where there is a matrix unit only") };
    let (wide, groups, quads) = (I::LANES * I::TILE.0, F::BLOCK / F::GROUP, F::GROUP / 4);
    let planes = const { self::planes::<F>() };
    for vector in 0..I::TILE.0 {
        let at = vector * I::LANES;
        let mut factors = tiles.factors(isa.w_splat(1));
        for group in block * groups..(block + 1) * groups {
            if F::SCALED {
                factors = tiles.factors(isa.w_load(&panel.scales[group * wide + at..]));
            }
            for quad in group * quads..(group + 1) * quads {
                let lanes = isa.w_load(&panel.lanes[quad * wide + at..]);
                let [low, high] = tiles.planes(planes, lanes, F::OFFSET as u8, factors);
                let turn = turn_of(quad / (F::SPAN / 4), columns / F::SPAN, F::SPAN);
                let place = place_of_quad(turn, quad % (F::SPAN / 4), vector, planes.count(), F::SPAN) / 4;
                isa.w_store(low, &mut panel.planes[place..]);
                if planes.count() == 2 {
                    isa.w_store(high, &mut panel.planes[place + plane_bytes(F::SPAN) / 4..]);
                }
            }
        }
    }
}
