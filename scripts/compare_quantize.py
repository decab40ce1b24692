#!/usr/bin/env python3
"""`phi quantize` beside llama-quantize on whole files: tensor by tensor, and the files byte for byte.

    scripts/compare_quantize.py BIN FOLDER... [--phi target/release/phi] [--types MXFP4_MOE,Q4_K_M] [--from f16]

BIN has llama-quantize; a FOLDER is a checkpoint, which is converted first, or a GGUF file. With --moe DIR, small checkpoints of
the widths of Phi-3.5-MoE, Phi-mini-MoE and Phi-tiny-MoE (one layer) are made in DIR and compared, too. Prints a line a
file; exits 1 if anything differs.

Needs gguf and numpy; for --moe also torch and safetensors.
"""
import argparse, filecmp, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader

# Widths as published; fewer experts in the large one, which are all alike to quantization.
MOES = {
    "phi-3.5-moe": {"intermediate_size": 6400, "num_key_value_heads": 8, "num_attention_heads": 32, "num_local_experts": 4},
    "phi-mini-moe": {"intermediate_size": 960, "num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 128, "num_local_experts": 16},
    "phi-tiny-moe": {"intermediate_size": 448, "num_key_value_heads": 4, "num_attention_heads": 16, "head_dim": 128, "num_local_experts": 16},
}


def make_moes(folder):
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from family_goldens import MODELS, write_checkpoint
    for name, widths in MOES.items():
        base = {key: value for key, value in MODELS["phi-tiny-moe"][0].items() if key != "head_dim"}
        # The name says which tokenizer's files are written.
        write_checkpoint("phi-tiny-moe", {**base, **widths, "hidden_size": 4096, "num_hidden_layers": 1}, folder / name)
        yield folder / name


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: " + done.stderr.decode(errors="replace").strip().splitlines()[-1])


def tensors(file):
    return {t.name: (t.tensor_type.name, tuple(map(int, t.shape)), t.data) for t in GGUFReader(str(file)).tensors}


def compare(ours, theirs):
    """What differs, and how many tensors there are of which types."""
    a, b = tensors(ours), tensors(theirs)
    faults = [] if list(a) == list(b) else ["other names, or another order"]
    kinds = {}
    for name in a.keys() & b.keys():
        kinds[a[name][0]] = kinds.get(a[name][0], 0) + 1
        if a[name][:2] != b[name][:2] or not np.array_equal(a[name][2], b[name][2]):
            faults.append(f"{name}: {a[name][0]} here, {b[name][0]} there")
    if not faults and not filecmp.cmp(ours, theirs, shallow=False):
        faults.append("the tensors are the same, the metadata is not")
    return faults, ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("bin", type=Path)
    ap.add_argument("models", type=Path, nargs="*")
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--types", default="MXFP4_MOE,Q4_K_M")
    ap.add_argument("--from", dest="base", default="f16")
    ap.add_argument("--moe", type=Path, metavar="DIR")
    a = ap.parse_args()
    bad = 0
    for model in [*a.models, *(make_moes(a.moe) if a.moe else [])]:
        with tempfile.TemporaryDirectory(dir=a.moe) as scratch:
            scratch = Path(scratch)
            base = model
            if model.is_dir():
                base = scratch / "base.gguf"
                run([a.phi, "convert", model, "--outtype", a.base, "--outfile", base])
            for kind in a.types.split(","):
                ours, theirs = scratch / "ours.gguf", scratch / "theirs.gguf"
                run([a.phi, "quantize", base, ours, kind])
                run([a.bin / "llama-quantize", base, theirs, kind])
                faults, kinds = compare(ours, theirs)
                print(f"{'DIFFERS' if faults else 'same   '} {model.name} {kind}: {kinds}", *faults[:8], sep="\n    " if faults else "", flush=True)
                bad += bool(faults)
    return bool(bad)


sys.exit(main())
