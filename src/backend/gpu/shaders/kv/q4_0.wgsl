// Five words: the scale, then 32 nibbles in their order.

//:load fn load_SIDE(group: u32, i: u32) -> vec4<f32> {
//:load     let nibbles = vec4<u32>(ARRAY[group * 5u + 1u + i / 2u] >> (16u * (i % 2u))) >> vec4<u32>(0u, 4u, 8u, 12u);
//:load     return bitcast<f32>(ARRAY[group * 5u]) * (vec4<f32>(nibbles & vec4<u32>(15u)) - 8.0);
//:load }

//:save fn four_nibbles_SIDE(x: vec4<f32>) -> u32 {
//:save     let q = vec4<u32>(clamp(x + 8.5, vec4<f32>(), vec4<f32>(15.0)));
//:save     return q.x | (q.y << 4u) | (q.z << 8u) | (q.w << 12u);
//:save }

//:save fn store_SIDE(group: u32, start: u32, row: u32, first: u32, rotate: bool) {
//:save     // The element of the largest size gets the code 0, the one that only negative numbers have.
//:save     var largest = 0.0;
//:save     for (var i = 0u; i < 32u; i++) {
//:save         let x = element(start, row, first + i, rotate);
//:save         if abs(x) > abs(largest) {
//:save             largest = x;
//:save         }
//:save     }
//:save     let exact = largest / -8.0;
//:save     let inverse = select(0.0, 1.0 / exact, exact != 0.0);
//:save     ARRAY[group * 5u] = bitcast<u32>(unpack2x16float(pack2x16float(vec2<f32>(exact, 0.0))).x);
//:save     for (var i = 0u; i < 4u; i++) {
//:save         let low = four_nibbles_SIDE(four(start, row, first + i * 8u, rotate) * inverse);
//:save         let high = four_nibbles_SIDE(four(start, row, first + i * 8u + 4u, rotate) * inverse);
//:save         ARRAY[group * 5u + 1u + i] = low | (high << 16u);
//:save     }
//:save }
