#!/usr/bin/env python3
"""Where llama.cpp's logits differ from transformers' in float32, and which change to transformers gives llama.cpp's.

    scripts/llama_differences.py FOLDER [--phi target/release/phi]

FOLDER is what `family_goldens.py --write FOLDER [--wide]` wrote. For Phi-1.5 and Phi-2 the change is a GELU that is looked up
in a table by its argument in half precision. For Phi-3.5-MoE it is two: norms that do not subtract the mean, and experts that
are chosen and weighted by a softmax over all of them, the two weights normalised to a sum of one; LongRoPE's scales are first
set to what llama.cpp computes from the context lengths, 1.19 where the published model has 1.243 (a third one). Prints relative errors (l2) over all positions of 32 tokens.

Needs torch, transformers and llama_cpp (llama-cpp-python), whose libraries LLAMA_CPP_LIB_PATH may name.
"""
import argparse, json, math, shutil, subprocess, sys, tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import activations
from transformers.models.phi import modeling_phi
from transformers.models.phimoe import modeling_phimoe

sys.path.insert(0, str(Path(__file__).resolve().parent))
import family_goldens
from family_goldens import sequence, transformers_logits

# Of a model for 131,072 tokens that was first trained on 4,096.
SCALE = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))


class TableGelu(torch.nn.Module):
    def forward(self, x):
        half = x.half().float()
        exact = 0.5 * half * (1 + torch.tanh(0.79788456080286535587989211986876 * half * (1 + 0.044715 * half * half)))
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, exact.half().float()))


def plain_routing(scores, jitter_eps, training, top_k=2):
    weights, experts = scores.softmax(-1).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), experts


def rms_norm(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def reference(config, weights, ids, changed):
    """transformers' logits, with llama.cpp's change or without."""
    family_goldens.tensors = lambda _: weights
    gelu, routing, norm = activations.ACT2FN, modeling_phimoe.sparsemixer, torch.nn.LayerNorm.forward
    if changed and config["model_type"] == "phi":
        modeling_phi.ACT2FN = {config["hidden_act"]: TableGelu()}
    elif changed:
        modeling_phimoe.sparsemixer, torch.nn.LayerNorm.forward = plain_routing, rms_norm
    try:
        return transformers_logits(config, ids, False)
    finally:
        modeling_phi.ACT2FN, modeling_phimoe.sparsemixer, torch.nn.LayerNorm.forward = gelu, routing, norm


def theirs(file, ids):
    model = llama_cpp.Llama(str(file), n_ctx=512, n_batch=64, logits_all=True, type_k=0, type_v=0, verbose=False, n_threads=2)
    model.eval(ids)
    return model.scores[: len(ids)].astype(np.float64)


def ours(phi, file, ids, vocabulary):
    done = subprocess.run([phi, "logits", "-m", file, "--ids", ",".join(map(str, ids)), "--last", str(len(ids)), "--top", str(vocabulary), "--json"],
                          capture_output=True, check=True)
    out = np.zeros((len(ids), vocabulary))
    for row, position in zip(out, json.loads(done.stdout)["positions"]):
        for token in position["top"]:
            row[token["id"]] = token["logit"]
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    a = ap.parse_args()
    for name in ("phi-1_5", "phi-2", "phi-3.5-moe"):
        source = a.folder / name
        config = json.loads((source / "config.json").read_text())
        if config["model_type"] == "phimoe":
            rope = {"original_max_position_embeddings": 4096, "short_mscale": SCALE, "long_mscale": SCALE}
            config.update(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_scaling={**config["rope_scaling"], **rope})
        weights = {key: value.float().numpy() for key, value in load_file(source / "model.safetensors").items()}
        ids = sequence(32)
        with tempfile.TemporaryDirectory() as scratch:
            folder, file = Path(scratch) / name, Path(scratch) / "model.gguf"
            shutil.copytree(source, folder)
            (folder / "config.json").write_text(json.dumps(config))
            subprocess.run([a.phi, "convert", folder, "--outtype", "f32", "--outfile", file], capture_output=True, check=True)
            there, here = theirs(file, ids), ours(a.phi, file, ids, config["vocab_size"])
        exact, changed = reference(config, weights, ids, False), reference(config, weights, ids, True)
        off = lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y)
        print(f"{name}: phi to transformers {off(here, exact):.1e}; llama.cpp to transformers {off(there, exact):.1e}, "
              f"to transformers with its change {off(there, changed):.1e}", flush=True)


main()
