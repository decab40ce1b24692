//:load fn load_SIDE(group: u32, i: u32) -> vec4<f32> {
//:load     let at = group * 16u + i * 2u;
//:load     return vec4<f32>(unpack2x16float(ARRAY[at]), unpack2x16float(ARRAY[at + 1u]));
//:load }

//:save fn store_SIDE(group: u32, start: u32, row: u32, first: u32, rotate: bool) {
//:save     for (var i = 0u; i < 8u; i++) {
//:save         let x = four(start, row, first + i * 4u, rotate);
//:save         ARRAY[group * 16u + i * 2u] = pack2x16float(x.xy);
//:save         ARRAY[group * 16u + i * 2u + 1u] = pack2x16float(x.zw);
//:save     }
//:save }
