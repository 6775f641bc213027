"""What servers with kernels of their own (vLLM's and SGLang's transformers backends) need of a folder that we write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder, random_tokens

from lit_llm.interop import save_model_folder
from lit_llm.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["llama-10m", "qwen3-0.6b", "gemma3-1b"])
def test_attention_is_computed_by_whoever_serves(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """transformers builds the folder's model around an attention function that the server has registered."""
    transformers = pytest.importorskip("transformers")
    model = random_decoder(tiny_model(name), std=0.1)
    save_model_folder(tmp_path, model.config, model.state_dict(), tokenizer)
    plain = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    layers: list[int] = []

    def attention(module: Any, *tensors: Any, **options: Any) -> Any:
        layers.append(module.layer_idx)  # by which a server finds the cache of the layer
        return plain(module, *tensors, **options)

    transformers.AttentionInterface.register("counted", attention)
    transformers.AttentionMaskInterface.register("counted", transformers.masking_utils.sdpa_mask)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="counted")
    assert theirs._supports_attention_backend
    tokens = random_tokens(model.config, 2, 30)
    with torch.no_grad():
        expected = model(tokens)
        found = theirs(tokens).logits
    assert layers == list(range(model.config.num_layers))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5 * float(expected.abs().max()))
