#!/usr/bin/env python3
"""Takes llama-quantize's output files again: tests/data/quantize.json.

    python scripts/quantize_goldens.py PATH/TO/llama-quantize > tests/data/quantize.json

Needs the PyPI packages gguf and numpy, and llama-quantize built (x86-64, gcc) from the sources that the PyPI
package llama-cpp-python 0.3.36 contains. Small models are written, from numbers that tests/quantize.rs makes in
the same way, and quantized; the sha256 of each file is what `phi quantize` must give.

The output: {"models": [{"name", "metadata": {…}, "tensors": [[name, shape (row length first)], …]}],
"runs": [{"model", "from": null or "F16" …, "args": [option, …, type], "sha256": hash, or null if refused}]}.
With "from", the model is first brought to that type. With --imatrix imatrix.gguf in the arguments, the weights are
those that `imatrix_value` gives.
"""
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 Q2_K
Q2_K_S IQ3_XXS IQ3_S IQ3_M IQ3_XS Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0
F16 BF16 F32 COPY""".split()
IMATRIX = ["--imatrix", "imatrix.gguf"]


def random_bits(seed, count):
    """splitmix64 of seed * 2^32 + 0, 1, …: 64 bits each."""
    z = (np.uint64(seed) << np.uint64(32)) + np.arange(count, dtype=np.uint64)
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def weights(seed, shape):
    """About normal values; the first row is 0, the second constant, the third has one that stands out."""
    bits = random_bits(seed, int(np.prod(shape)))
    parts = [((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48)]
    values = (sum(parts) - 2 * 0xFFFF).astype(np.float32) * np.float32(2.0**-21)
    if len(shape) > 1:
        rows = values.reshape(-1, shape[0])
        rows[0] = 0.0
        rows[1] = 0.125
        rows[2, 5] = 3.0
    return values.reshape(shape[::-1])


def imatrix_values(seed, count):
    """Positive, over four orders of magnitude."""
    bits = random_bits(seed + 1000, count)
    small = ((bits & np.uint64(0xFFFF)).astype(np.float32) + np.float32(1)) * np.float32(2.0**-16)
    return np.where((bits >> np.uint64(60)) == 0, small * np.float32(4096), small)


def phi3(name, layers, columns, ffn, tied=False):
    metadata = base("phi3", layers, columns, ffn)
    tensors = [("token_embd.weight", [columns, 40]), ("output_norm.weight", [columns]), ("rope_factors_long.weight", [8])]
    if not tied:
        tensors.append(("output.weight", [columns, 40]))
    for n in range(layers):
        tensors += [
            (f"blk.{n}.attn_norm.weight", [columns]),
            (f"blk.{n}.attn_qkv.weight", [columns, 24]),
            (f"blk.{n}.attn_output.weight", [columns, 8]),
            (f"blk.{n}.ffn_down.weight", [ffn, 8]),
            (f"blk.{n}.ffn_up.weight", [columns, 16]),
            (f"blk.{n}.ffn_norm.weight", [columns]),
        ]
    return {"name": name, "metadata": metadata, "tensors": tensors}


def phimoe(name, layers, columns, ffn, experts):
    metadata = base("phimoe", layers, columns, ffn)
    metadata |= {"phimoe.expert_count": experts, "phimoe.expert_used_count": 2}
    tensors = [("token_embd.weight", [columns, 40]), ("output.weight", [columns, 40])]
    for n in range(layers):
        tensors += [(f"blk.{n}.attn_{part}.weight", [columns, 8]) for part in ("q", "k", "v", "output")]
        tensors.append((f"blk.{n}.ffn_gate_inp.weight", [columns, experts]))
        tensors += [(f"blk.{n}.ffn_{part}_exps.weight", [columns, 4, experts]) for part in ("gate", "up")]
        tensors.append((f"blk.{n}.ffn_down_exps.weight", [ffn, 4, experts]))
    return {"name": name, "metadata": metadata, "tensors": tensors}


def base(arch, layers, columns, ffn):
    return {
        "general.architecture": arch,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": columns,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": ffn,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 4,
        f"{arch}.attention.layer_norm_rms_epsilon": 0.0078125,
        "general.name": "a test",
    }


MODELS = [
    phi3("plain", 3, 256, 512),
    phi3("odd", 2, 96, 288, tied=True),
    phi3("odder", 1, 80, 512),
    phimoe("experts", 2, 256, 512, 4),
]
SOME = ["Q4_K_M", "Q8_0", "IQ4_XS", "Q2_K", "F32"]
RUNS = [
    *(("plain", None, [kind]) for kind in TYPES),
    *(("plain", None, [*IMATRIX, kind]) for kind in TYPES),
    *(("plain", "F16", [kind]) for kind in SOME),
    *(("plain", "BF16", [kind]) for kind in SOME),
    *(("plain", "Q8_0", ["--allow-requantize", kind]) for kind in SOME),
    ("plain", "Q8_0", ["Q4_0"]),
    ("plain", "Q8_0", ["COPY"]),
    *(("odd", None, [kind]) for kind in TYPES),
    *(("odder", None, [kind]) for kind in SOME),
    *(("experts", None, [kind]) for kind in ("MXFP4_MOE", "Q4_K_M", "Q3_K_L", "Q8_0")),
    *(("experts", None, [*IMATRIX, kind]) for kind in ("IQ2_XXS", "IQ3_XXS", "Q4_K_M", "Q2_K_S", "Q5_0")),
    ("plain", None, ["--pure", "Q4_K_M"]),
    ("plain", None, ["--leave-output-tensor", "Q4_K_M"]),
    ("plain", None, ["--output-tensor-type", "q8_0", "--token-embedding-type", "Q5_K", "Q4_K_M"]),
    ("plain", None, ["--tensor-type", "FFN_(up|down)=q5_0", "--tensor-type", "ffn=f16", "Q4_K_M"]),
    ("plain", None, ["--prune-layers", "1", "Q4_K_M"]),
    ("plain", None, ["--prune-layers", "0", *IMATRIX, "IQ2_XS"]),
    ("plain", None, [*IMATRIX, "--include-weights", "ffn", "Q4_K_M"]),
    ("plain", None, [*IMATRIX, "--exclude-weights", "ffn", "Q4_K_M"]),
    ("plain", None, ["--override-kv", "general.name=str:b", "--override-kv", "x.y=bool:true", "Q4_0"]),
    ("plain", None, ["--override-kv", "a.b=int:-7", "--override-kv", "c.d=float:0.1", "COPY"]),
]


def write(path, model):
    writer = gguf.GGUFWriter(path, model["metadata"]["general.architecture"])
    for key, value in model["metadata"].items():
        if isinstance(value, str):
            if key != "general.architecture":
                writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for seed, (name, shape) in enumerate(model["tensors"]):
        writer.add_tensor(name, weights(seed, shape))
    finish(writer)


def write_imatrix(path, model):
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["a text"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for seed, (name, shape) in enumerate(model["tensors"]):
        if name.startswith("blk.") and len(shape) > 1:
            matrices = shape[2] if len(shape) > 2 else 1
            values = imatrix_values(seed, matrices * shape[0]).reshape(matrices, shape[0])
            counts = np.arange(3, 3 + matrices, dtype=np.float32).reshape(matrices, 1)
            writer.add_tensor(name + ".in_sum2", values)
            writer.add_tensor(name + ".counts", counts)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    tool, models, runs = sys.argv[1], {model["name"]: model for model in MODELS}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            Path(folder, name).mkdir()
            write(Path(folder, name, "model.gguf"), model)
            write_imatrix(Path(folder, name, "imatrix.gguf"), model)
        for name, source, args in RUNS:
            at = Path(folder, name)

            def quantize(options, file_in, file_out, kind):
                command = [tool, *options, file_in, file_out, kind]
                return subprocess.run(command, cwd=at, capture_output=True).returncode == 0

            file = "model.gguf"
            if source:
                file = f"model-{source}.gguf"
                assert quantize([], "model.gguf", file, source)
            made = quantize(args[:-1], file, "out.gguf", args[-1])
            found = hashlib.sha256(Path(at, "out.gguf").read_bytes()).hexdigest() if made else None
            runs.append({"model": name, "from": source, "args": args, "sha256": found})
    text = ",\n ".join(json.dumps(model) for model in MODELS)
    print('{"models": [\n ' + text + '\n],\n"runs": [\n ' + ",\n ".join(map(json.dumps, runs)) + "\n]}")


main()
