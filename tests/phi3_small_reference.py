"""Phi-3-small in float64, written from the Phi-3 report (arXiv 2404.14219) and the published model's description.

Block-sparse attention: query block q sees key block k <= q if q - k < local_blocks, or if (k + head * step + 1) is a
multiple of vert_stride, with step = max(1, vert_stride // heads). Every dense_attention_every_n_layers-th layer is dense.
muP: embeddings times mup_embedding_multiplier, scores times mup_attn_multiplier / head, logits over
mup_width_multiplier. GEGELU: gate and linear part are interleaved, both clamped at the limit, quick GELU, linear + 1.
Queries, keys and values are grouped by KV head: its queries, its key, its value.
"""
import numpy as np


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * weight + bias


def rotation(config, length, head):
    scaling = config.get("rope_scaling") or {}
    base = float(config["rope_embedding_base"])
    frequencies = base ** -(np.arange(0, head, 2) / head)
    positions = np.arange(length) / config["rope_position_scale"]
    scale = 1.0
    if scaling:
        long = length > scaling["original_max_position_embeddings"]
        frequencies = frequencies / np.array(scaling["long_factor" if long else "short_factor"])
        scale = scaling["long_mscale" if long else "short_mscale"]
    angles = positions[:, None] * frequencies
    return np.cos(angles) * scale, np.sin(angles) * scale


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def sees(config, head, heads, length):
    """[query, key] of one head."""
    at = np.arange(length)
    causal = at[:, None] >= at[None]
    block = config["blocksparse_block_size"]
    q, k = (at // block)[:, None], (at // block)[None]
    stride = config["blocksparse_vert_stride"]
    step = 0 if config["blocksparse_homo_head_pattern"] else max(1, stride // heads)
    return causal & ((q - k < config["blocksparse_num_local_blocks"]) | ((k + head * step + 1) % stride == 0))


def attention(config, layer, w, at, x):
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head, group, length = config["hidden_size"] // heads, heads // kv, len(x)
    qkv = (x @ w[at + "query_key_value.weight"].T + w[at + "query_key_value.bias"]).reshape(length, kv, group + 2, head)
    cos, sin = rotation(config, length, head)
    scale = config["mup_attn_multiplier"] / head if config["mup_use_scaling"] else head ** -0.5
    dense = (layer + 1) % config["dense_attention_every_n_layers"] == 0
    out = np.empty((length, heads, head))
    for h in range(heads):
        q = rotate(qkv[:, h // group, h % group], cos, sin)
        k = rotate(qkv[:, h // group, group], cos, sin)
        mask = np.tril(np.ones((length, length), bool)) if dense else sees(config, h, heads, length)
        scores = np.where(mask, q @ k.T * scale, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h] = p / p.sum(-1, keepdims=True) @ qkv[:, h // group, group + 1]
    return out.reshape(length, -1) @ w[at + "dense.weight"].T + w[at + "dense.bias"]


def gegelu(x, limit):
    gate, linear = x[..., ::2], x[..., 1::2]
    gate, linear = np.minimum(gate, limit), np.clip(linear, -limit, limit)
    return gate / (1 + np.exp(-1.702 * gate)) * (linear + 1)


def logits(config, weights, ids):
    """[tokens, vocabulary]."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    eps = config["layer_norm_epsilon"]
    norm = lambda name, x: layer_norm(x, w[name + ".weight"], w[name + ".bias"], eps)
    x = w["model.embed_tokens.weight"][ids] * config["mup_embedding_multiplier"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        x = x + attention(config, layer, w, at + "self_attn.", norm(at + "input_layernorm", x))
        y = norm(at + "post_attention_layernorm", x) @ w[at + "mlp.up_proj.weight"].T + w[at + "mlp.up_proj.bias"]
        x = x + gegelu(y, config["gegelu_limit"]) @ w[at + "mlp.down_proj.weight"].T + w[at + "mlp.down_proj.bias"]
    x = norm("model.final_layernorm", x)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return x @ head.T / config["mup_width_multiplier"]
