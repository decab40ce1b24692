#!/usr/bin/env python3
"""Takes tests/golden/perplexity.json: what llama-perplexity and llama-imatrix say of models/phi-tiny.

Usage: perplexity_goldens.py BIN_FOLDER PHI [OUT.json]

BIN_FOLDER has llama-perplexity, llama-imatrix and llama-quantize (llama.cpp as in llama-cpp-python 0.3.36, CPU); PHI is
the `phi` binary, which converts the checkpoint. Needs the Python package gguf.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "tests/data/text.txt"


def run(*command, until=""):
    """What a program prints. Its log is written by a thread that may lose the end: run again until that is there."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(Path(command[0]).parent)}
    words = [str(word) for word in command]
    for _ in range(20):
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        if until in done.stdout + done.stderr:
            return done.stdout + done.stderr
    sys.exit(f"{words[0]} does not print {until!r}")


def estimate(text, name):
    """The figure and the error on the line that `name` begins, in per cent where it says so."""
    found = re.search(re.escape(name) + r"\s*[:=]\s*(-?[\d.]+)(?:\s*(?:±|\+/-)\s*([\d.]+))?", text)
    return [float(number) for number in found.groups() if number]


def main():
    binaries, phi = Path(sys.argv[1]), sys.argv[2]
    out = Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "tests/golden/perplexity.json"
    perplexity = binaries / "llama-perplexity"
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        f16, q4, base, imatrix = (Path(folder) / name for name in ["f16.gguf", "q4.gguf", "base", "imatrix.gguf"])
        subprocess.run([phi, "convert", ROOT / "models/phi-tiny", "--outfile", f16, "--outtype", "f16"], check=True)
        run(binaries / "llama-quantize", f16, q4, "Q4_K_M")
        text = run(perplexity, "-m", f16, "-f", TEXT, "-t", 2, "--kl-divergence-base", base, until="PPL =")
        golden["f16"] = estimate(text, "PPL")
        text = run(perplexity, "-m", f16, "-f", TEXT, "-t", 2, "--ppl-stride", 512, "-b", 512, until="[13]")
        golden["f16_stride_512"] = float(re.findall(r"\[\d+\]([\d.]+),", text)[-1])
        text = run(perplexity, "-m", q4, "-t", 2, "--kl-divergence-base", base, "--kl-divergence", until="Same top p:")
        names = ["Mean PPL(Q)", "Mean ln(PPL(Q)/PPL(base))", "Mean    KLD", "90.0%   KLD", "RMS Δp", "Same top p"]
        golden["q4_k_m"] = {name: estimate(text, name) for name in names}
        run(binaries / "llama-imatrix", "-m", f16, "-f", TEXT, "-t", 2, "-o", imatrix, "--chunks", 4, "--process-output")
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(imatrix).tensors}
        golden["imatrix"] = {
            name.removesuffix(".counts"): {
                "count": float(count[0]),
                "sum": float(tensors[name.replace(".counts", ".in_sum2")].sum(dtype="float64")),
                "first": float(tensors[name.replace(".counts", ".in_sum2")].ravel()[0]),
            }
            for name, count in tensors.items()
            if name.endswith(".counts")
        }
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
