#!/usr/bin/env python3
"""Tokens of the real byte-level vocabularies: `phi tokenize` beside the `tokenizers` package and tiktoken.

    scripts/compare_tokens.py RANKS [--phi target/release/phi] [--lines 6000] [--only NAME]

RANKS is a folder with r50k_base.tiktoken (the vocabulary of Phi-1 to Phi-2), cl100k_base.tiktoken (Phi-4, Phi-3-small) and
o200k_base.tiktoken (Phi-4-mini), such as assets/ of the crate tiktoken-rs. For each model a tokenizer.json is made of them with the
published pre-tokenizer and added tokens, converted, and lines of many scripts, code, emoji, odd white space and control
tokens are tokenized, fifty at a time. Prints a line a model; exits 1 if a token differs.

Needs tokenizers, tiktoken, torch, safetensors, numpy.
"""
import argparse, base64, json, random, subprocess, sys, tempfile, unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_goldens import MODELS, ROOT, make_tokenizer, write_checkpoint

# model: ranks, entries of the published embedding
VOCABULARIES = {"phi-2": ("r50k_base", 51200), "phi-4": ("cl100k_base", 100352), "phi-4-mini": ("o200k_base", 200064),
                "phi-3-small-8k": ("cl100k_base", 100352)}
SPELLING = [*range(33, 127), *range(161, 173), *range(174, 256)]
SPELL = {byte: chr(byte) for byte in SPELLING} | {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in SPELLING)}


def read_ranks(path):
    lines = (line.split() for line in path.read_text().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def bpe(ranks):
    """Vocabulary and merges, as transformers makes them of ranks: all cuts of a token, best parts first."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        merges += sorted(known, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    spell = lambda token: "".join(SPELL[byte] for byte in token)
    return {"vocab": {spell(token): rank for token, rank in ranks.items()}, "merges": [f"{spell(a)} {spell(b)}" for a, b in merges]}


def make_lines(count, control):
    """Mixed lines, the same in every run."""
    rng = random.Random(7)
    letters = [chr(c) for c in range(0x20, 0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    blocks = [letters[at:at + 60] for at in range(0, len(letters), 60)]
    files = [ROOT / "tests/data/text.txt", ROOT / "README.md", *sorted((ROOT / "src").rglob("*.rs")), *sorted((ROOT / "scripts").glob("*.py"))]
    prose = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    spaces = [" ", "  ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2009", "       ", ""]
    emoji = ["👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏳️‍🌈", "1️⃣", "🤖", "é", "n̈", "ﷺ", "\u200d", "\u200b", "½", "Ⅻ", "𝔘", "\0", "\x7f"]
    odd = ["don't", "DON'T", "we'LL", "'ſ", "x1234567y", "3.14159", "1,000,000", "0xFFFF", "!!!???", "//--==", "a/b//c\n", "://", "ÀÉÎ", "ǅǈ", "camelCaseHTMLPage", "_a_b_"]
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 9)):
            kind = rng.random()
            if kind < 0.35:
                line = rng.choice(prose)
                start = rng.randrange(len(line))
                parts.append(line[start:start + rng.randint(1, 60)])
            elif kind < 0.65:
                parts.append("".join(rng.choices(rng.choice(blocks), k=rng.randint(1, 12))))
            elif kind < 0.9:
                parts.append(rng.choice(emoji + odd))
            elif control:
                parts.append(rng.choice(control))
            parts.append(rng.choice(spaces))
        yield "".join(parts)


def references(name, ranks, folder):
    """The reference's encoder, and the control tokens to mix in."""
    if name.startswith("phi-3-small"):
        import tiktoken
        pattern = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
        encoding = tiktoken.Encoding("cl100k", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return encoding.encode_ordinary, []
    from tokenizers import Tokenizer
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    control = [token["content"] for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]
    return lambda text: file.encode(text, add_special_tokens=False).ids, control


def prepare(name, ranks, size, scratch):
    """A checkpoint with the real vocabulary, as a GGUF file without tensors."""
    folder, file = scratch / name, scratch / f"{name}.gguf"
    write_checkpoint(name, MODELS[name][0], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    if name.startswith("phi-3-small"):
        lines = sorted(ranks.items(), key=lambda item: item[1])
        (folder / "cl100k_base.tiktoken").write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in lines))
    else:
        (folder / "tokenizer.json").write_text(json.dumps(make_tokenizer(name, bpe(ranks)), ensure_ascii=False))
        (folder / "tokenizer_config.json").unlink()
    return folder, file


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("ranks", type=Path)
    ap.add_argument("--phi", type=Path, default=Path("target/release/phi"))
    ap.add_argument("--lines", type=int, default=6000)
    ap.add_argument("--only", default="")
    a = ap.parse_args()
    bad = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name, (file, size) in VOCABULARIES.items():
            if a.only not in name:
                continue
            ranks = read_ranks(a.ranks / f"{file}.tiktoken")
            folder, gguf = prepare(name, ranks, size, scratch)
            subprocess.run([a.phi, "convert", folder, "--vocab-only", "--outfile", gguf], check=True, capture_output=True)
            encode, control = references(name, ranks, folder)
            lines, tokens, wrong = list(make_lines(a.lines, control)), 0, []
            for at in range(0, len(lines), 50):
                text = "\n".join(lines[at:at + 50])
                (scratch / "text").write_bytes(text.encode())
                flags = ["--no-parse-special"] if not control else []
                done = subprocess.run([a.phi, "tokenize", "-m", gguf, "-f", scratch / "text", "--no-bos", "--ids", *flags], check=True, capture_output=True)
                ours, want = json.loads(done.stdout), encode(text)
                tokens += len(want)
                if ours != want:
                    place = next((i for i, (x, y) in enumerate(zip(ours, want)) if x != y), min(len(ours), len(want)))
                    wrong.append(f"lines {at} to {at + 49}, token {place}: {ours[place:place + 4]}, there {want[place:place + 4]}")
            print(f"{'DIFFERS' if wrong else 'same   '} {name}: {len(ranks)} ranks, {len(lines)} lines, {tokens} tokens", *wrong[:5], sep="\n    " if wrong else "", flush=True)
            bad |= bool(wrong)
    return bad


if __name__ == "__main__":
    sys.exit(main())
