//:load fn load_SIDE(group: u32, i: u32) -> vec4<f32> {
//:load     return bitcast<vec4<f32>>(vec4<u32>(ARRAY[group * 32u + i * 4u], ARRAY[group * 32u + i * 4u + 1u], ARRAY[group * 32u + i * 4u + 2u], ARRAY[group * 32u + i * 4u + 3u]));
//:load }

//:save fn store_SIDE(group: u32, start: u32, row: u32, first: u32, rotate: bool) {
//:save     for (var i = 0u; i < 32u; i++) {
//:save         ARRAY[group * 32u + i] = bitcast<u32>(element(start, row, first + i, rotate));
//:save     }
//:save }
