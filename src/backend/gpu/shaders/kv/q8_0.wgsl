// Nine words: the scale, then 32 bytes.

//:load fn load_SIDE(group: u32, i: u32) -> vec4<f32> {
//:load     return bitcast<f32>(ARRAY[group * 9u]) * vec4<f32>(unpack4xI8(ARRAY[group * 9u + 1u + i]));
//:load }

//:save fn store_SIDE(group: u32, start: u32, row: u32, first: u32, rotate: bool) {
//:save     var largest = 0.0;
//:save     for (var i = 0u; i < 8u; i++) {
//:save         let x = abs(four(start, row, first + i * 4u, rotate));
//:save         largest = max(largest, max(max(x.x, x.y), max(x.z, x.w)));
//:save     }
//:save     let exact = largest / 127.0;
//:save     let inverse = select(0.0, 1.0 / exact, exact > 0.0);
//:save     ARRAY[group * 9u] = bitcast<u32>(unpack2x16float(pack2x16float(vec2<f32>(exact, 0.0))).x);
//:save     for (var i = 0u; i < 8u; i++) {
//:save         let q = vec4<i32>(round(four(start, row, first + i * 4u, rotate) * inverse));
//:save         ARRAY[group * 9u + 1u + i] = pack4xI8(q);
//:save     }
//:save }
