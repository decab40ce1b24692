//:load fn load_SIDE(group: u32, i: u32) -> vec4<f32> {
//:load     let a = ARRAY[group * 16u + i * 2u];
//:load     let b = ARRAY[group * 16u + i * 2u + 1u];
//:load     return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
//:load }

//:save // The upper half of a float, rounded to nearest even.
//:save fn upper_SIDE(x: f32) -> u32 {
//:save     let bits = bitcast<u32>(x);
//:save     return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
//:save }

//:save fn store_SIDE(group: u32, start: u32, row: u32, first: u32, rotate: bool) {
//:save     for (var i = 0u; i < 8u; i++) {
//:save         let x = four(start, row, first + i * 4u, rotate);
//:save         ARRAY[group * 16u + i * 2u] = upper_SIDE(x.x) | (upper_SIDE(x.y) << 16u);
//:save         ARRAY[group * 16u + i * 2u + 1u] = upper_SIDE(x.z) | (upper_SIDE(x.w) << 16u);
//:save     }
//:save }
