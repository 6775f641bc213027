"""transformers' Llama in the sizes of one of our configurations, for the benchmarks that run it beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_llm.config import ModelConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def peer_llama(config: ModelConfig, **options: Any) -> LlamaForCausalLM:
    """A new model, with further options of its own configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.feedforward_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.width_per_head,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_word_embeddings,
            **options,
        )
    )
