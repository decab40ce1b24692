#!/usr/bin/env python3
"""LongRoPE on both sides of its limit: the logits of `phi logits` beside those of transformers in float32.

    scripts/compare_longrope.py [--phi target/release/phi] [--lengths 4000,4096,4097,5000,20000] [--only NAME]

Small models with the published factors, head sizes and limits: Phi-3.5-mini (all of a head rotated), Phi-4-mini (three
quarters, grouped heads) and Phi-3.5-MoE (scales of its own). For each length a line: the relative error (l2) of the last
four positions' logits against transformers, with eager attention up to 5,000 tokens and with scaled_dot_product_attention,
which takes less memory, at all lengths; and how far off the result with the other factor set is, so that one can see
what the comparison would notice. Fails if an error is above 1e-4.

transformers computes Phi-3.5-MoE with the short factors at any length; the published code takes the long ones beyond
the limit, and so does this script.

Needs torch, transformers, tokenizers, safetensors, numpy; 4 GB of memory.
"""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_goldens import MOE, PHI3, VOCAB, sequence, transformers_logits, write_checkpoint

LIMIT, LAST, TOLERANCE = 4096, 4, 1e-4
# microsoft/Phi-3.5-mini-instruct, config.json.
MINI_LONG = [1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46, 28.57, 30.42, 30.84,
             32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14, 63.14, 63.77, 63.93,
             63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84]
MINI_SHORT = [1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34, 1.68, 1.79, 1.82, 1.85,
              1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.08,
              2.09, 2.19, 2.22, 2.59, 2.73, 2.75, 2.84]
BASE = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 131072, "original_max_position_embeddings": LIMIT,
        "rope_theta": 10000.0}


def stretched(factors, pairs):
    return [float(x) for x in np.interp(np.linspace(0, 1, pairs), np.linspace(0, 1, len(factors)), factors)]


def scaling(long, short, **more):
    return {"type": "longrope", "long_factor": long, "short_factor": short, **more}


MODELS = {
    "phi-3.5-mini": {**PHI3, **BASE, "hidden_size": 192, "intermediate_size": 256, "num_key_value_heads": 2, "sliding_window": 262144,
                     "rope_scaling": scaling(MINI_LONG, MINI_SHORT)},
    # Its short factors are all 1; its long ones begin like a geometric row and end in a plateau.
    "phi-4-mini": {**PHI3, **BASE, "hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1, "sliding_window": 262144,
                   "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
                   "rope_scaling": scaling([min(1.1183206 ** i, 32 + i / 48) for i in range(48)], [1.0] * 48)},
    "phi-3.5-moe": {**MOE, **BASE, "hidden_size": 256, "intermediate_size": 96, "num_key_value_heads": 1, "num_local_experts": 16,
                    "sliding_window": 131072,
                    "rope_scaling": scaling(stretched(MINI_LONG, 64), stretched(MINI_SHORT, 64), short_mscale=1.243163121016122,
                                            long_mscale=1.243163121016122, original_max_position_embeddings=LIMIT)},
}


def ours(phi, folder, ids, scratch):
    """`[LAST, VOCAB]`"""
    file = scratch / "ids.json"
    file.write_text(json.dumps(ids))
    command = [phi, "logits", "-m", folder, "--quantize", "F32", "--ids-file", file, "--last", LAST, "--top", VOCAB, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    out = np.zeros((LAST, VOCAB))
    for row, position in zip(out, json.loads(done.stdout)["positions"]):
        for token in position["top"]:
            row[token["id"]] = token["logit"]
    return out


def error(got, want):
    return float(np.max(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)))


def swapped(config):
    """The same model with the two factor sets exchanged."""
    rope = config["rope_scaling"]
    return {**config, "rope_scaling": {**rope, "long_factor": rope["short_factor"], "short_factor": rope["long_factor"]}}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--lengths", default="4000,4096,4097,5000,20000")
    ap.add_argument("--only", default="")
    a = ap.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name, config in MODELS.items():
            if a.only not in name:
                continue
            folder = scratch / name
            write_checkpoint(name, config, folder, "float32")
            for length in map(int, a.lengths.split(",")):
                ids, long = sequence(length), length > LIMIT
                got = ours(a.phi, folder, ids, scratch)
                kinds = ["eager", "sdpa"] if length <= 5000 else ["sdpa"]
                errors = {kind: error(got, transformers_logits(config, ids, long, kind, LAST)) for kind in kinds}
                other = error(transformers_logits(swapped(config), ids, long, "sdpa", LAST), got)
                worst = max(worst, *errors.values())
                shown = ", ".join(f"{kind} {value:.1e}" for kind, value in errors.items())
                print(f"{name}, {length} tokens: {shown}; with the other factors {other:.1e}", flush=True)
    return worst > TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
