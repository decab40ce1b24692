#!/usr/bin/env python3
"""Run each model of the family that llama.cpp supports with phi and with llama.cpp, on files that either of them made.

    scripts/compare_llama.py BIN PATH/TO/convert_hf_to_gguf.py FOLDER [--phi target/release/phi] [--types f32,f16,Q8_0,Q4_0]

BIN has llama-quantize and llama-completion; FOLDER is what family_goldens.py --write wrote. Both programs convert and
quantize; each file is continued greedily by both, and the texts are compared. The checkpoints' context lengths are
raised and their sliding windows taken out first: llama.cpp chooses LongRoPE's factors by the allocated context and has
no window for Phi.

PhiMoE is loaded and run, but its text is not expected to be the same: llama.cpp normalises the two experts' weights
to a sum of one, where the model has SparseMixer's. Prints a line a file.
"""
import argparse, json, shutil, subprocess, sys, tempfile
from pathlib import Path

PROMPT = "The tokenizer reads a file and then"


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: " + done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return done.stdout.decode(errors="replace")


def completion(a, file):
    return run([a.bin / "llama-completion", "-m", file, "-p", PROMPT, "-n", a.n, "--temp", 0, "-no-cnv", "--ignore-eos", "-c", 512,
                "-ctk", "f32", "-ctv", "f32", "--no-display-prompt", "--no-warmup", "-t", 2])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("bin", type=Path)
    ap.add_argument("convert", type=Path)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--types", default="f32,f16,Q8_0,Q4_0")
    ap.add_argument("-n", type=int, default=24)
    a = ap.parse_args()
    bad = 0
    for source in sorted(a.folder.iterdir()):
        if "small" in source.name or source.name == "phi-tiny-moe":
            continue
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            folder = scratch / source.name
            shutil.copytree(source, folder)
            config = json.loads((folder / "config.json").read_text())
            config.update(max_position_embeddings=4096, sliding_window=None)
            if config["model_type"] != "phi":
                config.update(original_max_position_embeddings=4096)
                if config.get("rope_scaling"):
                    config["rope_scaling"].update({"original_max_position_embeddings": 4096} if config["model_type"] == "phimoe" else {})
            (folder / "config.json").write_text(json.dumps(config))
            for maker in ("phi", "llama.cpp"):
                base = scratch / f"{maker}-f32.gguf"
                if maker == "phi":
                    run([a.phi, "convert", folder, "--outtype", "f32", "--outfile", base])
                else:
                    run([sys.executable, Path(__file__).with_name("convert_peer.py"), a.convert, folder, "--outtype", "f32", "--outfile", base])
                for kind in a.types.split(","):
                    file = base
                    if kind != "f32":
                        file = scratch / f"{maker}-{kind}.gguf"
                        run([a.phi, "quantize", base, file, kind] if maker == "phi" else [a.bin / "llama-quantize", base, file, kind])
                    ours = run([a.phi, "run", "-m", file, "-p", PROMPT, "-n", a.n, "--temp", 0, "-no-cnv", "--ignore-eos", "--cache-type-k", "f32", "--cache-type-v", "f32"])
                    # That program often ends before all of its output is written: the longest of several is taken.
                    theirs = ""
                    for _ in range(12):
                        theirs = max(theirs, completion(a, file).strip(), key=len)
                        if theirs == ours.strip():
                            break
                    # A cut output says nothing about what it lacks.
                    whole = theirs.rstrip("\ufffd")
                    cut = theirs != ours.strip() and whole and ours.strip().startswith(whole)
                    same = ours.strip() == theirs or cut
                    start = next((i for i, (x, y) in enumerate(zip(ours.strip(), theirs.strip())) if x != y), min(len(ours.strip()), len(theirs.strip())))
                    moe = config["model_type"] == "phimoe"
                    print(f"{'same   ' if same else 'runs   ' if moe else 'DIFFERS'} {source.name} {kind} made by {maker}"
                          + (f", whose output ends after {len(theirs)} of {len(ours.strip())} characters" if cut else "" if same else f": from character {start} of {len(ours.strip())}"), flush=True)
                    bad += not same and not moe
    return bool(bad)


sys.exit(main())
