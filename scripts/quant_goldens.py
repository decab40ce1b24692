#!/usr/bin/env python3
"""Takes tests/golden/quant-encode*.json from llama.cpp: what its quantizers make of generated values.

    python3 scripts/quant_goldens.py path/to/libggml-base.so > tests/golden/quant-encode.json
    python3 scripts/quant_goldens.py path/to/libggml-base.so iq > tests/golden/quant-encode-iq.json

The first has the plain, legacy and K types, the second all others. Where llama.cpp aborts (values whose squares
overflow, for some types), there is no golden. The library is the one built from the source package of llama-cpp-python 0.3.36 on x86-64 (needs numpy).
tests/quant_encode.rs generates the same values and compares SHA-256 sums of the encoded blocks and of the
values they decode to.
"""

import ctypes
import hashlib
import json
import os
import sys

import numpy as np

ROWS, COLUMNS = 6, 768

# Name: (ggml_type, elements a block, bytes a block)
TYPES = {
    "F16": (1, 1, 2),
    "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
}
IQ_TYPES = {
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "IQ1_M": (29, 256, 56),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
CASES = [
    "normal", "small", "cubed", "zeros", "constant", "negative", "positive", "repeated",
    "outlier", "sparse", "tiny", "huge", "mixed", "bits",
]
IMATRICES = ["none", "squares", "holes"]


def splitmix(seed, count):
    """The first `count` numbers of splitmix64."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bell(seed, count):
    """Roughly normal numbers: sums of twelve uniform ones, added in order, in double precision."""
    uniform = (splitmix(seed, 12 * count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    total = np.zeros(count)
    for k in range(12):
        total = total + uniform[k::12]
    return total - 6.0


def values(case, count):
    seed = 1000 + CASES.index(case)
    z, r, i = bell(seed, count), splitmix(seed + 500, count), np.arange(count)
    made = {
        "normal": lambda: z,
        "small": lambda: z * 2.0**-6,
        "cubed": lambda: z * z * z,
        "zeros": lambda: z * 0.0 + 0.0,
        "constant": lambda: np.full(count, 0.375),
        "negative": lambda: -np.abs(z) - 0.125,
        "positive": lambda: np.abs(z) + 0.5,
        "repeated": lambda: np.floor(z * 2.0) / 2.0,
        "outlier": lambda: np.where(i % 256 == 77, np.where(r & np.uint64(1) == 0, 9.0, -9.0), z * 2.0**-7),
        "sparse": lambda: np.where(r % np.uint64(8) == 0, z, 0.0),
        "tiny": lambda: z * 2.0**-140,
        "huge": lambda: z * 2.0**120,
        "mixed": lambda: z * np.exp2(i // 16 % 40 - 20.0),
        "bits": lambda: finite_bits(r).astype(np.float64),
    }
    return made[case]().astype(np.float32)


def finite_bits(r):
    bits = (r & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    bits[(bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)] = 0
    return bits.view(np.float32)


def importance(kind):
    if kind == "none":
        return None
    z, r = bell(7, COLUMNS), splitmix(8, COLUMNS)
    if kind == "squares":
        return (z * z).astype(np.float32)
    return np.where(r % np.uint64(4) == 0, 0.0, z * z * z * z * 64.0).astype(np.float32)


class Traits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def survives(function):
    """Whether `function` returns when run in a child process: llama.cpp aborts on what it cannot place."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        function()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main():
    np.seterr(all="ignore")
    library = ctypes.CDLL(sys.argv[1])
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    goldens = []
    os.environ["GGML_NO_BACKTRACE"] = "1"
    types = IQ_TYPES if sys.argv[2:] == ["iq"] else TYPES
    for name, (number, block_elements, block_bytes) in types.items():
        # Builds the codebook before the first fork.
        library.ggml_quantize_init(number)
        traits = library.ggml_get_type_traits(number).contents
        assert (traits.blck_size, traits.type_size) == (block_elements, block_bytes), name
        for case in CASES:
            x = values(case, ROWS * COLUMNS)
            for kind in IMATRICES if block_elements > 1 else IMATRICES[:1]:
                weights = importance(kind)
                encoded = np.zeros(ROWS * COLUMNS // block_elements * block_bytes, dtype=np.uint8)
                pointer = None if weights is None else weights.ctypes.data
                if pointer is None and library.ggml_quantize_requires_imatrix(number):
                    continue
                arguments = (number, x.ctypes.data, encoded.ctypes.data, 0, ROWS, COLUMNS, pointer)
                if not survives(lambda: quantize(*arguments)):
                    continue
                quantize(*arguments)
                decoded = np.zeros(ROWS * COLUMNS, dtype=np.float32)
                traits.to_float(encoded.ctypes.data, decoded.ctypes.data, decoded.size)
                # Infinite scales make NaNs, whose sign and payload are each machine's own.
                decoded[np.isnan(decoded)] = np.float32(np.nan)
                goldens.append({"type": name, "case": case, "imatrix": kind,
                                "encoded": sha256(encoded), "decoded": sha256(decoded)})
    lines = ",\n".join("  " + json.dumps(golden) for golden in goldens)
    print(f'{{"rows": {ROWS}, "columns": {COLUMNS}, "goldens": [\n{lines}\n]}}')


main()
