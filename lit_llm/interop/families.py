"""The architectures of Hugging Face transformers that our decoder computes, as tables of names.

Source: the configuration and modelling files of each in transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lit_llm.config import ModelConfig
from lit_llm.interop.family_options import (
    read_biased_llama,
    read_gemma2,
    read_gemma3,
    read_gpt2,
    read_mistral,
    read_qwen2,
    read_qwen3,
    write_biased_llama,
    write_gemma2,
    write_gemma3,
    write_gpt2,
    write_llama,
    write_qwen2,
    write_qwen3,
)
from lit_llm.interop.options import Options


@dataclass(frozen=True)
class Stored:
    """The place of one of our tensors in a foreign file."""

    name: str
    """The module's name in the file, with `{}` for the number of the block."""
    transposed: bool = False
    """Whether the file keeps the matrix as [in, out] (GPT-2's Conv1D)."""
    part: int | None = None
    """Which third of a fused query, key and value projection the tensor is; None where nothing is fused."""


@dataclass(frozen=True)
class Family:
    """One architecture of transformers, with the translation between its files and ours."""

    model_type: str
    """The architecture's name in config.json."""
    architecture: str
    """The class of transformers that loads a language model of it."""
    classifier: str
    """The class of transformers that loads it with a head of scores."""
    base: str
    """The prefix of every weight except the head's; files of the model without a head lack it."""
    weights: dict[str, Stored]
    """Where the file keeps each of our modules."""
    renamed: dict[str, tuple[str, Any]]
    """For each key of config.json: our field, and the value that an absent key means."""
    fixed: dict[str, Any]
    """The values of our fields that the architecture has no option for."""
    read: Callable[[Options], dict[str, Any]]
    """This function computes the fields that cannot be had by renaming a key."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """This function computes the keys of config.json that `read` reads."""
    ignored_weights: str = r"$^"
    """A pattern for the names of buffers that older files hold and nobody reads."""
    needs_divisible_width: bool = False
    """Whether transformers refuses a hidden size that is no multiple of the number of heads."""
    written: dict[str, Any] = field(default_factory=dict)
    """Keys that always have the same value, written for other programs that look for them."""
    tokenizer_pattern: str | None = None
    """The pattern by which transformers splits text into words with every tokenizer of this architecture, whatever the
    tokenizer's file says; None where the file decides."""

    def scoring(self) -> Family:
        """Describe the same architecture in its form for classifiers, which has a head of scores."""
        return replace(self, architecture=self.classifier, weights={**self.weights, "head": Stored("score")})


HEAD = {"head": Stored("lm_head")}

LLAMA_WEIGHTS = {
    "embedding": Stored("model.embed_tokens"),
    "blocks.{}.attention_norm": Stored("model.layers.{}.input_layernorm"),
    "blocks.{}.attention.q_proj": Stored("model.layers.{}.self_attn.q_proj"),
    "blocks.{}.attention.k_proj": Stored("model.layers.{}.self_attn.k_proj"),
    "blocks.{}.attention.v_proj": Stored("model.layers.{}.self_attn.v_proj"),
    "blocks.{}.attention.o_proj": Stored("model.layers.{}.self_attn.o_proj"),
    "blocks.{}.attention.q_norm": Stored("model.layers.{}.self_attn.q_norm"),
    "blocks.{}.attention.k_norm": Stored("model.layers.{}.self_attn.k_norm"),
    "blocks.{}.feedforward_norm": Stored("model.layers.{}.post_attention_layernorm"),
    "blocks.{}.feedforward.gate_proj": Stored("model.layers.{}.mlp.gate_proj"),
    "blocks.{}.feedforward.up_proj": Stored("model.layers.{}.mlp.up_proj"),
    "blocks.{}.feedforward.down_proj": Stored("model.layers.{}.mlp.down_proj"),
    "final_norm": Stored("model.norm"),
    **HEAD,
}
OLMO2_WEIGHTS = {
    **LLAMA_WEIGHTS,
    "blocks.{}.attention_norm": Stored("model.layers.{}.post_attention_layernorm"),
    "blocks.{}.feedforward_norm": Stored("model.layers.{}.post_feedforward_layernorm"),
}
GEMMA_WEIGHTS = {
    **LLAMA_WEIGHTS,
    "blocks.{}.attention_output_norm": Stored("model.layers.{}.post_attention_layernorm"),
    "blocks.{}.feedforward_norm": Stored("model.layers.{}.pre_feedforward_layernorm"),
    "blocks.{}.feedforward_output_norm": Stored("model.layers.{}.post_feedforward_layernorm"),
}
GPT2_WEIGHTS = {
    "embedding": Stored("transformer.wte"),
    "position_embedding": Stored("transformer.wpe"),
    "blocks.{}.attention_norm": Stored("transformer.h.{}.ln_1"),
    "blocks.{}.attention.q_proj": Stored("transformer.h.{}.attn.c_attn", transposed=True, part=0),
    "blocks.{}.attention.k_proj": Stored("transformer.h.{}.attn.c_attn", transposed=True, part=1),
    "blocks.{}.attention.v_proj": Stored("transformer.h.{}.attn.c_attn", transposed=True, part=2),
    "blocks.{}.attention.o_proj": Stored("transformer.h.{}.attn.c_proj", transposed=True),
    "blocks.{}.feedforward_norm": Stored("transformer.h.{}.ln_2"),
    "blocks.{}.feedforward.up_proj": Stored("transformer.h.{}.mlp.c_fc", transposed=True),
    "blocks.{}.feedforward.down_proj": Stored("transformer.h.{}.mlp.c_proj", transposed=True),
    "final_norm": Stored("transformer.ln_f"),
    **HEAD,
}

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA_NAMES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("hidden_size", 4096),
    "num_hidden_layers": ("num_layers", 32),
    "num_attention_heads": ("num_heads", 32),
    "num_key_value_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("intermediate_size", 11008),
    "max_position_embeddings": ("max_position_embeddings", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "initializer_range": ("init_std", 0.02),
}
QWEN_NAMES = {
    **LLAMA_NAMES,
    "vocab_size": ("vocab_size", 151936),
    "num_key_value_heads": ("num_key_value_heads", 32),
    "intermediate_size": ("intermediate_size", 22016),
    "max_position_embeddings": ("max_position_embeddings", 32768),
}
LLAMA_FORM = {"norm": "rmsnorm", "norm_bias": False, "position": "rope", "mlp_bias": False, "qk_norm": False}
GEMMA_NAMES = {
    **LLAMA_NAMES,
    "vocab_size": ("vocab_size", 256000),
    "hidden_size": ("hidden_size", 2304),
    "num_hidden_layers": ("num_layers", 26),
    "num_attention_heads": ("num_heads", 8),
    "num_key_value_heads": ("num_key_value_heads", 4),
    "head_dim": ("head_dim", 256),
    "intermediate_size": ("intermediate_size", 9216),
    "max_position_embeddings": ("max_position_embeddings", 8192),
    "tie_word_embeddings": ("tie_word_embeddings", True),
    "query_pre_attn_scalar": ("query_pre_attention_scalar", 256),
}
GEMMA_FORM = {
    **LLAMA_FORM,
    "norm_placement": "sandwich",
    "norm_unit_offset": True,
    "scale_embeddings": True,
}
NO_BIAS = {"qkv_bias": False, "attention_output_bias": False}
OLD_LLAMA_BUFFERS = r".*\.rotary_emb\.inv_freq$"

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    base="transformer.",
    weights=GPT2_WEIGHTS,
    renamed={
        "vocab_size": ("vocab_size", 50257),
        "n_embd": ("hidden_size", 768),
        "n_layer": ("num_layers", 12),
        "n_head": ("num_heads", 12),
        "n_inner": ("intermediate_size", None),
        "n_positions": ("max_position_embeddings", 1024),
        "layer_norm_epsilon": ("norm_eps", 1e-5),
        "tie_word_embeddings": ("tie_word_embeddings", True),
        "initializer_range": ("init_std", 0.02),
    },
    fixed={},
    read=read_gpt2,
    write=write_gpt2,
    ignored_weights=r".*\.attn\.(masked_)?bias$",
    needs_divisible_width=True,
    written={"scale_attn_weights": True},
)
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    base="model.",
    weights=LLAMA_WEIGHTS,
    renamed={**LLAMA_NAMES, "mlp_bias": ("mlp_bias", False)},
    fixed={name: value for name, value in LLAMA_FORM.items() if name != "mlp_bias"},
    read=read_biased_llama,
    write=write_biased_llama,
    ignored_weights=OLD_LLAMA_BUFFERS,
    needs_divisible_width=True,
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    classifier="MistralForSequenceClassification",
    base="model.",
    weights=LLAMA_WEIGHTS,
    renamed={
        **LLAMA_NAMES,
        "num_key_value_heads": ("num_key_value_heads", 8),
        "intermediate_size": ("intermediate_size", 14336),
        "max_position_embeddings": ("max_position_embeddings", 131072),
        "sliding_window": ("sliding_window", 4096),
    },
    fixed={**LLAMA_FORM, **NO_BIAS},
    read=read_mistral,
    write=write_llama,
    ignored_weights=OLD_LLAMA_BUFFERS,
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    classifier="Qwen2ForSequenceClassification",
    base="model.",
    weights=LLAMA_WEIGHTS,
    renamed=QWEN_NAMES,
    fixed={**LLAMA_FORM, "qkv_bias": True, "attention_output_bias": False},
    read=read_qwen2,
    write=write_qwen2,
    ignored_weights=OLD_LLAMA_BUFFERS,
    tokenizer_pattern=QWEN2_PATTERN,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    classifier="Qwen3ForSequenceClassification",
    base="model.",
    weights=LLAMA_WEIGHTS,
    renamed={**QWEN_NAMES, "head_dim": ("head_dim", 128)},
    fixed={**LLAMA_FORM, "qk_norm": True},
    read=read_qwen3,
    write=write_qwen3,
)

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    classifier="Olmo2ForSequenceClassification",
    base="model.",
    weights=OLMO2_WEIGHTS,
    renamed={**LLAMA_NAMES, "vocab_size": ("vocab_size", 50304), "rms_norm_eps": ("norm_eps", 1e-5)},
    fixed={**LLAMA_FORM, "norm_placement": "sublayer", "qk_norm": True, "qk_norm_width": "all"},
    read=read_biased_llama,
    write=write_biased_llama,
)
GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    classifier="Gemma2ForSequenceClassification",
    base="model.",
    weights=GEMMA_WEIGHTS,
    renamed={
        **GEMMA_NAMES,
        "attn_logit_softcapping": ("attention_softcap", 50.0),
        "final_logit_softcapping": ("logits_softcap", 30.0),
    },
    fixed=GEMMA_FORM,
    read=read_gemma2,
    write=write_gemma2,
    needs_divisible_width=True,
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    base="model.",
    weights=GEMMA_WEIGHTS,
    renamed={
        **GEMMA_NAMES,
        "vocab_size": ("vocab_size", 262208),
        "max_position_embeddings": ("max_position_embeddings", 131072),
        "final_logit_softcapping": ("logits_softcap", None),
    },
    fixed={**GEMMA_FORM, "qk_norm": True},
    read=read_gemma3,
    write=write_gemma3,
    needs_divisible_width=True,
)

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA2, GEMMA3)
}
"""Every architecture of transformers that we read and write, the plainest first."""
