#!/usr/bin/env python3
"""Takes llama-quantize's choice of types again: tests/data/recipes.json.

    python scripts/recipe_goldens.py PATH/TO/llama-quantize > tests/data/recipes.json

Needs the PyPI packages gguf and numpy, and llama-quantize built from the sources that the PyPI package
llama-cpp-python 0.3.36 contains. For each model below a GGUF of zeros is written and llama-quantize is
asked with --dry-run what it would make of it, for every type, with and without an importance matrix.

The output: {"models": [{"name", "metadata": {…}, "tensors": [[name, [row length, …]], …] (of the layers only
those of "blk.N"), "runs": {"Q4_K_M": CHOICES, "Q4_K_M.im": CHOICES, …}}]}. CHOICES maps a tensor's name, with N for
the layer, to the types it gets layer by layer, as TYPE or TYPE*COUNT; tensors that stay F32 are left out. CHOICES is
null where the tool finds no type that fits a shape, and the name of another run with the same choices.
"""
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 Q2_K
Q2_K_S IQ3_XXS IQ3_S IQ3_M IQ3_XS Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0
F16 BF16 F32""".split()


def model(name, arch, layers, heads=4, kv=4, experts=0, columns=256, ffn=256, tied=False):
    """A model's metadata and tensors, small where size does not matter for the recipe."""
    metadata = {
        "general.architecture": arch,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": columns,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": ffn,
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.attention.layer_norm_epsilon": 1e-5,
        f"{arch}.vocab_size": 8,
    }
    if experts:
        metadata |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": 2}
    tensors = [("output_norm.weight", [columns]), ("rope_factors_long.weight", [8]), ("token_embd.weight", [columns, 8])]
    if not tied:
        tensors.append(("output.weight", [columns, 8]))
    block = {"attn_norm.weight": [columns], "attn_output.weight": [columns, 8]}
    if arch in ("phi3", "falcon"):
        block["attn_qkv.weight"] = [columns, 12]
    else:
        block |= {f"attn_{part}.weight": [columns, 8] for part in "qkv"}
        block["attn_v.bias"] = [8]
    if experts:
        block["ffn_gate_inp.weight"] = [columns, experts]
        block |= {f"ffn_{part}_exps.weight": [columns, 4, experts] for part in ("gate", "up")}
        block["ffn_down_exps.weight"] = [ffn, 4, experts]
    else:
        block |= {"ffn_up.weight": [columns, 8], "ffn_down.weight": [ffn, 8]}
        if arch == "llama":
            block["ffn_gate.weight"] = [columns, 8]
    tensors += [(f"blk.N.{part}", shape) for part, shape in block.items()]
    return {"name": name, "metadata": metadata, "tensors": tensors}


MODELS = [
    *(model(f"phi3, {layers} layers", "phi3", layers) for layers in (1, 4, 7, 16, 32, 40)),
    model("phi3, grouped heads", "phi3", 8, heads=40, kv=10),
    model("phi3, heads in threes", "phi3", 8, heads=24, kv=8),
    model("phi3, tied", "phi3", 8, tied=True),
    model("phi3, rows of 96 and 288", "phi3", 9, columns=96, ffn=288),
    model("phi3, rows of 80 and 512", "phi3", 9, columns=80, ffn=512),
    model("phi3, rows of 128, tied", "phi3", 9, columns=128, ffn=192, tied=True),
    model("phimoe, 16 experts", "phimoe", 12, experts=16),
    model("llama, 8 experts", "llama", 12, experts=8, kv=1),
    model("llama, 80 layers", "llama", 80, heads=8, kv=1),
    model("llama, 33 layers", "llama", 33),
    model("falcon", "falcon", 17),
]


def write(path, metadata, tensors):
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, shape in tensors:
        writer.add_tensor(name, np.zeros(shape[::-1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_imatrix(path, tensors):
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in tensors:
        if name.startswith("blk.") and len(shape) > 1:
            experts = shape[2] if len(shape) > 2 else 1
            writer.add_tensor(name + ".in_sum2", np.ones((experts, shape[0]), dtype=np.float32))
            writer.add_tensor(name + ".counts", np.ones((experts, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def choices(tool, file, kind, imatrix):
    """The types chosen, in the tool's order of the tensors; None where it finds no type that fits."""
    command = [tool, "--dry-run", *(["--imatrix", imatrix] if imatrix else []), file, kind]
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if "no tensor type fallback is defined" in text:
        return None
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{text}")
    found = re.findall(r"^\[ *\d+/ *\d+\] (\S+) .*?size = .*?(?:\((\w+)\))?$", text, re.M)
    return [(name, kind.upper() or "F32") for name, kind in found]


def packed(chosen):
    by_name = {}
    for name, kind in chosen:
        by_name.setdefault(re.sub(r"^blk\.\d+", "blk.N", name), []).append(kind)
    runs = {}
    for name, kinds in by_name.items():
        groups = [(kind, len(list(group))) for kind, group in itertools.groupby(kinds)]
        runs[name] = " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in groups)
    return {name: run for name, run in runs.items() if not re.fullmatch(r"F32(\*\d+)?", run)}


def every_layer(entry):
    """The tensors of a model, those of "blk.N" once a layer."""
    layers = range(entry["metadata"][entry["metadata"]["general.architecture"] + ".block_count"])
    for name, shape in entry["tensors"]:
        yield from ((name.replace("blk.N", f"blk.{n}"), shape) for n in (layers if "blk.N" in name else [0]))


def main():
    tool = sys.argv[1]
    for entry in MODELS:
        tensors = list(every_layer(entry))
        with tempfile.TemporaryDirectory() as folder:
            file, imatrix = Path(folder, "model.gguf"), Path(folder, "imatrix.gguf")
            write(file, entry["metadata"], tensors)
            write_imatrix(imatrix, tensors)
            seen, entry["runs"] = {}, {}
            for kind in TYPES:
                for suffix, given in (("", None), (".im", imatrix)):
                    chosen = choices(tool, file, kind, given)
                    runs = chosen and packed(chosen)
                    text = json.dumps(runs)
                    entry["runs"][kind + suffix] = seen.get(text, runs)
                    seen.setdefault(text, kind + suffix)
        print(entry["name"], file=sys.stderr)
    entries = []
    for entry in MODELS:
        head = {key: value for key, value in entry.items() if key != "runs"}
        runs = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entry["runs"].items())
        entries.append(f'{json.dumps(head)[:-1]}, "runs": {{\n  {runs}}}}}')
    print('{"models": [\n' + ",\n".join(entries) + "\n]}")


main()
