"""Several adapters over one base: each row of a pass is what a model with that adapter alone computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import add_random_lora, largest_difference, random_decoder, random_tokens

from lit_llm.config import LoraConfig, SamplingConfig, UserError
from lit_llm.generation import Engine, complete
from lit_llm.model import Decoder
from lit_llm.model.adapters import AdaptedLinear, RowAdapters
from lit_llm.model.lora import merged_state
from lit_llm.model.quantization import quantize

SIZES = {"vocab_size": 90, "qkv_bias": True}


def make_adapter(base: Decoder, seed: int, **fields: Any) -> tuple[LoraConfig, dict[str, torch.Tensor], Decoder]:
    """The options and tensors of an adapter that matters, and the plain model that it makes of the base."""
    config = LoraConfig(**{"rank": 4, "alpha": 6.0, **fields})
    model, merged = Decoder(base.config).eval(), Decoder(base.config).eval()
    model.load_state_dict(base.state_dict())
    additions = add_random_lora(model, config, seed)
    merged.load_state_dict(merged_state(model.state_dict(), config))
    return config, additions, merged


@torch.inference_mode()
def test_rows_of_one_pass_have_adapters_of_their_own() -> None:
    """Of any rank, kind and layers; rows without one are exactly the base's."""
    base = random_decoder(tiny_model(**SIZES))
    wide = make_adapter(base, 1)
    narrow = make_adapter(base, 2, rank=2, rslora=True, targets=["v_proj"])
    dora = make_adapter(base, 3, rank=3, dora=True, targets=["q_proj", "down_proj"])
    made = {"wide": wide, "narrow": narrow, "dora": dora}
    tokens = random_tokens(base.config, 6, 9)
    plain = base(tokens)
    models: dict[str | None, torch.Tensor] = {name: merged(tokens) for name, (_, _, merged) in made.items()}
    assert min(largest_difference(plain, other) for other in models.values()) > 0.05
    assert largest_difference(models["wide"], models["dora"]) > 0.05
    adapters = RowAdapters(base, {name: (config, tensors) for name, (config, tensors, _) in made.items()})
    models[None] = plain
    for names in (["wide", None, "dora", "narrow", "wide", None], ["dora"] * 6, [None] * 6):
        with adapters.rows(names):
            found = base(tokens)
        for row, name in enumerate(names):
            assert largest_difference(found[row], models[name][row]) <= (0 if name is None else 2e-5), name
    assert torch.equal(base(tokens), plain), "outside of the block the base is itself"
    with pytest.raises(UserError, match="there is no adapter 'other' here; there are: wide, narrow, dora"):
        adapters.check("other")


@torch.inference_mode()
@pytest.mark.parametrize("dora", [False, True])
def test_the_base_may_be_quantized(dora: bool) -> None:
    """The addition is that to the rounded weight, which is where DoRA's lengths are from, too."""
    base = random_decoder(tiny_model(**SIZES))
    config, tensors, _ = make_adapter(base, 1, dora=dora)
    quantize(base, "int8")
    rounded = Decoder(base.config).eval()
    state = {name.removesuffix(".scale"): tensor for name, tensor in base.state_dict().items()}
    for name, module in base.named_modules():
        if hasattr(module, "dequantized"):
            state[f"{name}.weight"] = module.dequantized()
    rounded.load_state_dict({name: state[name] for name in rounded.state_dict()})
    merged = Decoder(base.config).eval()
    merged.load_state_dict(merged_state({**rounded.state_dict(), **tensors}, config))
    adapters = RowAdapters(base, {"one": (config, tensors)})
    tokens = random_tokens(base.config, 2, 9)
    with adapters.rows(["one", None]):
        found = base(tokens)
    assert largest_difference(found[0], merged(tokens)[0]) < 2e-5
    assert largest_difference(found[1], rounded(tokens)[1]) < 2e-5
    assert largest_difference(merged(tokens), rounded(tokens)) > 0.05


@torch.inference_mode()
@pytest.mark.parametrize("kind", [None, "int8"])
def test_what_is_to_be_compiled_reads_each_rows_adapter_by_its_number(kind: str | None) -> None:
    """It takes over the memory of the additions, and rows without one are exactly the base's."""
    base = random_decoder(tiny_model(**SIZES))
    made = {
        "wide": make_adapter(base, 1),
        "dora": make_adapter(base, 3, rank=3, dora=True, targets=["q_proj", "down_proj"]),
        "narrow": make_adapter(base, 2, rank=2, targets=["v_proj"]),
    }
    if kind is not None:
        quantize(base, kind)
    adapters = RowAdapters(base, {name: (config, tensors) for name, (config, tensors, _) in made.items()})
    names = ["narrow", None, "dora", "wide", "dora"]
    adapters.numbers = torch.tensor(adapters.numbers_of(names))
    assert adapters.numbers.tolist() == [3, 0, 2, 1, 2]
    layers = [layer for layer in base.modules() if isinstance(layer, AdaptedLinear)]
    assert len(layers) == 7 * base.config.num_layers
    for layer in layers:
        x = torch.randn(5, 1, layer.base.in_features, generator=torch.Generator().manual_seed(4))
        plain = layer(x)
        with adapters.rows(names):
            expected = layer(x)
            stacked = layer.stacked()
            assert torch.equal(layer(x), expected), "its memory holds something else"
        found = stacked(x)
        assert largest_difference(found, expected) < 2e-5
        assert torch.equal(found[1], plain[1])
        changed = [name in layer.additions for name in names]
        assert [largest_difference(row, other) > 1e-3 for row, other in zip(found, plain, strict=True)] == changed
        assert all(each.a.data_ptr() >= stacked.a.data_ptr() for each in layer.additions.values())


def test_an_engine_writes_texts_of_several_adapters_together() -> None:
    """Texts that begin alike do not take their beginning from a text of another adapter, and do from one of their
    own."""
    base = random_decoder(tiny_model(**SIZES, max_position_embeddings=64)).double()
    made = {"one": make_adapter(base, 1), "two": make_adapter(base, 2)}
    prompt = random_tokens(base.config, 30).tolist()
    greedy = SamplingConfig(max_new_tokens=12, temperature=0.0)
    expected: dict[str | None, list[int]] = {None: complete(base, [prompt], greedy)[0].ids}
    for name, (_, _, merged) in made.items():
        expected[name] = complete(merged.double(), [prompt], greedy)[0].ids
    assert len({tuple(ids) for ids in expected.values()}) == 3
    adapters = RowAdapters(base, {name: (config, tensors) for name, (config, tensors, _) in made.items()})
    engine = Engine(base, 4, prefill_chunk=16, adapters=adapters)
    asked = {engine.submit(prompt, greedy, adapter=name): name for name in ("one", None, "two", "one", None, "two")}
    done = engine.run()
    for request, name in asked.items():
        assert done[request].ids == expected[name], name
    # the fourth text took 29 tokens from the first one; two of the others had to wait for a place
    assert engine.tokens_read < 6 * (30 + 11)
    with pytest.raises(UserError, match="there is no adapter 'three' here"):
        engine.submit(prompt, adapter="three")
