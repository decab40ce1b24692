#!/usr/bin/env python3
"""Compare `phi convert` with llama.cpp's convert_hf_to_gguf.py, key by key and tensor by tensor.

    scripts/compare_convert.py PATH/TO/convert_hf_to_gguf.py [--phi target/release/phi] [--checkpoint models/phi-tiny]
                               [--only REGEX] [--write-golden tests/golden/convert-phi-tiny.json]
    scripts/compare_convert.py PATH/TO/convert_hf_to_gguf.py --family FOLDER      what family_goldens.py --write wrote

Converts the checkpoint, and variations made of it, with both and compares metadata (key, type, value, order) and
tensors (order, name, type, shape, bytes). Keys of phi's own (docs/formats.md) may be there in addition. Prints a line
a case; exits 1 if anything differs. --write-golden writes what convert_hf_to_gguf.py gives for the checkpoint itself,
the values that tests/convert.rs checks.

Needs a Python with what convert_hf_to_gguf.py needs (torch, transformers, sentencepiece, gguf) and safetensors.
"""
import argparse, hashlib, json, mmap, re, shutil, struct, subprocess, sys, tempfile
from pathlib import Path

BLOCK = {0: (1, 4), 1: (1, 2), 8: (32, 34), 30: (1, 2)}
NAMES = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# That program takes the heads of a PhiMoE for a share of its hidden state (docs/formats.md).
HEADS = re.compile(r"key phimoe\.(rope\.dimension_count|attention\.(key|value)_length)\b")
OWN_KEYS = ("phi.", "tokenizer.huggingface.json")


def read_gguf(path):
    """Metadata as {key: (type, value)}, tensors as {name: "TYPE shape sha256"}, both in file order."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = 4

    def number(code):
        nonlocal at
        value = struct.unpack_from("<" + code, data, at)[0]
        at += struct.calcsize(code)
        return value

    def text():
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length:at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            element, count = number("I"), number("Q")
            return element, [value(element) for _ in range(count)]
        return number(SCALARS[kind])

    assert data[:4] == b"GGUF" and number("I") == 3
    tensor_count, key_count = number("Q"), number("Q")
    metadata = {}
    for _ in range(key_count):
        key = text()
        kind = number("I")
        metadata[key] = (kind, value(kind))
    infos = []
    for _ in range(tensor_count):
        name = text()
        shape = [number("Q") for _ in range(number("I"))]
        infos.append((name, shape, number("I"), number("Q")))
    base = (at + 31) // 32 * 32
    tensors = {}
    for name, shape, kind, offset in infos:
        elements, size = 1, 0
        for dim in shape:
            elements *= dim
        per, bytes_ = BLOCK[kind]
        size = elements // per * bytes_
        digest = hashlib.sha256(data[base + offset:base + offset + size]).hexdigest()
        tensors[name] = f"{NAMES[kind]} {'x'.join(map(str, shape))} {digest}"
    return metadata, tensors


def array_digest(element, items):
    """"TYPE LENGTH SHA256" of an array's elements as they lie in the file (texts with their lengths)."""
    pack = (lambda v: struct.pack("<Q", len(v.encode())) + v.encode()) if element == 8 else (lambda v: struct.pack("<" + SCALARS[element], v))
    return f"{element} {len(items)} {hashlib.sha256(b''.join(map(pack, items))).hexdigest()}"


def differences(ours, theirs):
    """What differs, one line each."""
    lines = []
    (metadata, tensors), (their_metadata, their_tensors) = ours, theirs
    for key, value in their_metadata.items():
        if key not in metadata:
            lines.append(f"key {key} is missing (there: {str(value)[:80]})")
        elif repr(metadata[key]) != repr(value):
            lines.append(f"key {key}: {str(metadata[key])[:80]}, there {str(value)[:80]}")
    for key in metadata:
        if key not in their_metadata and not key.startswith(OWN_KEYS):
            lines.append(f"key {key} is not there")
    common = [key for key in metadata if key in their_metadata]
    if common != list(their_metadata) and not lines:
        lines.append("the keys are in another order")
    for name, value in their_tensors.items():
        if tensors.get(name) != value:
            lines.append(f"tensor {name}: {tensors.get(name)}, there {value}")
    lines += [f"tensor {name} is not there" for name in tensors if name not in their_tensors]
    if list(tensors) != list(their_tensors) and not lines:
        lines.append("the tensors are in another order")
    return lines


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False))


def resave(folder, dtype, name="model.safetensors", drop=()):
    """Saves all weights again as one file of another type."""
    import torch
    from safetensors.torch import load_file, save_file
    tensors = {}
    for part in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(part))
        part.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file({k: v.to(getattr(torch, dtype)).contiguous() for k, v in tensors.items() if k not in drop}, folder / name)


def extremes(folder):
    """F32 weights with what does not fit F16, and blocks that are hard for Q8_0."""
    import torch
    from safetensors.torch import load_file, save_file
    resave(folder, "float32")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "down_proj" in name:
            flat = tensor.view(-1)
            flat[:8] = torch.tensor([1e5, -7e4, 65519.9, 65520.0, 1e-8, -3e-8, 6e-5, 0.0])
            flat[32:64] = 0.0
            flat[64:96] = torch.arange(32) - 15.5
            flat[96:128] = 1e-30
            flat[128:160] = torch.linspace(-127.5, 127.5, 32)
            flat[160:192] = 3e-39
    save_file(tensors, folder / "model.safetensors")


def cases():
    """(name, folder's name, outtype, change): change edits a copy of the checkpoint in place."""
    config = lambda change: lambda f: edit_json(f / "config.json", change)
    tokenizer_config = lambda change: lambda f: edit_json(f / "tokenizer_config.json", change)

    def like_4k(c):
        c.update(rope_scaling=None, sliding_window=2047, max_position_embeddings=4096, _name_or_path="Phi-3-mini-4k-instruct")

    def tied(f):
        edit_json(f / "config.json", lambda c: c.update(tie_word_embeddings=True))
        resave(f, "bfloat16", drop=("lm_head.weight",))

    def bare(c):
        for key in ("rms_norm_eps", "rope_theta", "sliding_window", "original_max_position_embeddings", "pad_token_id"):
            c.pop(key, None)
        c["_name_or_path"] = "/home/somebody/a/b"

    def card(f):
        (f / "README.md").write_text(
            "---\nlicense: mit\nlicense_link: https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE\n"
            "language:\n- multilingual\npipeline_tag: text-generation\ntags:\n- nlp\n- code\nwidget:\n- messages:\n  - role: user\n"
            "    content: Can you provide ways to eat combinations of bananas and dragonfruits?\nlibrary_name: transformers\n"
            "base_model:\n- microsoft/Phi-3.5-mini-instruct\n- https://huggingface.co/org/other-7B\ndatasets: [a/b-data]\n---\n# Phi\n")

    def sampling(f):
        edit_json(f / "generation_config.json", lambda g: g.update(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, eos_token_id=[2]))

    def template_processing(f):
        token = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
        seq = lambda s: {"Sequence": {"id": s, "type_id": 0}}
        edit_json(f / "tokenizer.json", lambda t: t.update(post_processor={
            "type": "TemplateProcessing", "single": [token("<s>"), seq("A")], "pair": [token("<s>"), seq("A"), token("<s>"), seq("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}))

    def ends_with_end(f):
        token = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
        seq = lambda s: {"Sequence": {"id": s, "type_id": 0}}
        edit_json(f / "tokenizer.json", lambda t: t.update(post_processor={
            "type": "TemplateProcessing", "single": [token("<s>"), seq("A"), token("<|end|>")],
            "pair": [token("<s>"), seq("A"), token("<|end|>"), seq("B"), token("<|end|>")],
            "special_tokens": {}}))

    def jinja(f):
        edit_json(f / "tokenizer_config.json", lambda c: c.pop("chat_template"))
        (f / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}\n")

    def no_tokenizer_json(f):
        (f / "tokenizer.json").unlink()

    def named_templates(c):
        c["chat_template"] = [{"name": "default", "template": "A"}, {"name": "tool-use", "template": "B"}]

    def old_names(c):
        scaling = c.get("rope_scaling") or {}
        if scaling:
            scaling["type"] = "su"

    def dict_tokens(c):
        c["bos_token"] = {"content": "<s>", "lstrip": False}
        c["add_bos_token"] = True

    same = lambda f: None
    return [
        ("as it is, auto", None, "auto", same),
        ("as it is, f32", None, "f32", same),
        ("as it is, f16", None, "f16", same),
        ("as it is, bf16", None, "bf16", same),
        ("as it is, q8_0", None, "q8_0", same),
        ("tied embeddings", None, "f16", tied),
        ("like Phi-3-mini-4k", None, "f16", config(like_4k)),
        ("fields left out, a path as name", "Phi-3-medium-128k-instruct-v2", "bf16", config(bare)),
        ("folder named with spaces", "My Phi 3 model", "f16", config(lambda c: c.pop("_name_or_path", None))),
        ("folder named org-3.8B-chat", "Org-Phi3-20M-chat-v1.1", "f16", config(lambda c: c.pop("_name_or_path", None))),
        ("rope_scaling type su", None, "f16", config(old_names)),
        ("single f32 file, auto", None, "auto", lambda f: resave(f, "float32")),
        ("single f32 file, bf16", None, "bf16", lambda f: resave(f, "float32")),
        ("single f16 file, auto", None, "auto", lambda f: resave(f, "float16")),
        ("single f16 file, f32", None, "f32", lambda f: resave(f, "float16")),
        ("single f16 file, bf16", None, "bf16", lambda f: resave(f, "float16")),
        ("single f16 file, q8_0", None, "q8_0", lambda f: resave(f, "float16")),
        ("extreme numbers, f16", None, "f16", extremes),
        ("extreme numbers, bf16", None, "bf16", extremes),
        ("extreme numbers, q8_0", None, "q8_0", extremes),
        ("model card", None, "f16", card),
        ("sampling settings", None, "f16", sampling),
        ("no generation_config.json", None, "f16", lambda f: (f / "generation_config.json").unlink()),
        ("post-processor adds <s>", None, "f16", template_processing),
        ("post-processor adds <s> and <|end|>", None, "f16", ends_with_end),
        ("chat_template.jinja", None, "f16", jinja),
        ("named chat templates", None, "f16", tokenizer_config(named_templates)),
        ("special tokens as objects", None, "f16", tokenizer_config(dict_tokens)),
        ("no tokenizer.json", None, "f16", no_tokenizer_json),
        ("no added_tokens.json", None, "f16", lambda f: (f / "added_tokens.json").unlink()),
        ("vocabulary only", None, "vocab", same),
        ("a name given", None, "name", same),
    ]


def convert(command, folder, outtype, out):
    flags = ["--outfile", str(out)]
    if outtype == "vocab":
        flags += ["--vocab-only"]
    elif outtype == "name":
        flags += ["--model-name", "Other Name"]
    else:
        flags += ["--outtype", outtype]
    done = subprocess.run([*command, str(folder), *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return read_gguf(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("peer", type=Path)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--checkpoint", type=Path, default=Path("models/phi-tiny"))
    ap.add_argument("--only", default="")
    ap.add_argument("--family", type=Path, help="a folder of checkpoints to compare instead, each in every type")
    ap.add_argument("--write-golden", type=Path)
    a = ap.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        peer = [sys.executable, str(a.peer)]
        if a.write_golden:
            weights = (a.checkpoint / "model.safetensors").read_bytes()
            golden = {"weights": hashlib.sha256(weights).hexdigest()}
            for outtype in ("f32", "f16", "bf16", "q8_0"):
                metadata, tensors = convert(peer, a.checkpoint, outtype, scratch / "golden.gguf")
                short = {k: v if v[0] != 9 else (9, array_digest(*v[1])) for k, v in metadata.items()}
                golden[outtype] = {"metadata": short, "tensors": tensors}
            a.write_golden.parent.mkdir(parents=True, exist_ok=True)
            a.write_golden.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
            return 0
        if a.family:
            peer.insert(1, str(Path(__file__).with_name("convert_peer.py")))
            # Phi-3-small is not in llama.cpp.
            folders = [f for f in sorted(a.family.iterdir()) if "small" not in f.name]
            for folder, outtype in ((f, t) for f in folders for t in ("auto", "f32", "f16", "bf16", "q8_0", "vocab")):
                name = f"{folder.name}, {outtype}"
                if not re.search(a.only, name):
                    continue
                found = differences(convert([str(a.phi), "convert"], folder, outtype, scratch / "ours.gguf"),
                                    convert(peer, folder, outtype, scratch / "theirs.gguf"))
                found = [line for line in found if folder.name != "phi-tiny-moe" or not HEADS.match(line)]
                print(f"{'DIFFERS' if found else 'same   '} {name}", *found[:8], sep="\n    " if found else "", flush=True)
                bad += bool(found)
            return bool(bad)
        for number, (name, folder_name, outtype, change) in enumerate(cases()):
            if not re.search(a.only, name):
                continue
            folder = scratch / str(number) / (folder_name or a.checkpoint.resolve().name)
            shutil.copytree(a.checkpoint, folder, ignore=shutil.ignore_patterns("*.gguf", "*.pt"))
            change(folder)
            try:
                found = differences(convert([str(a.phi), "convert"], folder, outtype, scratch / "ours.gguf"),
                                    convert(peer, folder, outtype, scratch / "theirs.gguf"))
            except RuntimeError as error:
                found = [str(error)]
            print(f"{'DIFFERS' if found else 'same   '} {name}", *found[:8], sep="\n    " if found else "", flush=True)
            bad += bool(found)
            shutil.rmtree(scratch / str(number))
    return bool(bad)


sys.exit(main())
