#!/usr/bin/env python3
"""Train phi-tiny on the questions beside this script, on the CPU.

    train.py FOLDER [--steps 1000] [--threads 2] [--seed 35]

FOLDER holds config.json and the tokenizer (make_tokenizer.py); model.safetensors is written there in bfloat16.
The weights carry random noise in every training step, block by block in proportion to their size, as quantization does,
so that the answers stay the same in every quantized form.
"""
import argparse
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait starve a shared machine

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Phi3ForCausalLM

from check import report
from dialogues import IGNORED, Encoder, Material

BLOCK = 32  # weights that share a scale in the finest quantized formats
NOISE = 0.30  # the largest noise, relative to the root mean square of a block; Q4_K has about 0.07, Q2_K about 0.3


def batch(sequences):
    """Right-padded ids and labels [sequences, tokens]; causal attention needs no mask for padding at the end."""
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    labels = torch.full((len(sequences), width), IGNORED)
    for i, (x, y) in enumerate(sequences):
        ids[i, : len(x)], labels[i, : len(y)] = torch.tensor(x), torch.tensor(y)
    return ids, labels


def draw(material, step):
    """One batch of about 2,000 tokens and the position of its first token.

    Transformers takes the long factors of LongRoPE as soon as a position lies beyond the original context, so a shifted
    start trains them on short sequences too; attention itself depends on distances only.
    """
    r = material.random
    kind = step % 6
    if kind == 5:
        return batch([material.text() for _ in range(20)]), 0
    if kind == 4:
        length = int(math.exp(r.uniform(math.log(300), math.log(1500))))
        if r.random() < 0.04:
            length = 3900
        return batch([material.conversation(length) for _ in range(max(1, 2400 // length))]), 0
    if kind == 3:
        return batch([material.conversation(250) for _ in range(9)]), 300 if r.random() < 0.3 else 0
    sequences = [material.conversation(1) for _ in range(28)]
    return batch(sequences), 300 if kind == 2 else 0


@torch.no_grad()
def disturb(weights, level):
    """Add noise of `level` times the root mean square of each block; returns the clean weights."""
    clean = [w.detach().clone() for w in weights]
    for w in weights:
        blocks = w.view(-1, BLOCK)
        size = blocks.pow(2).mean(dim=1, keepdim=True).sqrt()
        blocks.add_(torch.randn_like(blocks) * size * level)
    return clean


def loss_of(model, ids, labels, start):
    """Mean cross-entropy over the labelled tokens; the head runs only where there is a label."""
    positions = torch.arange(start, start + ids.shape[1]).unsqueeze(0)
    wanted = labels[:, 1:] != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][wanted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])


@torch.no_grad()
def initialize(model):
    """Unit-gain matrices, the ones that write to the residual stream smaller with depth."""
    depth = model.config.num_hidden_layers
    for name, w in model.named_parameters():
        if w.dim() == 2:
            gain = (2 * depth) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
            w.normal_(0.0, 0.2 if "embed" in name else gain * w.shape[1] ** -0.5)


def save(model, folder):
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    path = folder / "model.safetensors"
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)


def train(folder, steps, seed, resume):
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    model = Phi3ForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    initialize(model)
    if resume:
        model.load_state_dict({k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()})
    material = Material(Encoder(folder), seed)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    peak = 2e-3
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=peak, betas=(0.9, 0.98))
    began, running = time.time(), {}
    for step in range(steps):
        done = step / steps
        rate = peak * min(1, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        (ids, labels), start = draw(material, step)
        ramp = 1 if resume else min(1, max(0, (done - 0.1) / 0.5))
        clean = disturb(matrices, material.random.uniform(0.2, 1) * NOISE * ramp)
        loss = loss_of(model, ids, labels, start)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for w, c in zip(matrices, clean):
                w.copy_(c)
        optimizer.step()
        running[step % 6] = loss.item() if step < 6 else 0.9 * running[step % 6] + 0.1 * loss.item()
        if step % 60 == 59:
            shown = " ".join(f"{running[k]:.4f}" for k in sorted(running))
            print(f"{time.time() - began:6.0f} s  step {step + 1:5}  loss {shown}", flush=True)
        if step % 300 == 299:
            save(model, folder)
    save(model, folder)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("folder", type=Path)
    ap.add_argument("--steps", type=int, default=1000)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=35)
    ap.add_argument("--resume", action="store_true", help="start from the weights in FOLDER")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    train(a.folder, a.steps, a.seed, a.resume)
    report(a.folder, [])


if __name__ == "__main__":
    main()
