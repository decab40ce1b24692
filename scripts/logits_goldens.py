#!/usr/bin/env python3
"""Reference logits of a checkpoint folder from Hugging Face transformers: float32, eager attention, no cache.

    scripts/logits_goldens.py models/phi-tiny [--out tests/golden/phi-tiny-logits.json] [--text tests/data/text.txt]

Three prompts: twenty tokens of plain text, a chat prompt, and 320 tokens of text, which is beyond
original_max_position_embeddings of phi-tiny. For each: the token ids, and for the last four positions the ten highest
logits as [id, logit], the l2 norm and the mean of all logits.

Needs: pip install torch transformers tokenizers safetensors
"""
import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

LAST, TOP = 4, 10


def reference(model, name, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    entry = {"name": name, "ids": ids, "positions": [], "top10": [], "l2": [], "mean": []}
    for position in range(len(ids) - LAST, len(ids)):
        values, tokens = logits[position].topk(TOP)
        entry["positions"].append(position)
        entry["top10"].append([[int(t), round(float(v), 5)] for t, v in zip(tokens, values)])
        entry["l2"].append(round(float(logits[position].norm()), 4))
        entry["mean"].append(round(float(logits[position].mean()), 6))
    return entry


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("checkpoint", type=Path)
    ap.add_argument("--out", type=Path, default=Path("tests/golden/phi-tiny-logits.json"))
    ap.add_argument("--text", type=Path, default=Path("tests/data/text.txt"))
    a = ap.parse_args()
    tokenizer = Tokenizer.from_file(str(a.checkpoint / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(a.checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    text = tokenizer.encode(a.text.read_text(), add_special_tokens=False).ids
    chat = "<|user|>\nCan you introduce .NET<|end|>\n<|assistant|>\n"
    prompts = [("text of 20 tokens", text[:20]),
               ("chat", tokenizer.encode(chat, add_special_tokens=False).ids),
               ("text of 320 tokens", text[:320])]
    entries = [json.dumps(reference(model, name, ids)) for name, ids in prompts]
    a.out.write_text("[\n" + ",\n".join(entries) + "\n]\n")


if __name__ == "__main__":
    main()
