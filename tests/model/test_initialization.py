"""Initial weights: a function of the seed and the name."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model

from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights


def weights(seed: int = 0, **fields: object) -> dict[str, torch.Tensor]:
    return Decoder(tiny_model("gpt2", **fields), seed=seed).state_dict()


def test_a_second_construction_has_the_same_weights_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    torch.randn(5)
    assert all(torch.equal(first[name], tensor) for name, tensor in weights().items())
    other = weights(seed=1)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    assert not torch.equal(first["blocks.0.attention.q_proj.weight"], other["blocks.0.attention.q_proj.weight"])


def test_building_a_model_leaves_the_global_random_state_of_dropout_and_data_alone() -> None:
    model = Decoder(tiny_model("gpt2"))
    before = torch.get_rng_state()
    initialize_weights(model, model.config, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_parameter_depends_on_its_name_and_not_on_what_else_there_is() -> None:
    shallow, deep = weights(num_layers=2), weights(num_layers=5, tie_word_embeddings=False)
    for name, tensor in shallow.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            # same draw, scaled by depth
            assert torch.allclose(tensor * (2 / 5) ** 0.5, deep[name], rtol=1e-5)
        elif name != "head.weight":
            assert torch.equal(tensor, deep[name])
    assert not torch.equal(deep["head.weight"], deep["embedding.weight"])


def test_every_parameter_has_a_stream_of_its_own() -> None:
    drawn = [tensor for tensor in weights().values() if tensor.dim() == 2]
    firsts = [round(float(tensor[0, 0]) / float(tensor.std()), 5) for tensor in drawn]
    assert len(set(firsts)) == len(drawn) - 1  # the tied head repeats the embedding


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_standard_deviations(std: float) -> None:
    for name, tensor in weights(init_std=std, hidden_size=128, num_layers=8).items():
        if tensor.dim() == 1:
            expected = 0.0 if name.endswith("bias") else 1.0
            assert (tensor == expected).all(), name
            continue
        expected = std / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else std  # sqrt(2 * 8) = 4
        # a standard deviation of n numbers is itself uncertain by 1 / sqrt(2 n); five of those
        assert float(tensor.std()) == pytest.approx(expected, rel=5 / (2 * tensor.numel()) ** 0.5), name
        assert abs(float(tensor.mean())) < 5 * expected / tensor.numel() ** 0.5, name


def test_zero_init_projections_make_every_block_the_identity() -> None:
    state = weights(zero_init_projections=True)
    zero = {name for name, tensor in state.items() if tensor.dim() == 2 and not tensor.any()}
    assert zero == {
        f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attention.o_proj", "feedforward.down_proj")
    }
    model = Decoder(tiny_model("modern-1m")).eval()
    tokens = torch.arange(8).unsqueeze(0)
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(tokens)
    handle.remove()
    assert torch.equal(*seen[0])


def test_gates_of_the_modern_stack_start_half_open_and_its_mixes_where_they_do_nothing() -> None:
    state = Decoder(tiny_model("modern-1m")).state_dict()
    assert not state["smear.gate.weight"].any()
    assert not state["blocks.1.attention.value_gate.weight"].any()
    assert state["smear.strength"].tolist() == [0.0]
    assert state["stream_share"].tolist() == [1.0, 1.0]
    assert state["shortcut_share"].tolist() == [0.0, 0.0]
    assert state["blocks.1.attention.value_embedding.weight"].std() == pytest.approx(0.12, rel=0.1)
