// The 16 values of the IQ4 types, chosen by the bits of four codes at once.

// a where the bit is 0, b where it is 1; `bits` has whole bytes of ones.
fn choose(a: vec4<u32>, b: vec4<u32>, bits: vec4<u32>) -> vec4<u32> {
    return a ^ ((a ^ b) & bits);
}

// `choose` between two bytes, each four times in its word.
fn choose_byte(a: u32, b: u32, bits: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(a) ^ (vec4<u32>(a ^ b) & bits);
}

fn iq4_values(codes: vec4<u32>) -> vec4<u32> {
    let bit0 = filled(ones(codes, 0u));
    let bit1 = filled(ones(codes, 1u));
    let bit2 = filled(ones(codes, 2u));
    let bit3 = filled(ones(codes, 3u));
    // −127 −104 −83 −65
    let a = choose(choose_byte(0x81818181u, 0x98989898u, bit0), choose_byte(0xadadadadu, 0xbfbfbfbfu, bit0), bit1);
    // −49 −35 −22 −10
    let b = choose(choose_byte(0xcfcfcfcfu, 0xddddddddu, bit0), choose_byte(0xeaeaeaeau, 0xf6f6f6f6u, bit0), bit1);
    // 1 13 25 38
    let c = choose(choose_byte(0x01010101u, 0x0d0d0d0du, bit0), choose_byte(0x19191919u, 0x26262626u, bit0), bit1);
    // 53 69 89 113
    let d = choose(choose_byte(0x35353535u, 0x45454545u, bit0), choose_byte(0x59595959u, 0x71717171u, bit0), bit1);
    return choose(choose(a, b, bit2), choose(c, d, bit2), bit3);
}
