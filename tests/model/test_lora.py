"""Low-rank additions: what they start as, what is trained, what they compute, and what merging them gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens, trained_state
from ranks import mesh_of, run_ranks
from torch import Tensor, nn

from lit_llm.config import PROJECTIONS, LoraConfig, OptimizerConfig, TrainerConfig, UserError
from lit_llm.distributed.tensors import shard_like
from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.lora import (
    LoraLinear,
    adapted_layers,
    adapters_off,
    add_lora,
    is_adapter,
    merged_state,
    prepare_dora,
    quantize_base,
    quantize_weight,
    rounded_base,
)
from lit_llm.model.parallel import arrange
from lit_llm.model.quantization import quantize
from lit_llm.optimization import build_optimizer, parameter_groups

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "int8": {"quantize_base": "int8"},
    "int4 dora": {"quantize_base": "int4", "dora": True},
}


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 8.0, **fields})


def decoder(architecture: str = "qwen2.5-0.5b", **fields: Any) -> Decoder:
    return random_decoder(tiny_model(architecture, **fields), std=0.1)


def adapted(config: LoraConfig, model: Decoder | None = None) -> Decoder:
    model = decoder() if model is None else model
    add_lora(model, config, seed=5)
    quantize_base(model, config.quantize_base)
    prepare_dora(model)
    return model


def train(model: Decoder, steps: int = 3) -> Decoder:
    """Real optimizer steps, in training mode; the model is in evaluation mode again."""
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.02))
    model.train()
    for step in range(steps):
        tokens = random_tokens(model.config, 4, 17, seed=step)
        output = model(tokens[:, :-1])
        loss = output.square().mean() if output.dim() == 2 else F.cross_entropy(output.mT, tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(random_tokens(model.config, 2, 16, seed=9))


def plain(model: Decoder, weights: dict[str, Tensor]) -> Decoder:
    merged = Decoder(model.config).eval()
    merged.load_state_dict(weights)
    return merged


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["qwen2.5-0.5b", "gpt2", "modern-1m"])
def test_merged_is_unmerged_after_training(architecture: str, kind: str) -> None:
    """Biases of the projections are large and uneven here, and so are the norms."""
    config = lora(**KINDS[kind])
    model = adapted(config, decoder(architecture))
    before = logits(model)
    state = {name: tensor.clone() for name, tensor in train(model).state_dict().items()}
    merged = merged_state(model.state_dict(), config)
    assert largest_difference(logits(model), before) > 0.01
    assert largest_difference(logits(plain(model, merged)), logits(model)) < 1e-5
    assert not any(is_adapter(name) for name in merged)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())  # nothing is changed


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_its_base_and_the_base_stays_in_reach(kind: str) -> None:
    config = lora(**KINDS[kind])
    base = plain(decoder(), rounded_base(decoder().state_dict(), config))
    model = adapted(config)
    # the product of turned-back weights may be summed in another order
    allowed = 1e-5 if "quantize_base" in KINDS[kind] else 0.0
    assert largest_difference(logits(model), logits(base)) <= allowed
    before = logits(model)
    train(model)
    assert not torch.equal(logits(model), before)
    with adapters_off(model):
        assert torch.equal(logits(model), before)
        with adapters_off(model):
            pass
        assert torch.equal(logits(model), before)
    after = logits(model)
    assert not torch.equal(after, before)
    with pytest.raises(RuntimeError), adapters_off(model):
        raise RuntimeError
    assert torch.equal(logits(model), after)


@pytest.mark.parametrize("dora", [False, True])
def test_only_additions_are_trained(dora: bool) -> None:
    model = adapted(lora(dora=dora))
    frozen = {name: value.clone() for name, value in model.state_dict().items() if not is_adapter(name)}
    trained = trained_state(model)
    parts = ("lora_A", "lora_B", "lora_magnitude")[: 2 + dora]
    layers = [f"blocks.{layer}.attention.{name}" for layer in range(2) for name in PROJECTIONS[:4]]
    layers += [f"blocks.{layer}.feedforward.{name}" for layer in range(2) for name in PROJECTIONS[4:]]
    assert set(trained) == {f"{layer}.{part}" for layer in layers for part in parts}
    before = {name: value.clone() for name, value in trained.items()}
    train(model)
    assert all(not torch.equal(value, before[name]) for name, value in trained.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(model, OptimizerConfig())}
    assert groups == {"adamw_decay": 28} | ({"adamw_no_decay": 14} if dora else {})
    with pytest.raises(UserError, match=r"use optimizer.name adamw"):
        parameter_groups(model, OptimizerConfig(name="muon"))


def test_a_new_head_is_trained_whole() -> None:
    scorer = adapted(lora(), Decoder(decoder().config.as_score()).eval())
    assert {name for name in trained_state(scorer) if not is_adapter(name)} == {"head.weight"}
    before = scorer.head.weight.detach().clone()
    train(scorer)
    assert not torch.equal(scorer.head.weight, before)
    assert largest_difference(logits(plain(scorer, merged_state(scorer.state_dict(), lora()))), logits(scorer)) < 1e-5
    critic = adapted(lora(), decoder(value_head=True))
    assert {name for name in trained_state(critic) if not is_adapter(name)} == {"value_head.weight"}


def test_the_scale_and_the_first_values() -> None:
    """By hand: W x + b + alpha / rank * B A x; A within 1 / sqrt(in), and rsLoRA divides by the root."""
    model = adapted(lora(targets=["q_proj"]))
    layer = model.blocks[0].attention.q_proj
    assert isinstance(layer, nn.Linear)
    assert [type(module) for module in adapted_layers(model)] == [LoraLinear] * 2
    assert layer.lora_A.shape == (4, 32)
    assert layer.lora_B.shape == (32, 4)
    assert 0.9 * 32**-0.5 < float(layer.lora_A.detach().abs().max()) <= 32**-0.5
    assert float(layer.lora_A.detach().std()) == pytest.approx((3 * 32) ** -0.5, rel=0.15)
    assert not layer.lora_B.any()
    train(model)
    x = torch.randn(3, 32)
    for config, scale in ((lora(), 2.0), (lora(rslora=True), 4.0)):
        assert config.scale == scale
        layer.scale = config.scale
        by_hand = F.linear(x, layer.weight, layer.bias) + scale * (x @ layer.lora_A.t() @ layer.lora_B.t())
        assert largest_difference(layer(x), by_hand) < 1e-5


def test_dora_takes_the_length_of_rows_from_its_magnitude_and_no_gradient_from_the_norm() -> None:
    """The paper's formula, with its norm held constant, differentiated by autograd."""
    layer = train(adapted(lora(dora=True, targets=["q_proj"]))).blocks[0].attention.q_proj
    x = torch.randn(3, 32)
    merged = layer.weight + 2.0 * layer.lora_B @ layer.lora_A
    by_hand = F.linear(x, (layer.lora_magnitude / merged.norm(dim=1).detach()).unsqueeze(1) * merged, layer.bias)
    parameters = (layer.lora_A, layer.lora_B, layer.lora_magnitude)
    assert largest_difference(layer(x), by_hand) < 1e-5
    expected = torch.autograd.grad(by_hand.square().sum(), parameters)
    for ours, theirs in zip(torch.autograd.grad(layer(x).square().sum(), parameters), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_first_values_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    one = trained_state(adapted(lora()))
    torch.manual_seed(2)
    with torch.device("meta"):
        model = Decoder(decoder().config)
    add_lora(model, lora(), 0)
    assert all(value.is_meta for value in trained_state(model).values())
    assert set(trained_state(model)) == set(one)
    model.to_empty(device="cpu")
    model.tie()
    initialize_weights(model, model.config, 5)
    assert all(torch.equal(value, one[name]) for name, value in trained_state(model).items())
    first = [float(value[0, 0]) for name, value in one.items() if name.endswith("lora_A")]
    assert len(set(first)) == len(first)
    other = decoder()
    add_lora(other, lora(), 6)
    assert not torch.equal(other.blocks[0].attention.q_proj.lora_A, one["blocks.0.attention.q_proj.lora_A"])


def test_dropout_in_training_alone_and_before_the_addition_alone() -> None:
    model = train(adapted(lora(dropout=0.5)))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
    with adapters_off(model):
        off = logits(model)
    assert torch.equal(off, logits(decoder()))


@pytest.mark.parametrize("dora", [False, True])
def test_under_autocast_and_in_bfloat16(dora: bool) -> None:
    model = train(adapted(lora(dora=dora)))
    full = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logits(model)
    assert mixed.dtype == torch.bfloat16
    assert largest_difference(mixed.float(), full) < 0.05 * float(full.abs().max())

    half = adapted(lora(dora=dora), decoder().to(torch.bfloat16))
    assert torch.equal(logits(half), logits(decoder().to(torch.bfloat16)))
    assert {value.dtype for value in trained_state(half).values()} == {torch.float32}
    half.load_state_dict(trained_state(model), strict=False)
    assert logits(half).dtype == torch.bfloat16
    assert largest_difference(logits(half).float(), full) < 0.05 * float(full.abs().max())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_base_is_near_its_weights_and_passes_their_gradient(kind: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    layer = LoraLinear(linear, lora(quantize_base=kind))
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    full = layer.weight.detach().clone()
    layer.hold_quantized(kind)
    assert layer.weight.nbytes == full.nbytes / {"int8": 4, "int4": 8}[kind]
    assert layer.weight_scale.nbytes == {"int8": 48 * 4, "int4": 48 * 2 * 2 * 4}[kind]
    error = largest_difference(layer.dequantized(), full)
    assert 0 < error <= float(full.abs().max()) / {"int8": 127, "int4": 7.5}[kind] * 0.51

    same = LoraLinear(linear, lora())
    same.load_state_dict({**linear.state_dict(), "lora_A": layer.lora_A.detach(), "lora_B": layer.lora_B.detach()})
    same.weight = nn.Parameter(layer.dequantized())
    x = torch.randn(2, 5, 64, requires_grad=True)
    y, expected = layer(x), same(x)
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(y)
    ours = torch.autograd.grad((y * weights).sum(), (x, layer.lora_A, layer.lora_B))
    theirs = torch.autograd.grad((expected * weights).sum(), (x, same.lora_A, same.lora_B))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.bfloat16
    assert largest_difference(mixed.float(), expected) < 0.05 * float(expected.detach().abs().max())
    assert [tensor.dtype for tensor in quantize_weight(full.bfloat16(), kind)][1] == torch.bfloat16


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointed_blocks_have_the_same_gradients(checkpointing: str) -> None:
    config = lora(quantize_base="int8", dora=True)
    found = []
    for choice in ("none", checkpointing):
        model = train(adapted(config), steps=1)
        arrange(model, TrainerConfig(activation_checkpointing=choice), None)
        model(random_tokens(model.config, 2, 16)).square().mean().backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert all(torch.allclose(value, found[1][name], atol=1e-6) for name, value in found[0].items())


def test_a_compiled_layer_is_one_graph_and_follows_the_switch() -> None:
    config = lora(**KINDS["int4 dora"])
    layer = train(adapted(config)).blocks[0].attention.q_proj
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 32, requires_grad=True)
    for _ in range(2):
        wanted = (x, layer.lora_A, layer.lora_B)
        expected = torch.autograd.grad(layer(x).square().sum(), wanted)
        for ours, theirs in zip(torch.autograd.grad(compiled(x).square().sum(), wanted), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        with adapters_off(layer):
            assert torch.allclose(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
            off = compiled(x)
        assert not torch.allclose(compiled(x), off, rtol=1e-2, atol=1e-2)


def ranks(folder: Path) -> None:
    """Two ranks: the same start and the same gradients as one device."""
    sharded(folder)
    replicated()


def replicated() -> None:
    """DDP with a quantized base."""
    model = adapted(lora(quantize_base="int4"))
    tokens = random_tokens(model.config, 2, 16)
    model(tokens).square().mean().backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(tokens.chunk(2)[torch.distributed.get_rank()]).square().mean().backward()
    for name, value in trained_state(model).items():
        assert torch.allclose(model.get_parameter(name).grad, expected[name], rtol=1e-3, atol=1e-6), value.shape


def sharded(folder: Path) -> None:
    config = lora(dora=True)
    base = decoder()
    with torch.device("meta"):
        model = Decoder(base.config)
    add_lora(model, config, 5)
    arrange(model, TrainerConfig(strategy="fsdp"), mesh_of(2, 1))
    model.to_empty(device="cpu")
    model.tie()
    initialize_weights(model, base.config, 5)
    state = model.state_dict()
    for name, weight in base.state_dict().items():
        state[name].copy_(shard_like(weight, state[name]))
    prepare_dora(model)
    expected = torch.load(folder / "expected.pt")
    for name, value in trained_state(model).items():
        assert torch.equal(value.full_tensor(), expected[f"first/{name}"]), name
    assert torch.allclose(logits(model), expected["logits"], atol=1e-6)
    with adapters_off(model):
        assert torch.allclose(logits(model), expected["logits"], atol=1e-6)
    model(random_tokens(model.config, 2, 16)).square().mean().backward()
    for name, value in model.named_parameters():
        assert (value.grad is not None) == is_adapter(name)
        if value.grad is not None:
            assert torch.allclose(value.grad.full_tensor(), expected[f"gradient/{name}"], rtol=1e-3, atol=1e-6), name
    with pytest.raises(UserError, match=r"quantize_base does not work with trainer.strategy fsdp"):
        quantize_base(model, "int8")


def test_over_two_ranks(tmp_path: Path) -> None:
    model = adapted(lora(dora=True))
    expected = {f"first/{name}": value.clone() for name, value in trained_state(model).items()}
    expected["logits"] = logits(model)
    model(random_tokens(model.config, 2, 16)).square().mean().backward()
    expected |= {f"gradient/{name}": value.grad for name, value in model.named_parameters() if value.requires_grad}
    torch.save(expected, tmp_path / "expected.pt")
    run_ranks(ranks, 2, tmp_path, tmp_path)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="gate_proj, which is no layer of this model"):
        add_lora(decoder("gpt2"), lora(targets=["gate_proj"]), 0)
    model = decoder(intermediate_size=72)
    add_lora(model, lora(), 0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"int4 rounds groups of 32 weights, .* layer's 72 inputs; use int8"):
        quantize_base(model, "int4")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match="low-rank additions cannot be quantized; merge them first"):
        quantize(model, "int8")
    with pytest.raises(ValueError, match="additions already"):
        add_lora(model, lora(), 0)


@pytest.mark.parametrize(("fields", "message"), [
    ({"rank": -1}, "lora.rank is -1"),
    ({"alpha": 0.0}, "lora.alpha is 0.0"),
    ({"dropout": 1.0}, "lora.dropout is 1.0"),
    ({"targets": []}, "lora.targets is empty"),
    ({"targets": ["head"]}, r"lora.targets has 'head'; it can have q_proj, .* or all"),
    ({"quantize_base": "nf4"}, "lora.quantize_base is 'nf4'; it must be none, int8 or int4"),
    ({"rank": 0, "alpha": 16.0, "dora": True}, "lora.dora has no effect while lora.rank is 0"),
])  # fmt: skip
def test_options_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora(**fields)


@pytest.mark.parametrize(("fields", "trainer", "message"), [
    ({}, {"strategy": "fsdp", "tensor_parallel_size": 2}, "needs trainer.tensor_parallel_size 1"),
    ({}, {"strategy": "fsdp1"}, "does not work with trainer.strategy fsdp1"),
    ({}, {"strategy": "deepspeed"}, "does not work with trainer.strategy deepspeed"),
    ({"quantize_base": "int8"}, {"strategy": "fsdp"}, "lora.quantize_base does not work with trainer.strategy fsdp"),
    ({"dora": True}, {"strategy": "fsdp", "precision": "bf16-mixed"}, "needs trainer.precision 32-true"),
])  # fmt: skip
def test_trainers_that_are_refused(fields: dict[str, Any], trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora(**fields).check_trainer(TrainerConfig(**trainer))
    LoraConfig().check_trainer(TrainerConfig(**trainer))
    lora(**fields).check_trainer(TrainerConfig(strategy="ddp"))
