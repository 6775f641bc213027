"""Weights that are packed for the CPU's products: what they compute, where they are used, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chat_rows import letter_tokenizer
from conftest import tiny_model
from random_decoder import add_random_lora, random_decoder, random_tokens

from lit_llm.config import LoadConfig, LoraConfig, ModelConfig, SamplingConfig
from lit_llm.generation import Engine
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.model.adapters import RowAdapters
from lit_llm.model.linear import is_plain
from lit_llm.model.log_probs import token_log_probs
from lit_llm.model.packed_linear import PackedLinear, can_pack, pack_weights, packed_layers
from lit_llm.planning.serving import bytes_of, weight_bytes
from lit_llm.stages.loading import load

TYPES = [torch.float32, torch.bfloat16]
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch multiplies no packed weights")


def pair(config: ModelConfig, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Decoder]:
    """The same model twice, plain and packed."""
    plain, packed = (random_decoder(config, std=0.2).to(dtype).eval() for _ in range(2))
    return plain, pack_weights(packed)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["llama3.2-1b", "gpt2"])
def test_a_packed_model_computes_what_it_did(name: str, dtype: torch.dtype) -> None:
    """gpt2 has biases and a head that is the embedding."""
    if not can_pack(dtype):
        pytest.skip(f"this torch multiplies no packed weights of {dtype}")
    plain, packed = pair(tiny_model(name, vocab_size=391), dtype)
    linears = [module for module in plain.modules() if is_plain(module)]
    assert len([module for module in packed.modules() if isinstance(module, PackedLinear)]) == len(linears)
    assert isinstance(packed.head, PackedLinear) and torch.equal(packed.head.unpacked(), plain.head.weight)
    rounding = 1e-5 if dtype == torch.float32 else 0.05
    with torch.inference_mode():
        for rows, length in ((1, 1), (3, 7), (20, 2)):
            tokens = random_tokens(plain.config, rows, length)
            expected = plain(tokens)
            torch.testing.assert_close(packed(tokens), expected, rtol=rounding, atol=rounding * 4)
            assert packed(tokens).dtype == expected.dtype == dtype
        tokens = random_tokens(plain.config, 2, 9)
        found, expected_log_probs = (token_log_probs(model, tokens).log_probs for model in (packed, plain))
    torch.testing.assert_close(found, expected_log_probs, rtol=rounding, atol=rounding * 10)


@needs_packing
def test_texts_of_a_packed_model_with_adapters() -> None:
    """DoRA reads the weights themselves."""
    config = LoraConfig(rank=4, alpha=6.0, dora=True)
    texts = []
    for model in pair(tiny_model()):
        additions = add_random_lora(random_decoder(tiny_model(), std=0.2), config, 1)
        engine = Engine(model, 2, adapters=RowAdapters(model, {"polite": (config, additions)}))
        sampling = SamplingConfig(max_new_tokens=12, temperature=0.0)
        ids = [engine.submit([5, 6, 7], sampling, adapter=name) for name in (None, "polite")]
        written = engine.run()
        texts.append([written[number].ids for number in ids])
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1]


@needs_packing
def test_models_that_are_loaded_to_be_used_are_packed(tmp_path: Path) -> None:
    model = random_decoder(tiny_model())
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), letter_tokenizer())
    loaded = load(LoadConfig(str(tmp_path / "model"), accelerator="cpu")).model
    assert isinstance(loaded.head, PackedLinear) and loaded.config.tie_word_embeddings
    # the head besides the embedding
    assert bytes_of(loaded) == weight_bytes(loaded.config, torch.float32, packed=True)
    assert bytes_of(loaded) == bytes_of(model) + model.embedding.weight.nbytes
    kept = pack_weights(random_decoder(tiny_model()), keep=True)
    assert bytes_of(kept) == weight_bytes(kept.config, torch.float32, packed=True, kept=True)
    assert bytes_of(kept) - bytes_of(model) == sum(layer.nbytes for layer in packed_layers(kept)) > 0
    compiled = load(LoadConfig(str(tmp_path / "model"), accelerator="cpu"), compile=True).model
    assert not any(isinstance(module, PackedLinear) for module in compiled.modules())


@needs_packing
def test_what_cannot_be_packed_stays_and_what_is_packed_is_not_moved() -> None:
    scores = pack_weights(random_decoder(tiny_model(output="score", tie_word_embeddings=False)))
    assert is_plain(scores.head) and isinstance(scores.blocks[0].attention.q_proj, PackedLinear)
    doubled = pack_weights(random_decoder(tiny_model()).double())
    assert not any(isinstance(module, PackedLinear) for module in doubled.modules())
    _, packed = pair(tiny_model())
    with pytest.raises(RuntimeError, match="move or convert the model before"):
        packed.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="save the model before"):
        packed.state_dict()
