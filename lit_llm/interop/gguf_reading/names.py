"""The names that llama.cpp has for our modules, and for the architectures that we compute."""

from __future__ import annotations

from lit_llm.interop.families import FAMILIES, Family

NAMES = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "blocks.{}.attention_norm": "blk.{}.attn_norm",
    "blocks.{}.attention.q_proj": "blk.{}.attn_q",
    "blocks.{}.attention.k_proj": "blk.{}.attn_k",
    "blocks.{}.attention.v_proj": "blk.{}.attn_v",
    "blocks.{}.attention.o_proj": "blk.{}.attn_output",
    "blocks.{}.attention.q_norm": "blk.{}.attn_q_norm",
    "blocks.{}.attention.k_norm": "blk.{}.attn_k_norm",
    "blocks.{}.attention_output_norm": "blk.{}.post_attention_norm",
    "blocks.{}.feedforward_norm": "blk.{}.ffn_norm",
    "blocks.{}.feedforward.gate_proj": "blk.{}.ffn_gate",
    "blocks.{}.feedforward.up_proj": "blk.{}.ffn_up",
    "blocks.{}.feedforward.down_proj": "blk.{}.ffn_down",
    "blocks.{}.feedforward_output_norm": "blk.{}.post_ffw_norm",
    "final_norm": "output_norm",
    "head": "output",
}
"""The name that llama.cpp has for each of our modules, with `{}` for the number of the block."""

FUSED = "blk.{}.attn_qkv"
"""llama.cpp's name of a query, key and value projection in one."""

ARCHITECTURES: dict[str, Family] = {
    "llama": FAMILIES["llama"],
    "qwen2": FAMILIES["qwen2"],
    "qwen3": FAMILIES["qwen3"],
    "gpt2": FAMILIES["gpt2"],
    "gemma2": FAMILIES["gemma2"],
    "gemma3": FAMILIES["gemma3_text"],
}
"""The architecture that each `general.architecture` is; llama.cpp counts Mistral as llama."""

ROTATED_PAIRS = ("llama",)
"""In these, rows of queries and keys are in the order in which llama.cpp rotates neighbouring pairs."""
NORMS_WITH_ONE = ("gemma2", "gemma3")
"""In these, one has been added to the weights of norms."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of what llama.cpp divides the plain rotary frequencies by; no weight."""
