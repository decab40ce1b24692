#!/usr/bin/env python3
"""Train phi-tiny's SentencePiece vocabulary and write its tokenizer files and configuration.

    make_tokenizer.py FOLDER [--chat-template FILE.jinja]

The vocabulary is a byte-pair one with byte fallback, trained on questions.txt, off-topic.txt and prose.txt beside this
script. The added tokens, their flags and the chat template are those of Phi-3.5-mini-instruct, with ids that follow the
small vocabulary. An existing chat template in FOLDER/tokenizer_config.json is kept when none is given.
"""
import argparse, json, re, tempfile
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sp
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

HERE = Path(__file__).resolve().parent
PIECES = 1472  # SentencePiece entries: 3 control tokens, 256 bytes, the merges and the single characters
VOCABULARY = 1504  # rows of the embedding; the last of them belong to no token, as in Phi-3.5 (32,064 rows, 32,011 tokens)
ADDED = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
         "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 256, 4, 4, 2, 512
ORIGINAL_CONTEXT, CONTEXT = 256, 4096


def put(folder, name, value):
    (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def corpus():
    """Lines of text for the vocabulary, in the characters the model will meet."""
    for name in ("questions.txt", "off-topic.txt", "prose.txt"):
        for line in (HERE / name).read_text().splitlines():
            line = re.sub(r"^= |\{\w+\}", "", line)
            if line and not line.startswith("#"):
                yield line
                yield line.lower()


def train_vocabulary(folder):
    with tempfile.TemporaryDirectory() as scratch:
        prefix = Path(scratch) / "vocabulary"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_prefix=str(prefix), model_type="bpe", vocab_size=PIECES,
            byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
            add_dummy_prefix=True, remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
            character_coverage=0.9995, num_threads=1, minloglevel=2)
        model = sp.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    model.trainer_spec.ClearField("model_prefix")
    model.trainer_spec.ClearField("input")
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return [(p.piece, p.score) for p in model.pieces]


def write_tokenizer(folder, template):
    pieces = train_vocabulary(folder)
    assert len(pieces) == PIECES and pieces[3][0] == "<0x00>"
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces[259:]:
        pairs = [(piece[:k], piece[k:], score) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    merges = [(a, b) for a, b, _ in sorted(merges, key=lambda pair: pair[2], reverse=True)]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [(0, "<unk>", False, True), (1, "<s>", False, True), (2, "</s>", True, False)]  # id, text, rstrip, special
    special += [(PIECES + i, text, i > 0, True) for i, text in enumerate(ADDED)]
    tok.add_tokens([AddedToken(t, rstrip=r, normalized=False, special=s) for _, t, r, s in special])
    tok.save(str(folder / "tokenizer.json"))
    decoder = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": r, "single_word": False, "special": s}
               for i, t, r, s in special}
    put(folder, "tokenizer_config.json", {
        "add_bos_token": False, "add_eos_token": False, "added_tokens_decoder": decoder, "bos_token": "<s>",
        "chat_template": template, "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "legacy": False,
        "model_max_length": CONTEXT, "pad_token": "<|endoftext|>", "padding_side": "left", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": False})
    put(folder, "added_tokens.json", {text: PIECES + i for i, text in enumerate(ADDED)})
    entry = lambda text: {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    put(folder, "special_tokens_map.json", {"bos_token": entry("<s>"), "eos_token": entry("<|endoftext|>"),
                                            "pad_token": entry("<|endoftext|>"), "unk_token": entry("<unk>")})


def write_config(folder):
    end = PIECES + ADDED.index("<|endoftext|>")
    pairs = HIDDEN // HEADS // 2
    ramp = np.linspace(0, 1, pairs)
    # Smooth curves in the manner of the published factors: near 1 for the fast pairs, up to the context ratio for the slow ones.
    short = [round(float(x), 4) for x in 1 + 1.25 * ramp**2]
    long = [round(float(x), 4) for x in 1 + (CONTEXT / ORIGINAL_CONTEXT - 1) / (1 + np.exp(-12 * (ramp - 0.45)))]
    put(folder, "config.json", {
        "_name_or_path": "phi-tiny", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": end, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": FFN, "max_position_embeddings": CONTEXT, "model_type": "phi3",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": ORIGINAL_CONTEXT, "pad_token_id": end, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": long, "short_factor": short, "type": "longrope"}, "rope_theta": 10000.0,
        "sliding_window": 2 * CONTEXT, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.3", "use_cache": True, "vocab_size": VOCABULARY})
    stops = [PIECES + ADDED.index(t) for t in ("<|end|>", "<|assistant|>", "<|endoftext|>")]
    put(folder, "generation_config.json", {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": stops,
                                           "pad_token_id": end, "transformers_version": "4.43.3"})


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("folder", type=Path)
    ap.add_argument("--chat-template", type=Path)
    a = ap.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    if a.chat_template:
        template = a.chat_template.read_text()
    else:
        template = json.loads((a.folder / "tokenizer_config.json").read_text())["chat_template"]
    write_config(a.folder)
    write_tokenizer(a.folder, template)


if __name__ == "__main__":
    main()
