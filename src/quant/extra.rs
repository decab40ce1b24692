//! Table rows of the formats beyond the plain, legacy and K families.

use super::{Codec, codec, fp4, low_bit, ternary};

pub(super) const TABLE: &[Codec] = &[
    codec::<low_bit::Q1_0>(),
    codec::<low_bit::Q2_0>(),
    codec::<ternary::TQ1_0>(),
    codec::<ternary::TQ2_0>(),
    codec::<fp4::MXFP4>(),
    codec::<fp4::NVFP4>(),
];
