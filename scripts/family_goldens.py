#!/usr/bin/env python3
"""Tiny checkpoints of every model of the Phi family, and the logits that transformers (float32) gives for them.

    scripts/family_goldens.py --golden tests/golden/family.json      what tests/family.rs checks
    scripts/family_goldens.py --write FOLDER [--wide]                the checkpoints themselves, one folder a model
    scripts/family_goldens.py --tokenizers tests/data                trains the vocabulary; writes tokenizer-*.json

Shapes follow the published models' proportions. Weights are a function of the tensor's name and the element's place
(`numbers` below and in tests/family.rs), so none have to be shipped. Phi-3-small is not in transformers: its logits
come from tests/phi3_small_reference.py, in float64.

Needs torch, transformers, tokenizers, safetensors, numpy.
"""
import argparse, json, math, sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCAB = 1504


def numbers(name, shape):
    """Values in (-1, 1), multiples of 1/128 (exact in BF16), by splitmix64 of the name's FNV-1a hash plus the place."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(56)).astype(np.float32) - 127.5).round().reshape(shape) / 128


def weight(name, shape):
    """Norms about 1, biases small, matrices of a size that keeps activations about 1."""
    values = numbers(name, shape)
    if name.endswith("norm.weight"):
        return 1 + values / 4
    if name.endswith("bias"):
        return values / 8
    if "embed_tokens" in name:
        return values
    # A power of two, so that values stay exact in BF16.
    return values * 2.0 ** round(math.log2(1.7 / math.sqrt(shape[-1])))


def longrope(pairs, **more):
    return {"type": "longrope", "short_factor": [1.0 + 0.02 * i for i in range(pairs)],
            "long_factor": [1.5 + 0.5 * i for i in range(pairs)], **more}


PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "attention_bias": False, "tie_word_embeddings": False, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
PHI = {"architectures": ["PhiForCausalLM"], "model_type": "phi", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
       "qk_layernorm": False, "tie_word_embeddings": False, "vocab_size": VOCAB, "rope_theta": 10000.0, "rope_scaling": None,
       "max_position_embeddings": 128, "num_key_value_heads": None, "bos_token_id": 1, "eos_token_id": 2}
MOE = {"architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe", "hidden_act": "silu", "rms_norm_eps": 1e-5,
       "vocab_size": VOCAB, "tie_word_embeddings": False, "attention_bias": True, "lm_head_bias": True,
       "num_experts_per_tok": 2, "router_jitter_noise": 0.01, "input_jitter_noise": 0.01, "rope_theta": 10000.0,
       "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
SMALL = {"architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "hidden_act": "gegelu", "gegelu_limit": 20.0,
         "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB, "dense_attention_every_n_layers": 2, "blocksparse_block_size": 64,
         "blocksparse_homo_head_pattern": False, "blocksparse_num_local_blocks": 2, "blocksparse_vert_stride": 4,
         "blocksparse_triton_kernel_block_size": 64, "mup_use_scaling": True, "mup_attn_multiplier": 1.0,
         "mup_embedding_multiplier": 10.0, "mup_width_multiplier": 8.0, "rope_embedding_base": 1000000,
         "rope_position_scale": 1.0, "gegelu_pad_to_256": True, "attention_bias": True, "bos_token_id": 1, "eos_token_id": 2}

# name: (config, tokens of the sequence)
MODELS = {
    "phi-1_5": ({**PHI, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "partial_rotary_factor": 0.5}, 40),
    "phi-2": ({**PHI, "hidden_size": 80, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4,
               "partial_rotary_factor": 0.4}, 40),
    "phi-3-mini-4k": ({**PHI3, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                       "num_key_value_heads": 4, "max_position_embeddings": 128, "original_max_position_embeddings": 128,
                       "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": 15}, 48),
    "phi-3-medium-128k": ({**PHI3, "hidden_size": 80, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 8,
                           "num_key_value_heads": 2, "max_position_embeddings": 256, "original_max_position_embeddings": 32,
                           "rope_theta": 10000.0, "rope_scaling": longrope(5), "sliding_window": 200}, 48),
    "phi-4": ({**PHI3, "hidden_size": 80, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 8,
               "num_key_value_heads": 2, "max_position_embeddings": 256, "original_max_position_embeddings": 256,
               "rope_theta": 250000.0, "rope_scaling": None, "sliding_window": None}, 48),
    "phi-4-mini": ({**PHI3, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6,
                    "num_key_value_heads": 2, "max_position_embeddings": 256, "original_max_position_embeddings": 32,
                    "rope_theta": 10000.0, "rope_scaling": longrope(6), "sliding_window": 262144, "partial_rotary_factor": 0.75,
                    "tie_word_embeddings": True}, 48),
    "phi-3.5-moe": ({**MOE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "num_local_experts": 8, "max_position_embeddings": 256, "sliding_window": 200,
                     "original_max_position_embeddings": 32,
                     "rope_scaling": longrope(8, short_mscale=1.243163121016122, long_mscale=1.3, original_max_position_embeddings=32)}, 48),
    "phi-tiny-moe": ({**MOE, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 16, "max_position_embeddings": 128,
                      "original_max_position_embeddings": 128, "sliding_window": 31, "rope_scaling": None}, 48),
    "phi-3-small-8k": ({**SMALL, "hidden_size": 64, "ff_intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
                        "num_key_value_heads": 2, "max_position_embeddings": 1024}, 600),
    "phi-3-small-128k": ({**SMALL, "hidden_size": 64, "ff_intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "max_position_embeddings": 1024, "original_max_position_embeddings": 96,
                          "rope_scaling": longrope(8, short_mscale=1.0, long_mscale=1.19, original_max_position_embeddings=96)}, 120),
}

# The same models with the published heads and widths that K-quants can take: rows of whole 256-element blocks.
WIDE = {
    "phi-1_5": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    "phi-2": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16},
    "phi-3-mini-4k": {"hidden_size": 768, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8},
    "phi-3-medium-128k": {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 1,
                          "rope_scaling": longrope(64)},
    "phi-4": {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 1},
    "phi-4-mini": {"hidden_size": 768, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2,
                   "rope_scaling": longrope(48)},
    "phi-3.5-moe": {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 1,
                    "num_local_experts": 16, "rope_scaling": longrope(64, short_mscale=1.243163121016122, long_mscale=1.243163121016122,
                                                                      original_max_position_embeddings=32)},
    "phi-tiny-moe": {"hidden_size": 512, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128},
}


def shapes(config):
    """Names and shapes of the checkpoint's tensors, as published."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    kind = config["model_type"]
    ffn = config.get("ff_intermediate_size") or config.get("intermediate_size")
    out = {"model.embed_tokens.weight": [VOCAB, hidden]}

    def linear(name, rows, columns, bias):
        out[name + ".weight"] = [rows, columns]
        if bias:
            out[name + ".bias"] = [rows]

    def norm(name, bias):
        out[name + ".weight"] = [hidden]
        if bias:
            out[name + ".bias"] = [hidden]

    for i in range(layers):
        at = f"model.layers.{i}."
        norm(at + "input_layernorm", kind != "phi3")
        if kind != "phi":
            norm(at + "post_attention_layernorm", kind != "phi3")
        if kind == "phi3":
            linear(at + "self_attn.qkv_proj", (heads + 2 * kv) * head, hidden, False)
            linear(at + "self_attn.o_proj", hidden, heads * head, False)
            linear(at + "mlp.gate_up_proj", 2 * ffn, hidden, False)
            linear(at + "mlp.down_proj", hidden, ffn, False)
        elif kind == "phi3small":
            linear(at + "self_attn.query_key_value", (heads + 2 * kv) * head, hidden, True)
            linear(at + "self_attn.dense", hidden, heads * head, True)
            linear(at + "mlp.up_proj", 2 * ffn, hidden, True)
            linear(at + "mlp.down_proj", hidden, ffn, True)
        else:
            bias = kind == "phi" or config["attention_bias"]
            for part, count in [("q_proj", heads), ("k_proj", kv), ("v_proj", kv)]:
                linear(at + "self_attn." + part, count * head, hidden, bias)
            linear(at + ("self_attn.dense" if kind == "phi" else "self_attn.o_proj"), hidden, heads * head, bias)
            if kind == "phi":
                linear(at + "mlp.fc1", ffn, hidden, True)
                linear(at + "mlp.fc2", hidden, ffn, True)
            else:
                linear(at + "block_sparse_moe.gate", config["num_local_experts"], hidden, False)
                for expert in range(config["num_local_experts"]):
                    of = at + f"block_sparse_moe.experts.{expert}."
                    linear(of + "w1", ffn, hidden, False)
                    linear(of + "w2", hidden, ffn, False)
                    linear(of + "w3", ffn, hidden, False)
    norm("model.final_layernorm" if kind in ("phi", "phi3small") else "model.norm", kind != "phi3")
    if not config.get("tie_word_embeddings") and kind != "phi3small":
        linear("lm_head", VOCAB, hidden, kind == "phi" or bool(config.get("lm_head_bias")))
    return out


def tensors(config):
    return {name: weight(name, shape) for name, shape in shapes(config).items()}


def sequence(count):
    """Token ids that depend on nothing but their place."""
    return [(i * i * 7 + i * 31 + 5) % VOCAB for i in range(count)]


def added(first, contents, rstrip=False, special=True):
    return [{"id": first + i, "content": content, "single_word": False, "lstrip": False, "rstrip": rstrip,
             "normalized": False, "special": special} for i, content in enumerate(contents)]


def tokenizer(model):
    return json.loads((ROOT / f"tests/data/tokenizer-{'phi-2' if model < 'phi-3' else model}.json").read_text())


def make_tokenizer(model, base):
    """tokenizer.json of the published model's structure around the small vocabulary."""
    at = len(base["vocab"])
    split = lambda pattern, behavior, invert: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    both = lambda step: {"type": "Sequence", "pretokenizers": [step, spell]}
    if model == "phi-2":
        words = {**spell, "use_regex": True}
        # CodeGen's: runs of spaces and tabs, found in the normalized text.
        tokens = added(at, ["<|endoftext|>"]) + [{**token, "normalized": True, "special": False} for token in
                  added(at + 1, [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)])]
    elif model == "phi-4":
        words = both(split(CL100K, "Removed", True))
        tokens = added(at, ["<|dummy_0|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>",
                            "<|im_end|>", "<|im_sep|>", "<|endofprompt|>"])
        tokens[0]["rstrip"] = True
    else:
        words = both(split(O200K, "Isolated", False))
        tokens = added(at, ["<|endoftext|>", "<|endofprompt|>"]) + added(at + 2, ["<|assistant|>", "<|end|>", "<|user|>", "<|system|>",
                 "<|tool|>", "<|/tool|>"], rstrip=True) + added(at + 8, ["<|tool_call|>", "<|/tool_call|>", "<|tool_response|>", "<|tag|>"], rstrip=True, special=False)
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None,
            "pre_tokenizer": words,
            "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **base}}


TEMPLATES = {
    "phi-4": "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    "phi-4-mini": "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
}


def train_tokenizers(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(__import__("tokenizers").Regex(O200K), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    files = [str(ROOT / "tests/data/text.txt"), str(ROOT / "README.md"), *map(str, sorted((ROOT / "docs").glob("*.md"))),
             *map(str, sorted((ROOT / "src/text").glob("*.rs")))]
    tok.train(files, trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(tok.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    for name in ("phi-2", "phi-4", "phi-4-mini"):
        file = make_tokenizer(name, {"vocab": model["vocab"], "merges": merges})
        (folder / f"tokenizer-{name}.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n")


def write(folder, wide):
    for name, (config, _) in MODELS.items():
        if not wide or name in WIDE:
            write_checkpoint(name, {**config, **(WIDE[name] if wide else {})}, folder / name)


def write_checkpoint(name, config, to, dtype="bfloat16"):
    """A checkpoint folder with the files that the model called `name` has on the hub. Norms are exact in float32 only."""
    import torch
    from safetensors.torch import save_file
    to.mkdir(parents=True, exist_ok=True)
    (to / "config.json").write_text(json.dumps(config, indent=1))
    save_file({k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in tensors(config).items()}, to / "model.safetensors",
              metadata={"format": "pt"})
    if name.startswith(("phi-1", "phi-2", "phi-4")):
        file = tokenizer(name)
        (to / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False))
        end = file["added_tokens"][1 if name == "phi-4" else 0]["content"]
        (to / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "CodeGenTokenizer" if name < "phi-3" else "GPT2Tokenizer", "bos_token": end, "eos_token": end,
            "unk_token": end, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in file["added_tokens"]},
            **({"chat_template": TEMPLATES[name]} if name in TEMPLATES else {})}, ensure_ascii=False))
        (to / "vocab.json").write_text(json.dumps(file["model"]["vocab"], ensure_ascii=False))
        (to / "merges.txt").write_text("#version: 0.2\n" + "\n".join(file["model"]["merges"]) + "\n")
    if name.startswith(("phi-3-m", "phi-3.5", "phi-tiny")):
        for part in ("tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"):
            (to / part).write_bytes((ROOT / "models/phi-tiny" / part).read_bytes())
    if name.startswith("phi-3-small"):
        import base64
        bytes_ = [*range(33, 127), *range(161, 173), *range(174, 256)]
        table = {chr(b): b for b in bytes_}
        table.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in bytes_)})
        lines = [base64.b64encode(bytes(table[c] for c in token)).decode() + f" {rank}"
                 for token, rank in sorted(tokenizer("phi-4")["model"]["vocab"].items(), key=lambda item: item[1])]
        (to / "cl100k_base.tiktoken").write_text("\n".join(lines) + "\n")


def transformers_logits(config, ids, long, attention="eager", last=0):
    """Logits `[positions, vocab]`, of the `last` positions only if it is not 0; `long`: beyond LongRoPE's limit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0)
    kind = config["model_type"]
    parsed = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    parsed._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(parsed, torch_dtype=torch.float32).eval()
    state = {k: torch.from_numpy(v) for k, v in tensors(config).items()}
    if kind == "phimoe":
        stacked = {}
        for i in range(config["num_hidden_layers"]):
            at = f"model.layers.{i}."
            take = lambda w: torch.stack([state.pop(f"{at}block_sparse_moe.experts.{e}.{w}.weight") for e in range(config["num_local_experts"])])
            gate, down, up = take("w1"), take("w2"), take("w3")
            stacked[at + "mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            stacked[at + "mlp.experts.down_proj"] = down
            stacked[at + "mlp.router.weight"] = state.pop(at + "block_sparse_moe.gate.weight")
        state.update(stacked)
        if long:
            # transformers takes the short factors at any length; the published code, the long ones beyond the limit.
            rotary = model.model.rotary_emb
            init = rotary.rope_init_fn
            rotary.rope_init_fn = lambda config, **kw: init(config, seq_len=len(ids))
    if config.get("tie_word_embeddings"):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing = model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False, logits_to_keep=last).logits[0].double().numpy()


def goldens():
    sys.path.insert(0, str(ROOT / "tests"))
    out = {}
    for name, (config, count) in MODELS.items():
        ids = sequence(count)
        entry = {"config": config, "tensors": shapes(config), "ids": ids, "logits": {}}
        limit = config.get("original_max_position_embeddings") if config.get("rope_scaling") else None
        lengths = sorted({8, *([limit, limit + 1] if limit else []), count})
        for length in lengths:
            part = ids[:length]
            if config["model_type"] == "phi3small":
                import phi3_small_reference
                logits = phi3_small_reference.logits(config, tensors(config), part)
            else:
                logits = transformers_logits(config, part, limit is not None and length > limit)
            # The last position's, every eighth, to seven digits.
            entry["logits"][str(length)] = [float(f"{x:.7g}") for x in logits[-1][::8]]
        out[name] = entry
        print(name, {k: (round(float(np.linalg.norm(v)), 3)) for k, v in entry["logits"].items()}, file=sys.stderr)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--wide", action="store_true", help="with --write: models of 512 to 1280 elements")
    parser.add_argument("--tokenizers", type=Path)
    args = parser.parse_args()
    if args.tokenizers:
        train_tokenizers(args.tokenizers)
    if args.write:
        write(args.write, args.wide)
    if args.golden:
        args.golden.write_text(json.dumps(goldens(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
