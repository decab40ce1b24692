//! Table rows of the formats beyond the plain, legacy and K families.

use super::Codec;

pub(super) const TABLE: &[Codec] = &[];
