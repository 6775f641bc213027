"""Muon against torch.optim.Muon, its momentum warm-up, its memory bound, and exact resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy_decoder import Model, loss_of

from lit_llm.config import OptimizerConfig, ScheduleConfig
from lit_llm.optimization import MuonAdamW, build_optimizer, build_schedule
from lit_llm.optimization.muon import NS_COEFFICIENTS, _batches, momentum_at, orthogonalize

SHAPES = [(32, 32), (64, 16), (16, 64), (32, 32), (48, 32), (64, 16)]


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def muon_only(parameters, **options):
    group = {"params": parameters, "kind": "muon", "lr": 0.05, "weight_decay": 0.1}
    return MuonAdamW([group], momentum_warmup_steps=0, **options)


def set_grads(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for scale, parameter in enumerate(parameters, start=1):
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_equals_torch_muon(momentum):
    ours, reference, start = matrices(), matrices(), matrices()
    optimizer = muon_only(ours, momentum=momentum)
    expected = torch.optim.Muon(reference, lr=0.05, weight_decay=0.1, momentum=momentum)
    for step in range(5):
        for parameters, stepped in ((ours, optimizer), (reference, expected)):
            set_grads(parameters, step)
            stepped.step()
    for got, want, first in zip(ours, reference, start, strict=True):
        # torch iterates in bfloat16 (3 significant digits); compare the way travelled.
        assert (got - want).norm() <= 0.02 * (want - first).norm()
        assert (want - first).norm() > 0.1


def test_first_update_is_orthogonal_and_scaled_by_shape():
    tall, wide = nn.Parameter(torch.zeros(64, 16)), nn.Parameter(torch.zeros(16, 64))
    optimizer = MuonAdamW([{"params": [tall, wide], "kind": "muon", "lr": 0.5, "weight_decay": 0.0}])
    set_grads([tall, wide], 0)
    optimizer.step()
    for parameter, factor in ((tall, 2.0), (wide, 1.0)):
        singular = torch.linalg.svdvals(parameter.detach()) / (0.5 * factor)
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        assert (parameter * parameter.grad).sum() < 0  # downhill


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    parameter = nn.Parameter(torch.full((16, 16), 2.0))
    optimizer = muon_only([parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameter, torch.full((16, 16), 2.0 * (1 - 0.05 * 0.1)))


def test_more_newton_schulz_steps_come_closer_to_orthogonal():
    x = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))

    def spread(steps):
        values = torch.linalg.svdvals(orthogonalize(x, steps, torch.float32)[0])
        return (values.max() - values.min()).item()

    assert spread(1) > 0.9 * spread(0) > 0.1
    assert spread(5) < 0.6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float32, 1e-5)])
def test_either_arithmetic_is_as_exact_as_its_numbers(dtype, tolerance):
    """And within bfloat16's three digits, in which torch computes, it is torch's."""
    x = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(0))
    got = orthogonalize(x, 5, dtype)
    assert got.dtype == dtype
    for matrix, update, exact in zip(x, got.float(), orthogonalize(x, 5, torch.float64).float(), strict=True):
        want = torch.optim._muon._zeropower_via_newtonschulz(matrix.clone(), NS_COEFFICIENTS, 5, 1e-7).float()
        assert (update - want).norm() <= 0.02 * want.norm()
        assert (update - exact).norm() <= tolerance * exact.norm()


def test_the_arithmetic_is_float32_on_any_cpu_unless_bfloat16_is_asked_for():
    def weights(dtype):
        model = Model()
        optimizer = build_optimizer(model, OptimizerConfig(name="muon", muon_ns_dtype=dtype))
        loss_of(model, 0).backward()
        optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights("auto"), weights("float32"))
    assert not torch.equal(weights("auto"), weights("bfloat16"))
    assert [OptimizerConfig().newton_schulz_dtype(device) for device in ("cpu", "cuda")] == ["float32", "bfloat16"]


def test_the_compiled_iterations_are_the_same(monkeypatch):
    """Where they are asked for, they are what is used, also by a copy."""
    used = []

    def noted(stack, *rest):
        used.append(stack.shape)
        return orthogonalize(stack, *rest)

    monkeypatch.setattr("lit_llm.optimization.muon.compiled_orthogonalize", lambda: noted)
    plain, compiled = matrices(), matrices()
    optimizers = [muon_only(plain), copy.deepcopy(muon_only(compiled, compiled=True))]
    copied = optimizers[1].param_groups[0]["params"]
    for parameters, optimizer in zip((plain, copied), optimizers, strict=True):
        set_grads(parameters, 0)
        optimizer.step()
    assert used == [(2, 32, 32), (3, 16, 64), (1, 32, 48)]
    assert all(torch.equal(one, other) for one, other in zip(plain, copied, strict=True))


def test_batches_hold_one_shape_each_within_the_memory_bound():
    tensors = [parameter.detach() for parameter in matrices()]
    assert list(_batches(dict(enumerate(tensors)), 2**20)) == [[0, 3], [1, 2, 5], [4]]
    # 2,048 elements hold two of 16 x 64; below the size of one matrix, each goes alone
    assert list(_batches(dict(enumerate(tensors)), 2048))[1:3] == [[1, 2], [5]]
    assert [len(indices) for indices in _batches(dict(enumerate(tensors)), 1)] == [1] * 6


def test_momentum_warms_up():
    assert [momentum_at(step, 0.85, 0.95, 4) for step in (0, 1, 2, 4, 5)] == pytest.approx(
        [0.85, 0.875, 0.9, 0.95, 0.95]
    )
    assert momentum_at(0, 0.85, 0.95, 0) == 0.95
    parameter = nn.Parameter(torch.zeros(16, 16))
    group = {"params": [parameter], "kind": "muon", "lr": 0.0, "weight_decay": 0.0}
    optimizer = MuonAdamW([group], momentum=0.8, momentum_start=0.4, momentum_warmup_steps=2)
    expected = 0.0
    for momentum in (0.4, 0.6, 0.8, 0.8):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        expected = momentum * expected + (1 - momentum)
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert torch.allclose(buffer, torch.full_like(buffer, expected))
    assert optimizer.param_groups[0]["step"] == 4


def test_closure_runs_once_with_gradients_and_its_loss_is_returned():
    model = Model()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"))
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        calls.append(loss)
        return loss

    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_parameters_without_gradient_stay():
    parameters = matrices()
    set_grads(parameters, 0)
    parameters[2].grad = None
    before = parameters[2].detach().clone()
    optimizer = muon_only(parameters)
    optimizer.step()
    assert torch.equal(parameters[2], before)
    assert parameters[2] not in optimizer.state


def train(model, optimizer, schedule, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resume_is_bit_identical(name, fused, tmp_path):
    config = OptimizerConfig(name=name, fused=fused, learning_rate=1e-2, muon_momentum_warmup_steps=6)
    schedule_config = ScheduleConfig(warmup_steps=3)

    def fresh(seed):
        model = Model(seed=seed)
        optimizer = build_optimizer(model, config)
        return model, optimizer, build_schedule(optimizer, schedule_config, 8)

    whole = fresh(0)
    expected = train(*whole, range(8))
    first = fresh(0)
    train(*first, range(4))
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    second = fresh(1)  # other weights, so that whatever is not restored shows
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(*second, range(4, 8)) == expected[4:]
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
        for key, value in whole[1].state[one].items():
            assert torch.equal(value, second[1].state[other][key])
    assert whole[1].param_groups[0]["lr"] == second[1].param_groups[0]["lr"]


def test_a_copied_optimizer_goes_on_by_itself():
    model = Model()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", learning_rate=1e-2))
    loss_of(model, 0).backward()
    optimizer.step()
    copied_model, copied = copy.deepcopy((model, optimizer))
    for one, stepped in ((model, optimizer), (copied_model, copied)):
        stepped.zero_grad()
        loss_of(one, 1).backward()
        stepped.step()
    for one, other in zip(model.parameters(), copied_model.parameters(), strict=True):
        assert one is not other
        assert torch.equal(one, other)
    copied.add_param_group({"params": [nn.Parameter(torch.ones(3))], "kind": "adamw", "lr": 0.1, "weight_decay": 0.0})
    assert copied.param_groups[-1]["betas"] == (0.9, 0.95)


def test_training_lower_the_loss():
    model = Model()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", learning_rate=1e-2))
    first = loss_of(model, 0).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, 0).backward()
        optimizer.step()
    assert loss_of(model, 0).item() < 0.5 * first
