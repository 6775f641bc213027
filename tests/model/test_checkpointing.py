"""Activation checkpointing changes no gradient, computes again just what it says, and keeps less."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lit_llm.config import ModelConfig, TrainerConfig, UserError
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange

LAYERS, ROWS, LENGTH = 4, 2, 32
CHOICES = ("none", "full", "every_n", "selective")


def config_of(architecture: str = "llama-10m", **fields: object) -> ModelConfig:
    return tiny_model(architecture, num_layers=LAYERS, init_std=0.2, **fields)


def model_with(choice: str, config: ModelConfig, every: int | None = None, **trainer: object) -> Decoder:
    model = Decoder(config, seed=1)
    options = {} if every is None else {"checkpoint_every_n_blocks": every}
    arrange(model, TrainerConfig(activation_checkpointing=choice, **options, **trainer), None)
    return model


def step(model: Decoder, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 400, (ROWS, LENGTH))
    loss = model(tokens).float().square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("choice", CHOICES[1:])
@pytest.mark.parametrize("architecture", ["llama-10m", "gpt2", "modern-1m"])
def test_gradients_are_the_same(choice: str, architecture: str) -> None:
    config = config_of(architecture, dropout=0.2)  # computed again with the same parts dropped
    plain, model = model_with("none", config), model_with(choice, config)
    assert torch.equal(step(plain), step(model))
    for (name, expected), parameter in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad), name


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *rest: object, **options: object) -> int:
    return sdpa_flop_count(query, key, value)


def counted(model: Decoder) -> int:
    # torch counts the fused attention of GPUs, not that of CPUs
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention_flops}) as counter:
        step(model)
    return counter.get_total_flops()


def test_counted_operations_show_what_is_computed_again() -> None:
    config = config_of()
    hidden, inner, tokens = config.hidden_size, config.feedforward_size, ROWS * LENGTH
    # query, key, value and output projections; gate and up; scores and their product with the values
    again = 2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 4 * ROWS * LENGTH * LENGTH * hidden
    plain = counted(model_with("none", config))
    assert counted(model_with("full", config)) - plain == LAYERS * again
    assert counted(model_with("every_n", config)) - plain == LAYERS // 2 * again
    assert counted(model_with("every_n", config, every=4)) - plain == again
    assert counted(model_with("selective", config)) == plain


def kept(model: Decoder) -> int:
    """Bytes that autograd keeps between forward and backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(torch.zeros(ROWS, LENGTH, dtype=torch.long)).sum()
    del loss
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights)


def test_less_is_kept() -> None:
    # in "selective" the kept results lie in the checkpoint's own cache, which these hooks do not see
    none, full, every_n = (kept(model_with(choice, config_of())) for choice in ("none", "full", "every_n"))
    assert full < every_n < none
    # the stream at the start of each block, and what embedding, norm and head keep
    stream = ROWS * LENGTH * 32 * 4
    assert full < (LAYERS + 4) * stream


@pytest.mark.parametrize("choice", CHOICES)
def test_with_compiled_blocks(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager backend traces as the real one does, without its wait for a C++ compiler."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    config = config_of()
    plain, model = model_with("none", config), model_with(choice, config, compile=True)
    torch.testing.assert_close(step(plain), step(model), rtol=1e-5, atol=1e-6)
    for (name, expected), parameter in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_an_interval_without_its_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs trainer\.activation_checkpointing every_n"):
        TrainerConfig(checkpoint_every_n_blocks=3)
