"""What a plan says that ranks exchange and hold, against what a fake process group of so many ranks sees."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from collectives import Collectives, pretended_ranks
from conftest import tiny_model

from lit_llm.config import DataConfig, OptimizerConfig, PlanConfig, TrainerConfig, preset
from lit_llm.distributed.meshes import make_mesh
from lit_llm.distributed.tensors import local_part
from lit_llm.model import Decoder
from lit_llm.model.parallel import arrange
from lit_llm.optimization import build_optimizer
from lit_llm.planning.exchanges import Exchange, exchanges_of
from lit_llm.planning.memory import Placement, device_memory

ROWS, LENGTH = 2, 16


def recipe(layers: int, trainer: dict[str, Any], optimizer: str = "adamw", precision: Any = "32-true") -> PlanConfig:
    sizes = {"hidden_size": 64, "num_heads": 32, "num_key_value_heads": 32, "intermediate_size": 192}
    return PlanConfig(
        model=tiny_model(num_layers=layers, vocab_size=512, tie_word_embeddings=False, **sizes),
        data=DataConfig(sequence_length=LENGTH, batch_size=4096, micro_batch_size=ROWS),
        trainer=TrainerConfig(strategy="fsdp", precision=precision, **trainer),
        optimizer=OptimizerConfig(name=optimizer, muon_ns_dtype="float32"),
    )


def placement_of(config: PlanConfig, ranks: int) -> Placement:
    trainer = config.trainer
    tensor, context = trainer.tensor_parallel_size, trainer.context_parallel_size
    shares = ranks // tensor // context
    return Placement("", "fsdp", shares, ROWS, 1, tensor, context, replicas=trainer.fsdp_replicas)


def first_of(config: PlanConfig, ranks: int) -> Decoder:
    """The model on the first of so many ranks, on the meta device."""
    tensor, replicas = config.trainer.tensor_parallel_size, config.trainer.fsdp_replicas
    with torch.device("meta"):
        model = Decoder(config.model)
    arrange(model, config.trainer, make_mesh("cpu", ranks // tensor // replicas, tensor, replicas=replicas))
    return model


def seen(config: PlanConfig, ranks: int) -> Counter[tuple[str, int, str]]:
    """Calls and bytes of float32, by kind and number of ranks, of a micro-batch and an optimizer step."""
    model = first_of(config, ranks)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.ones_(local_part(parameter))
    placement, found = placement_of(config, ranks), Counter[tuple[str, int, str]]()
    optimizer = build_optimizer(model, config.optimizer)
    groups = {placement.shares, placement.replicas, placement.tensor_parallel, placement.context_parallel, ranks} - {1}
    counters = {size: Collectives(size) for size in groups}
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for counter in counters.values():
        counter.__enter__()
    model(tokens, head=lambda hidden, head: hidden.sum(), head_reads_part=True).backward()
    optimizer.step()
    for counter in reversed(counters.values()):
        counter.__exit__(None, None, None)
    for size, counter in counters.items():
        for kind in counter.counts:
            found[kind, size, "calls"] = counter.counts[kind]
            found[kind, size, "bytes"] = 4 * counter.numbers[kind]
    return found


def of_a_block(config_of: Any, ranks: int) -> tuple[dict[str, Exchange], Counter[tuple[str, int, str]]]:
    """What a third block adds, as planned by what it is for, and as seen."""
    few, more = config_of(2), config_of(3)
    plans = [{each.what: each for each in exchanges_of(c, placement_of(c, ranks), "none", "cpu")} for c in (few, more)]
    planned = {
        what: Exchange(what, each.ranks, each.calls - plans[0][what].calls, each.tensors - plans[0][what].tensors, 0.0)
        for what, each in plans[1].items()
    }
    with pretended_ranks(ranks):
        counts = seen(more, ranks) - seen(few, ranks)
    return planned, counts


@pytest.mark.parametrize(
    ("ranks", "trainer"),
    [
        (64, {}),
        pytest.param(64, {"reshard_after_forward": False}, marks=pytest.mark.slow),
        (256, {"context_parallel_size": 4}),
        (1024, {"tensor_parallel_size": 8, "context_parallel_size": 4, "fsdp_replicas": 2}),
        pytest.param(
            1024,
            {"tensor_parallel_size": 8, "sequence_parallel": True, "fsdp_replicas": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_exchanges_of_a_block(ranks: int, trainer: dict[str, Any]) -> None:
    planned, counts = of_a_block(lambda layers: recipe(layers, trainer), ranks)
    # of the parts that a rank gathers, the counter sees one
    kinds = {
        "weights gathered": ("all_gather", 1),
        "gradients reduced": ("reduce_scatter", 1),
        "gradients between copies": ("all_reduce", 1),
        "tensor parallel, sums": ("all_reduce", 1),
        "tensor parallel, gathered tokens": ("all_gather", trainer.get("tensor_parallel_size", 1)),
        "tensor parallel, sums cut by tokens": ("reduce_scatter", 1),
        "context parallel, tokens for heads": ("all_to_all", 1),
    }
    sharing = {"tensor parallel, sums", "tensor parallel, gathered tokens", "context parallel, tokens for heads"}
    assert len(planned.keys() & sharing) == len({"tensor_parallel_size", "context_parallel_size"} & trainer.keys())
    for what, plan in planned.items():
        kind, times = kinds[what]
        assert plan.calls == counts[kind, plan.ranks, "calls"] > 0, what
        assert plan.tensors == times * counts[kind, plan.ranks, "bytes"], what


def test_each_rank_orthogonalises_its_share() -> None:
    """16 square and 24 other matrices over 8 ranks: two exchanges, and an eighth of the work."""
    from torch.utils.flop_counter import FlopCounterMode

    config = recipe(8, {}, "muon")
    with pretended_ranks(8):
        model = first_of(config, 8)
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.ones_(local_part(parameter))
            parameter.grad = torch.ones_like(parameter)
        optimizer = build_optimizer(model, config.optimizer)
        with Collectives(8) as exchanged, FlopCounterMode(display=False) as counted:
            optimizer.step()
    (plan,) = [e for e in exchanges_of(config, placement_of(config, 8), "none", "cpu") if e.what.startswith("Muon")]
    assert dict(exchanged.counts) == {"all_to_all": plan.calls}
    squares, others = 4 * 64**3, 3 * 64**2 * 192  # of a block: side^2 x longer side
    # each of five iterations multiplies by the matrix twice, and the Gram matrix by itself
    iteration = 2 * (2 * (squares + others) + (4 + 3) * 64**3)
    assert counted.get_total_flops() == pytest.approx(8 * 5 * iteration / 8, rel=0.1)
    assert plan.tensors == pytest.approx(4 * exchanged.numbers["all_to_all"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks", "tensor"), [("llama3-8b", 64, 1), ("llama3.1-405b", 1024, 8)])
def test_weights_of_a_rank(name: str, ranks: int, tensor: int) -> None:
    config = recipe(2, {"tensor_parallel_size": tensor})
    config.model = preset(name)
    with pretended_ranks(ranks):
        model = first_of(config, ranks)
        numbers = sum(local_part(parameter).numel() for parameter in model.parameters())
    assert device_memory(config, placement_of(config, ranks), "full").weights == pytest.approx(4 * numbers, rel=1e-3)
