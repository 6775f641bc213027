"""Exact membership of the parameter groups, and the optimizer built from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_decoder import Model, loss_of

from lit_llm.config import OptimizerConfig, UserError
from lit_llm.optimization import MuonAdamW, build_optimizer, parameter_groups

BLOCKS = ("decoder.blocks.0", "decoder.blocks.1")
HIDDEN = {f"{block}.{name}" for block in BLOCKS for name in ("up.weight", "down.weight")}
GATES = {f"{block}.gate.weight" for block in BLOCKS}
HEAD = {"decoder.head.weight"}
NO_DECAY = {"decoder.embedding.weight", "decoder.final_norm.weight"} | {
    f"{block}.{name}" for block in BLOCKS for name in ("norm.weight", "up.bias", "value_embedding.weight", "scale")
}


def names_by_group(model, config):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_adamw_groups():
    assert names_by_group(Model(), OptimizerConfig()) == {
        "adamw_decay": HIDDEN | GATES | HEAD,
        "adamw_no_decay": NO_DECAY,
    }


def test_a_tied_head_is_an_embedding():
    assert names_by_group(Model(tied=True), OptimizerConfig()) == {
        "adamw_decay": HIDDEN | GATES,
        "adamw_no_decay": NO_DECAY,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_muon_groups(tied):
    assert names_by_group(Model(tied), OptimizerConfig(name="muon")) == {
        "muon": HIDDEN,
        "adamw_decay": GATES if tied else GATES | HEAD,
        "adamw_no_decay": NO_DECAY,
    }


def test_muon_leaves_other_module_lists_and_embeddings_alone():
    model = Model()
    model.extra_heads = nn.ModuleList([nn.Linear(16, 16, bias=False)])
    tied = nn.Linear(16, 24, bias=False)
    tied.weight = model.decoder.blocks[0].value_embedding.weight
    model.decoder.blocks[0].value_head = tied
    groups = names_by_group(model, OptimizerConfig(name="muon"))
    assert groups["muon"] == HIDDEN
    assert groups["adamw_decay"] == GATES | HEAD | {"extra_heads.0.weight"}
    assert groups["adamw_no_decay"] == NO_DECAY


def test_frozen_parameters_are_left_out():
    model = Model()
    model.decoder.blocks.requires_grad_(False)
    assert names_by_group(model, OptimizerConfig()) == {
        "adamw_decay": HEAD,
        "adamw_no_decay": {"decoder.embedding.weight", "decoder.final_norm.weight"},
    }
    with pytest.raises(UserError, match="no trainable hidden matrix"):
        parameter_groups(model, OptimizerConfig(name="muon"))
    model.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        parameter_groups(model, OptimizerConfig())


def test_rates_and_decay_of_each_group():
    config = OptimizerConfig(name="muon", learning_rate=1e-3, muon_learning_rate=0.05, weight_decay=0.2)
    groups = {group["name"]: group for group in build_optimizer(Model(), config).param_groups}
    assert {name: (g["kind"], g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "muon": ("muon", 0.05, 0.2),
        "adamw_decay": ("adamw", 1e-3, 0.2),
        "adamw_no_decay": ("adamw", 1e-3, 0.0),
    }


def test_the_options_reach_the_optimizer():
    config = OptimizerConfig(
        name="muon",
        beta1=0.8,
        beta2=0.9,
        eps=1e-6,
        muon_momentum=0.9,
        muon_momentum_start=0.5,
        muon_momentum_warmup_steps=7,
        muon_ns_steps=3,
    )
    for optimizer in (
        build_optimizer(Model(), config),
        build_optimizer(Model(), OptimizerConfig(beta1=0.8, beta2=0.9)),
    ):
        adamw = next(group for group in optimizer.param_groups if group["kind"] == "adamw")
        assert adamw["betas"] == (0.8, 0.9)
        assert adamw["fused"] is True
    muon = build_optimizer(Model(), config).param_groups[0]
    assert (muon["momentum"], muon["momentum_start"], muon["momentum_warmup_steps"], muon["ns_steps"]) == (
        0.9,
        0.5,
        7,
        3,
    )
    assert build_optimizer(Model(), config).param_groups[1]["eps"] == 1e-6


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_fused_is_kept_refused_or_chosen(name):
    for fused in (True, False):
        optimizer = build_optimizer(Model(), OptimizerConfig(name=name, fused=fused))
        assert optimizer.param_groups[-1]["fused"] is fused
    on_meta = Model().to("meta")
    assert build_optimizer(on_meta, OptimizerConfig(name=name)).param_groups[-1]["fused"] is False
    with pytest.raises(UserError, match=r"optimizer\.fused is true, but torch has no fused AdamW on meta"):
        build_optimizer(on_meta, OptimizerConfig(name=name, fused=True))


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_part_equals_torch(fused):
    """Given the same hidden matrices, every other parameter moves alike, bit for bit."""
    config = OptimizerConfig(name="muon", learning_rate=1e-2, fused=fused)
    ours, reference = Model(), Model()
    optimizer = build_optimizer(ours, config)
    expected = build_optimizer(reference, OptimizerConfig(learning_rate=1e-2, fused=fused))
    assert type(optimizer) is MuonAdamW
    assert isinstance(expected, torch.optim.AdamW)
    hidden = [name for name, _ in ours.named_parameters() if name in HIDDEN]
    for step in range(4):
        for model, stepped in ((ours, optimizer), (reference, expected)):
            stepped.zero_grad()
            loss_of(model, step).backward()
            stepped.step()
        with torch.no_grad():  # the hidden matrices differ by design; give both models the same ones
            for name in hidden:
                reference.get_parameter(name).copy_(ours.get_parameter(name))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name)), name


def test_weight_decay_pulls_matrices_only():
    model = Model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 0.95 if name in HIDDEN | GATES | HEAD else 1.0
        assert torch.allclose(parameter, before[name] * share), name


def test_an_unknown_kind_and_a_vector_are_refused():
    with pytest.raises(ValueError, match="kind None"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(2, 2))], "lr": 0.1, "weight_decay": 0.0}])
    with pytest.raises(ValueError, match=r"not a parameter of shape \[2\]"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(2))], "kind": "muon", "lr": 0.1, "weight_decay": 0.0}])
