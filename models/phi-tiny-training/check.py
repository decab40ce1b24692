#!/usr/bin/env python3
"""Check that phi-tiny gives every trained answer word for word, in transformers float32.

    check.py FOLDER [FILE.gguf ...] [--out tests/golden/phi-tiny-answers.json]

Each GGUF file's weights are dequantized with the gguf package and loaded in place of the checkpoint's own. The margin is
the smallest distance, over all tokens of all answers, between the logit of the trained token and the best other one; a
positive margin at every token is the same as the greedy answer being the trained one.
"""
import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers import Phi3ForCausalLM

from dialogues import IGNORED, Encoder, Material, off_topic, topics

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {"attn_norm": "input_layernorm", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
         "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}


def weights_of(path):
    """A GGUF file's tensors as float32 under the checkpoint's names."""
    import gguf

    state = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0].startswith("rope_factors"):
            continue
        name = NAMES[parts[0]] if len(parts) == 1 else f"model.layers.{parts[1]}.{LAYER[parts[2]]}"
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        state[name + ".weight"] = torch.from_numpy(values.reshape([int(n) for n in reversed(tensor.shape)]).copy())
    return state


@torch.no_grad()
def margins(model, sequences, at_once=2000):
    """The smallest margin of each (ids, labels), computed in padded batches of about `at_once` tokens."""
    result = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    while order:
        rows = []
        # Padding must not reach the original context, or short sequences would get the long factors.
        while order and (not rows or (width := len(sequences[order[0]][0])) <= 250 and len(rows) * width < at_once):
            rows.append(order.pop(0))
        width = max(len(sequences[i][0]) for i in rows)
        ids = torch.tensor([sequences[i][0] + [0] * (width - len(sequences[i][0])) for i in rows])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        for row, i in enumerate(rows):
            labels = torch.tensor(sequences[i][1][1:])
            wanted = labels != IGNORED
            logits = model.lm_head(hidden[row, : len(labels)][wanted])
            right = logits.gather(1, labels[wanted][:, None])[:, 0]
            logits.scatter_(1, labels[wanted][:, None], -torch.inf)
            result[i] = (right - logits.max(dim=1).values).min().item()
    return result


def cases(encoder):
    """Named groups of (question, ids, labels)."""
    single, loose, unknown, long = [], [], [], []
    for topic in topics():
        for question in topic.questions:
            for group, keep in ((single, False), (loose, True)):
                prompt, answer = encoder.turn(question, topic.answer, keep)
                group.append((question, prompt + answer, [IGNORED] * len(prompt) + answer))
    templates, fallback = off_topic()
    for filled in templates:
        for question in filled[:: max(1, len(filled) // 3)]:
            prompt, answer = encoder.turn(question, fallback)
            unknown.append((question, prompt + answer, [IGNORED] * len(prompt) + answer))
    material = Material(encoder, seed=99)
    for length in (200, 240, 270, 300, 400, 600, 800, 1000, 2000):
        for _ in range(2):
            long.append((f"conversation of {length} tokens", *material.conversation(length)))
    return {"questions": single, "with line breaks": loose, "off topic": unknown, "conversations": long}


def report(folder, files):
    """Print how many sequences are exact and the smallest margins; true when every trained question is exact everywhere."""
    encoder = Encoder(folder)
    model = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    groups = cases(encoder)
    exact = True
    for path in [None, *files]:
        if path:
            missing = model.load_state_dict(weights_of(path), strict=False)
            assert not missing.missing_keys and not missing.unexpected_keys, missing
        for name, group in groups.items():
            if path and name in ("with line breaks", "conversations"):
                continue
            found = margins(model, [(ids, labels) for _, ids, labels in group])
            wrong = [(m, case[0]) for m, case in zip(found, group) if m <= 0]
            exact &= name != "questions" or not wrong
            print(f"{path.name if path else 'checkpoint'}: {name}: {len(group) - len(wrong)}/{len(group)} exact, "
                  f"smallest margin {min(found):.2f}" + "".join(f"\n    {m:.2f} {q}" for m, q in sorted(wrong)[:5]), flush=True)
    return exact


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("folder", type=Path)
    ap.add_argument("files", type=Path, nargs="*")
    ap.add_argument("--out", type=Path, help="write the questions and their answers as JSON")
    a = ap.parse_args()
    torch.set_num_threads(2)
    exact = report(a.folder, a.files)
    if a.out:
        pairs = [{"question": q, "answer": t.answer} for t in topics() for q in t.questions]
        a.out.write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n")
    raise SystemExit(not exact)


if __name__ == "__main__":
    main()
