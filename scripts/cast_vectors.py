#!/usr/bin/env python3
"""Print the sha256 figures that the tests of src/convert/cast.rs expect: gguf-py's conversions of generated numbers.

    scripts/cast_vectors.py [PATH/TO/gguf-py]

Needs numpy and the gguf package. The generator is the same as in the tests: x = x * 6364136223846793005 + 1442695040888963407
(64 bits, from 1); a number is the upper 32 bits of x as the bits of an F32 (NaNs and infinities left out), or, for
"scaled", (those bits mod 2001 - 1000) / 64.
"""
import hashlib, sys
import numpy as np
if len(sys.argv) > 1:
    sys.path.insert(0, sys.argv[1])
import gguf

COUNT = 1 << 14


def generate():
    x, out = 1, []
    while len(out) < COUNT:
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        bits = x >> 32
        if bits >> 23 & 0xff != 0xff:
            out.append(bits)
    return np.array(out, dtype=np.uint32)


bits = generate()
wild = bits.view(np.float32)
scaled = ((bits % 2001).astype(np.float32) - np.float32(1000)) / np.float32(64)
np.seterr(all="ignore")
for name, numbers in (("wild", wild), ("scaled", scaled)):
    for kind in ("F32", "F16", "BF16", "Q8_0"):
        data = gguf.quants.quantize(numbers.reshape(-1, 64), gguf.GGMLQuantizationType[kind])
        print(name, "f32", kind, hashlib.sha256(data.tobytes()).hexdigest()[:16])
half = scaled.astype(np.float16)
brain = (scaled.view(np.uint32) >> 16 << 16).view(np.float32)
for name, numbers in (("f16", half), ("bf16", brain)):
    for kind in ("F32", "F16", "BF16", "Q8_0"):
        data = gguf.quants.quantize(numbers.reshape(-1, 64), gguf.GGMLQuantizationType[kind])
        print("scaled", name, kind, hashlib.sha256(data.tobytes()).hexdigest()[:16])
