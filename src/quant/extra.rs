//! Table rows of the formats beyond the plain, legacy and K families.

use super::{Codec, codec, fp4, iq1, iq2, iq3, iq4, low_bit, ternary};

pub(super) const TABLE: &[Codec] = &[
    codec::<iq1::IQ1_S>(),
    codec::<iq1::IQ1_M>(),
    codec::<iq2::IQ2_XXS>(),
    codec::<iq2::IQ2_XS>(),
    codec::<iq2::IQ2_S>(),
    codec::<iq3::IQ3_XXS>(),
    codec::<iq3::IQ3_S>(),
    codec::<iq4::IQ4_NL>(),
    codec::<iq4::IQ4_XS>(),
    codec::<low_bit::Q1_0>(),
    codec::<low_bit::Q2_0>(),
    codec::<ternary::TQ1_0>(),
    codec::<ternary::TQ2_0>(),
    codec::<fp4::MXFP4>(),
    codec::<fp4::NVFP4>(),
];
