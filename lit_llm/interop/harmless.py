"""This file decides which unknown keys of a foreign config.json may be passed over.

Files carry leftovers of training, provenance and other programs under any name, so no list of harmless keys can be
complete. The decision is by the value and by the words of the key: a value that switches nothing on may pass; so may
names, paths and versions, and numbers under words for dropouts, ids of tokens, lengths and training. Any other number,
switch or group could be an option of another architecture.
"""

from __future__ import annotations

import re
from typing import Any

_ABSENT = ("none", "disabled")
"""These values say that the model has no such part."""
_OFF = (*_ABSENT, "", "null", "default", "auto", "full_attention", "absolute", "standard")
"""These values say that everything is as usual."""
_FACTORS = {"scale", "scaling", "multiplier", "mult", "factor"}
"""These words name a factor, which is 1 where nothing is switched on."""
_ALWAYS_ON = re.compile(
    r"(is_|use_)?causal(_mask|_attention)?|(use|apply)_(rope|rotary\w*|position\w*)|scale_attn\w*|attn_scale|use_mlp"
)
"""These switches are for what our decoder always does, and so they may pass where they are on."""
_PARTS = (
    (
        {"norm", "norms", "normalization", "normalize", "layernorm", "rmsnorm", "ln"},
        {"layer", "layers", "rms", "block", "attn", "attention", "mlp", "ffn", "decoder", "final", "input", "output"},
    ),
    (
        {"rope", "rotary", "position", "positions", "positional"},
        {"pos", "emb", "embed", "embedding", "embeddings", "encoding", "encodings", "dim", "dims", "ndims", "pct"},
    ),
    ({"gated", "glu", "swiglu", "mlp", "ffn", "feedforward", "activation", "act"}, {"gate", "linear", "hidden", "fn"}),
    ({"causal", "autoregressive"}, {"mask", "masking", "attn", "attention", "decoder", "lm"}),
    ({"residual", "residuals", "shortcut"}, {"skip", "connection", "connections", "stream"}),
    ({"scale", "scaling", "scaled", "softmax"}, {"attn", "attention", "qk", "query", "score", "scores", "dot"}),
    ({"attn", "attention"}, {"self"}),
    ({"embedding", "embeddings", "unembedding"}, {"token", "tokens", "word", "words", "input", "output"}),
)
"""For each part that our decoder always has: words for it, and words that go with them. A key of these words alone, set
to off, would take the part away."""
_SWITCH = {
    *("use", "uses", "using", "apply", "enable", "enabled", "with", "has", "have", "do", "is", "add", "include", "in"),
    *("type", "kind", "style", "pre", "first", "before", "percent", "percentage", "fraction", "ratio", "base", "theta"),
}
"""These words only say whether, where and how much of a part there is."""

_TOKEN_ID = re.compile(r"(.*_)?(token|eos|bos|pad|unk|sep|cls|mask|eod)s?_(id|ids|index|idx)")
_DROPOUT = re.compile(r"(.*_)?(p?drop(out|path)?|layer_?drop|drop_path)s?(_(p|prob|probs|probability|rate|ratio))?")
_RUNNING = {
    *("learning", "lr", "warmup", "batch", "seed", "epoch", "epochs", "optimizer", "optim", "adam", "adamw"),
    *("grad", "gradient", "gradients", "loss", "losses", "init", "initializer", "initialization", "train", "trained"),
    *("training", "trainer", "trainable", "finetune", "finetuning", "finetuned", "eval", "evaluation", "logging"),
    *("checkpoint", "checkpointing", "dataset", "datasets", "wandb", "deepspeed", "fsdp", "ddp", "megatron", "unsloth"),
    *("cache", "flash", "sdpa", "xformers", "fused", "compile", "compiled", "device", "dtype", "offload", "verbose"),
    *("implementation", "version", "revision", "license", "timestamp"),
}
"""These words are about how a model was trained, is stored, or is run."""
_RUNNING_KEYS = re.compile(
    r"weight_decay|(max|total|save|eval|logging|warmup)_(train_)?steps|tensor(_model)?_parallel_size"
    r"|output_(attentions|hidden_states|scores|logits|router_logits)|return_\w+"
)
_LENGTH = {"length", "len", "lengths", "seqlen"}
_COMPUTED = {
    *("act", "activation", "fn", "function", "norm", "normalization", "layernorm", "rmsnorm", "position", "positions"),
    *("positional", "pos", "rope", "rotary", "alibi", "attn", "attention", "mlp", "ffn", "ff", "feedforward", "layer"),
    *("layers", "block", "blocks", "mask", "masking", "pool", "pooling", "bias", "embedding", "embeddings", "expert"),
    *("experts", "router", "gate", "gating", "moe", "quant", "quantization", "window", "sliding", "local", "chunk"),
    *("residual", "hidden", "head", "heads", "mixer", "softcap", "softcapping", "cap", "kv", "qk", "qkv", "mup"),
    *_FACTORS,
}
"""These words name parts of the computation."""
_FUNCTIONS = re.compile(
    r"(quick_?|fast_?|sq(uared)?_?)?(re|ge|si|se|e|p?re|ce|leaky_?re|hard_?si)lu(_\w+|\d*)|swish|mish|tanh|sigmoid|softmax"
    r"|softplus|\w*glu|alibi|yarn|longrope|dynamic|ntk\w*|rms_?norm|layer_?norm|sliding_attention|linear_attention",
    re.IGNORECASE,
)
"""A value that matches names something computed, whatever its key is."""
_DEEPEST = 8


def is_harmless(key: str, value: Any, depth: int = 0, in_list: bool = False) -> bool:
    """Whether a key that we do not know cannot change logits.

    Args:
        key: the key as the file writes it; inside a group, with the group's name before it.
        value: the value, from JSON.
        depth: how many groups are around it.
        in_list: whether the value is an element of a list, where 0 and false may say which layer, or what a layer is.
    """
    parts = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    words = set(parts)
    if _ALWAYS_ON.fullmatch(key.lower()):
        return value in (None, True)
    if value is None or _is_about_running("_".join(parts), words):
        return True
    if (isinstance(value, str) or not in_list) and _is_off(words, value):
        return True
    if isinstance(value, str):
        return not words & _COMPUTED and not _FUNCTIONS.fullmatch(value.strip())
    if depth == _DEEPEST:
        return False
    if isinstance(value, list):
        return all(is_harmless(key, each, depth + 1, in_list=True) for each in value)
    if isinstance(value, dict):
        return all(is_harmless(f"{key}_{name}", each, depth + 1) for name, each in value.items())
    return False


def _is_off(words: set[str], value: Any) -> bool:
    """Whether a value switches nothing on, and nothing off that our decoder has."""
    if value in ([], {}):
        return True
    if isinstance(value, str):
        text = value.strip().lower()
        return text in _OFF and not (text in _ABSENT and _is_ours(words))
    if not value and _is_ours(words):
        return False
    if value is False:
        return True
    if value is True or not isinstance(value, int | float):
        return False
    return value == 1 if words & _FACTORS else value == 0 or (value == 1.0 and isinstance(value, float))


def _is_ours(words: set[str]) -> bool:
    """Whether a key is about a part that our decoder always has, and nothing else."""
    named = words - _SWITCH
    return any(named & part and named <= part | beside for part, beside in _PARTS)


def _is_about_running(key: str, words: set[str]) -> bool:
    """Whether a key's words are about ids of tokens, dropouts, lengths, training, storage or speed."""
    if _TOKEN_ID.fullmatch(key):
        return not (words - {"mask"}) & _COMPUTED
    if _DROPOUT.fullmatch(key):
        return not words & _FACTORS
    if words & _FACTORS or words & {"rope", "rotary", "window", "sliding", "softcap", "softcapping"}:
        return False
    if words & _RUNNING or _RUNNING_KEYS.fullmatch(key):
        return True
    return bool(words & _LENGTH) and not words & _COMPUTED
