#!/usr/bin/env python3
"""Runs llama.cpp's convert_hf_to_gguf.py for models whose vocabulary it has not seen.

    scripts/convert_peer.py PATH/TO/convert_hf_to_gguf.py FOLDER [its options]

That program knows byte-level pre-tokenizers by a hash of the tokens of one text, so a small vocabulary of the published
structure is refused. Here the name is told by the pattern in tokenizer.json instead; nothing else is changed.
"""
import runpy, sys
from pathlib import Path


def name_by_pattern(model, _tokenizer):
    text = (model.dir_model / "tokenizer.json").read_text()
    return "gpt-4o" if r"\\p{Lu}" in text else "dbrx" if r"\\p{N}{1,3}" in text else "phi-2"


script = sys.argv[1]
sys.path.insert(0, str(Path(script).parent))
sys.argv = sys.argv[1:]
from conversion import base

base.TextModel.get_vocab_base_pre = name_by_pattern
runpy.run_path(script, run_name="__main__")
