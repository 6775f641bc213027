"""The configuration of lit_llm's decoder for transformers; `modeling_lit_llm.py` says what the files are for."""

from typing import ClassVar

from transformers import PretrainedConfig

DEFAULTS = {
    "vocab_size": None,
    "pad_vocab_to_multiple_of": 1,
    "max_position_embeddings": 1024,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": None,
    "activation": "gelu_tanh",
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "norm_placement": "pre",
    "norm_weight": True,
    "norm_unit_offset": False,
    "norm_bias": True,
    "position": "learned",
    "rope_theta": 10000.0,
    "rope_theta_windowed": None,
    "rope_scaling": None,
    "qkv_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "qk_norm": False,
    "qk_norm_width": "head",
    "query_pre_attention_scalar": None,
    "sliding_window": None,
    "full_attention_every": None,
    "attention_softcap": None,
    "logits_softcap": None,
    "tie_word_embeddings": True,
    "output": "tokens",
    "value_head": False,
    "scale_embeddings": False,
    "embedding_norm": False,
    "x0_shortcut": False,
    "value_embeddings": False,
    "token_smear": False,
    "dropout": 0.0,
    "attention_dropout": None,
    "init_std": 0.02,
    "zero_init_projections": False,
}
"""The fields of lit_llm's `ModelConfig`, whose documentation explains them."""


class LitLLMConfig(PretrainedConfig):
    """The fields of lit_llm's `ModelConfig`, flat in config.json."""

    model_type = "lit_llm"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "initializer_range": "init_std",
        "final_logit_softcapping": "logits_softcap",  # by this name TRL looks for it
        # transformers turns its own `rope_scaling` into another form, so the field has another name while in memory
        "rope_scaling": "rope_stretch",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    def __init__(self, **kwargs):
        own = {name: kwargs.pop(name, default) for name, default in DEFAULTS.items()}
        for name, value in own.items():
            setattr(self, name, value)
        self.use_cache = kwargs.pop("use_cache", True)
        super().__init__(tie_word_embeddings=own["tie_word_embeddings"], **kwargs)

    def to_dict(self):
        """The content of config.json."""
        values = super().to_dict()
        values["rope_scaling"] = values.pop("rope_stretch", None)
        return values

    @property
    def windows(self):
        """The sliding window of each layer, or None where it sees all."""
        every = self.full_attention_every
        return [
            None if every is not None and (layer + 1) % every == 0 else self.sliding_window
            for layer in range(self.num_layers)
        ]

    @property
    def layer_types(self):
        """The kind of attention of each layer, by which transformers chooses what a cache keeps."""
        return ["full_attention" if window is None else "sliding_attention" for window in self.windows]

    @property
    def width_per_head(self):
        """The width of one head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self):
        """The number of key and value heads."""
        return self.num_key_value_heads or self.num_heads
