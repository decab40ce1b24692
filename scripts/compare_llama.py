#!/usr/bin/env python3
"""Run each model of the family that llama.cpp supports with phi and with llama.cpp, on files that either of them made.

    scripts/compare_llama.py BIN PATH/TO/convert_hf_to_gguf.py FOLDER [--phi target/release/phi] [--types f32,f16,Q8_0,Q4_0,Q4_K_M]

BIN has llama-quantize; FOLDER is what `family_goldens.py --write FOLDER [--wide]` wrote. Both programs convert and quantize;
llama.cpp continues each prompt greedily, phi computes the logits of the same tokens, and a step counts as the same if both
have the same highest logit. The first one that differs is shown with the distance of the two logits in question: in each
program, and in float32 on the same weights dequantized. Beside it the noise: how far, on average over that text (rms), a
difference of two logits is off in either program, from that float32 result (where all tokens are the same: in one from the other). The checkpoints' context lengths are raised and their
sliding windows taken out first: llama.cpp chooses LongRoPE's factors by the allocated context and has no window for Phi.

PhiMoE is loaded and run, but its tokens are not expected to be the same: llama.cpp has neither its routing nor its norms, as
llama_differences.py shows.

Needs llama_cpp (llama-cpp-python), whose libraries LLAMA_CPP_LIB_PATH may name, and what convert_hf_to_gguf.py needs.
"""
import argparse, json, shutil, subprocess, sys, tempfile
from pathlib import Path

import llama_cpp
import numpy as np

PROMPTS = ["The tokenizer reads a file and then", "Weights: 1.5, -2.25 and\n", "Il était une fois", "fn main() {\n    let"]


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: " + done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return done.stdout.decode(errors="replace")


class Theirs:
    """llama.cpp, with an f32 KV cache."""

    def __init__(self, file):
        self.model = llama_cpp.Llama(str(file), n_ctx=512, n_batch=64, logits_all=True, type_k=0, type_v=0, verbose=False, n_threads=2)

    def tokens(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def greedy(self, ids, count):
        """The tokens that follow `ids`, and the logits that each was chosen by, `[count, vocab]`."""
        self.model.reset()
        rows, new = [], list(ids)
        for _ in range(count):
            self.model.eval(new)
            rows.append(self.model.scores[self.model.n_tokens - 1].astype(np.float64))
            new = [int(np.argmax(rows[-1]))]
            ids = ids + new
        return ids, np.array(rows)


def logits(phi, file, ids, last, vocabulary):
    """phi's logits of the last tokens of `ids`, `[last, vocabulary]`."""
    text = run([phi, "logits", "-m", file, "--ids", ",".join(map(str, ids)), "--last", last, "--top", vocabulary, "--json"])
    out = np.full((last, vocabulary), -np.inf)
    for row, position in zip(out, json.loads(text)["positions"]):
        for token in position["top"]:
            row[token["id"]] = token["logit"]
    return out


def off(got, want):
    """How far a difference of two logits is off, rms: the spread of the errors, times sqrt(2)."""
    return float(np.sqrt(2 * np.mean(np.var(got - want, axis=1))))


def compare(phi, file, exact, prompts, count):
    """What to print about a file; `exact` has its weights in F32."""
    theirs = Theirs(file)
    same, first, noise = 0, None, 0.0
    for text in prompts:
        ids = theirs.tokens(text)
        if ids != json.loads(run([phi, "tokenize", "-m", file, "-p", text, "--no-bos", "--no-escape", "--json"]))["ids"]:
            return False, f"tokenizes {text!r} otherwise"
        all_ids, rows = theirs.greedy(ids, count)
        ours = logits(phi, file, all_ids[:-1], count, rows.shape[1])
        noise = max(noise, off(ours, rows))
        steps = int(np.argmin([*(np.argmax(ours, axis=1) == all_ids[len(ids):]), False]))
        same += steps
        if steps < count and first is None:
            first = text, steps, ours, rows, logits(phi, exact, all_ids[:-1], count, rows.shape[1])
    if first is None:
        return True, f"{same} tokens; the two differ by {noise:.5f}"
    text, step, ours, rows, want = first
    a, b = int(np.argmax(rows[step])), int(np.argmax(ours[step]))
    gap = lambda x: x[step][a] - x[step][b]
    return False, (f"{same} of {count * len(prompts)} tokens; {text!r}, step {step}: their token over ours by {gap(rows):+.5f} there, {gap(ours):+.5f} here, "
                   f"{gap(want):+.5f} in f32; noise {off(rows, want):.5f} there, {off(ours, want):.5f} here")


def widened(source, folder):
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(max_position_embeddings=4096, sliding_window=None)
    if config["model_type"] != "phi":
        config.update(original_max_position_embeddings=4096)
        if config.get("rope_scaling"):
            config["rope_scaling"].update({"original_max_position_embeddings": 4096} if config["model_type"] == "phimoe" else {})
    (folder / "config.json").write_text(json.dumps(config))
    return config


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("bin", type=Path)
    ap.add_argument("convert", type=Path)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--types", default="f32,f16,Q8_0,Q4_0,Q4_K_M")
    ap.add_argument("--only", default="")
    ap.add_argument("-n", type=int, default=32)
    a = ap.parse_args()
    bad = 0
    for source in sorted(a.folder.iterdir()):
        # llama.cpp has no Phi-3-small, and no PhiMoE whose heads are not a share of the hidden state.
        if "small" in source.name or source.name == "phi-tiny-moe" or a.only not in source.name:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            folder = scratch / source.name
            config = widened(source, folder)
            for maker in ("phi", "llama.cpp"):
                base = scratch / f"{maker}-f32.gguf"
                if maker == "phi":
                    run([a.phi, "convert", folder, "--outtype", "f32", "--outfile", base])
                else:
                    run([sys.executable, Path(__file__).with_name("convert_peer.py"), a.convert, folder, "--outtype", "f32", "--outfile", base])
                for kind in a.types.split(","):
                    file, exact = base, base
                    if kind != "f32":
                        file, exact = scratch / f"{maker}-{kind}.gguf", scratch / "exact.gguf"
                        run([a.phi, "quantize", base, file, kind] if maker == "phi" else [a.bin / "llama-quantize", base, file, kind])
                        run([a.phi, "quantize", "--allow-requantize", file, exact, "F32"])
                    same, what = compare(a.phi, file, exact, PROMPTS, a.n)
                    moe = config["model_type"] == "phimoe"
                    print(f"{'same   ' if same else 'runs   ' if moe else 'DIFFERS'} {source.name} {kind} made by {maker}: {what}", flush=True)
                    bad += not same and not moe
    return bool(bad)


sys.exit(main())
