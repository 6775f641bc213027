"""What each strategy adds to, and takes from, what a step holds; the choice among them; time and cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT, tiny_model

from lit_llm.config import DataConfig, OptimizerConfig, PlanConfig, TrainerConfig
from lit_llm.planning import count_parameters, training_flops_per_token
from lit_llm.planning.choice import cheapest, every_option, largest_rows
from lit_llm.planning.cost import chinchilla_steps, training_cost
from lit_llm.planning.memory import Placement, device_memory

ONE = Placement("one device", "replicas", data_parallel=1, rows=2, accumulation=2)
DDP = Placement("ddp", "replicas", data_parallel=4, rows=2, accumulation=2)
FSDP = Placement("fsdp", "fsdp", data_parallel=4, rows=2, accumulation=2)
WIDTHS = {"hidden_size": 64, "num_layers": 4, "intermediate_size": 160, "vocab_size": 512}


def recipe(**groups: Any) -> PlanConfig:
    trainer = TrainerConfig(**groups.pop("trainer", {}))
    optimizer = OptimizerConfig(**groups.pop("optimizer", {}))
    data = DataConfig(sequence_length=32, batch_size=16, micro_batch_size=2)
    return PlanConfig(
        model=tiny_model("llama-10m", **WIDTHS), data=data, trainer=trainer, optimizer=optimizer, **groups
    )


@pytest.mark.parametrize(("precision", "width"), [("32-true", 4), ("bf16-mixed", 4), ("bf16-true", 2)])
def test_one_device_holds_weights_gradients_and_two_moments(precision: Any, width: int) -> None:
    config = recipe(trainer={"precision": precision})
    memory = device_memory(config, ONE, "none")
    parameters = count_parameters(config.model)
    assert memory.weights == memory.gradients == parameters * width
    assert memory.optimizer == 2 * parameters * width
    assert memory.communication == 0
    assert memory.activations > 0
    assert memory.total == sum(vars(memory).values())


def test_attention_by_a_mask_keeps_the_scores_of_all_pairs() -> None:
    def kept(kernel: Any, cap: float | None = 20.0) -> int:
        config = recipe(trainer={"attention_kernel": kernel})
        capped = replace(config, model=replace(config.model, attention_softcap=cap))
        return device_memory(capped, ONE, "none").activations

    scores = 4 * ONE.rows * recipe().model.num_heads * 32 * 32
    first_seen = 32 * 8  # what the kernel has instead of a mask, for all blocks
    assert kept("mask") - kept("auto") == 4 * 2 * scores - first_seen  # capped and as weights, in four blocks
    assert kept("mask", cap=None) == kept("auto", cap=None)


def test_muon_keeps_one_number_for_each_hidden_weight() -> None:
    adamw, muon = (device_memory(recipe(optimizer={"name": name}), ONE, "none") for name in ("adamw", "muon"))
    hidden = 4 * (4 * 64 * 64 + 3 * 64 * 160)  # square projections and the gated feed-forward of four blocks
    assert adamw.optimizer - muon.optimizer == 4 * hidden


def test_memory_of_newton_schulz_depends_on_its_arithmetic() -> None:
    """Peaks of the step of a model whose activations are nothing beside it: a stack and three of its size."""

    def temporary(device: Any, dtype: Any = "auto") -> int:
        config = recipe(optimizer={"name": "muon", "muon_ns_dtype": dtype})
        config = replace(config, data=replace(config.data, sequence_length=1))
        return device_memory(config, replace(ONE, rows=1, accumulation=1), "full", device).temporary

    hidden = 4 * (4 * 64 * 64 + 3 * 64 * 160)
    assert temporary("accelerator", "float32") - temporary("accelerator") == 3 * 2 * hidden
    assert temporary("accelerator", "bfloat16") == temporary("accelerator")
    assert temporary("cpu") == temporary("accelerator", "float32")


def test_ddp_keeps_the_memory_of_its_gradients() -> None:
    config = recipe()
    one, ddp = device_memory(config, ONE, "none"), device_memory(config, DDP, "none")
    # the gradients are views into the buckets, so there is no second copy of them
    assert ddp.communication == 0
    assert ddp.gradients == ddp.weights >= one.gradients
    assert ddp.total >= one.total


def test_fsdp_shards_what_lasts() -> None:
    config = recipe()
    parameters = count_parameters(config.model)
    memory = device_memory(config, FSDP, "none")
    assert memory.weights == parameters
    assert memory.optimizer == 2 * parameters
    kept = device_memory(config, replace(ONE, accumulation=1), "none").activations
    assert 0.9 * kept < memory.activations <= kept  # at its own peak, which may be a little into the backward pass
    block = 4 * 64 * 64 + 3 * 64 * 160 + 2 * 64
    gathered = parameters - 4 * block + 3 * block
    assert memory.communication in (4 * gathered, 4 * gathered + 12 * block)


def test_gradients_wait_whole_for_the_last_micro_batch() -> None:
    placement = replace(FSDP, accumulation=2)
    kept = device_memory(recipe(trainer={"strategy": "fsdp"}), placement, "none").gradients
    sent = recipe(trainer={"strategy": "fsdp", "reduce_every_micro_batch": True})
    assert kept == 4 * count_parameters(sent.model) > 2 * device_memory(sent, placement, "none").gradients


def test_offloaded_shards_are_not_on_the_device() -> None:
    config = recipe(trainer={"strategy": "fsdp", "offload": True})
    memory = device_memory(config, FSDP, "none")
    assert (memory.weights, memory.optimizer) == (0, 0)
    assert memory.activations > 0


def test_tensor_parallel_ranks_share_the_blocks() -> None:
    config = recipe()
    shared = replace(FSDP, data_parallel=2, tensor_parallel=2)
    alone = device_memory(config, replace(FSDP, data_parallel=2), "none")
    memory = device_memory(config, shared, "none")
    norms = 64 + 4 * 2 * 64  # which stay whole
    assert memory.weights == 2 * (norms + (count_parameters(config.model) - norms) // 2)
    assert 0.4 * alone.activations < memory.activations < alone.activations


def test_stages_of_deepspeed_shard_more_and_more() -> None:
    config = recipe(trainer={"precision": "bf16-mixed"})
    parameters = count_parameters(config.model)
    one, two, three = (
        device_memory(config, Placement("", "deepspeed", 4, 2, 2, stage=stage), "none") for stage in (1, 2, 3)
    )
    assert one.optimizer == two.optimizer == three.optimizer == 12 * parameters // 4
    assert (one.gradients, two.gradients, three.gradients) == (2 * parameters, parameters // 2, parameters // 2)
    assert (one.weights, two.weights, three.weights) == (2 * parameters, 2 * parameters, parameters // 2)


def test_the_cheapest_is_the_first_that_fits() -> None:
    config = recipe()
    placements = [DDP, FSDP, Placement("deepspeed 3", "deepspeed", 4, 2, 2, stage=3)]
    options = every_option(config, placements, limit=float("inf"))
    assert [option.checkpointing for option in options] == ["none", "selective", "every_n", "full"] * 3
    assert [option.recomputation for option in options[:2]] == [1.0, 1.0]
    assert 1.0 < options[2].recomputation < options[3].recomputation < 4 / 3
    totals = [option.memory.total for option in options[:8]]
    for number, total in enumerate(totals):
        chosen = cheapest(every_option(config, placements, limit=total))
        first = next(index for index, other in enumerate(totals) if other <= total)
        assert chosen is not None
        assert (chosen.placement, chosen.checkpointing) == (options[first].placement, options[first].checkpointing)
        assert first <= number
    assert cheapest(every_option(config, placements, limit=1000)) is None
    for share, choices in ((0.5, 1), (0.49, 4)):  # of memory in which half would be enough
        assert len(every_option(config, placements, limit=2 * totals[0], enough=share)) == 3 * choices


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    config = recipe()
    share = ONE.rows * ONE.accumulation
    sizes = {
        rows: device_memory(config, replace(ONE, rows=rows, accumulation=share // rows), "none").total
        for rows in (1, 2, 4)
    }
    assert sizes[1] < sizes[2]
    for limit, rows in ((sizes[1], 1), (sizes[2] - 1, 1), (sizes[2], 2)):
        assert largest_rows(config, ONE, "none", limit) == replace(ONE, rows=rows, accumulation=share // rows)
    assert largest_rows(config, ONE, "none", sizes[1] - 1) is None


def test_time_and_cost_by_hand() -> None:
    config = recipe(num_gpus=8, mfu=0.5, price=2.0)
    tokens = 100 * 16 * 32
    flops = tokens * training_flops_per_token(config.model, 32) * 1.25
    cost = training_cost(config, 1e9, steps=100, recomputation=1.25)
    assert cost.tokens == tokens
    assert cost.flops == pytest.approx(flops)
    assert cost.gpu_hours == pytest.approx(flops / 0.5e9 / 3600)
    assert cost.hours == pytest.approx(cost.gpu_hours / 8)
    assert cost.price == pytest.approx(cost.gpu_hours * 2)
    parameters = count_parameters(config.model)
    assert (chinchilla_steps(config) - 1) * 512 < 20 * parameters <= chinchilla_steps(config) * 512


def planned_by_measured(*arguments: str) -> dict[str, float]:
    script = ROOT / "experiments" / "benchmarks" / "memory_plan.py"
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["ratio"]


@pytest.mark.slow
def test_planned_is_within_ten_per_cent_of_measured() -> None:
    shapes = ["llama", "llama, full", "gpt2, selective"]
    ratios = planned_by_measured("--device", "cpu", "--shapes", *shapes)
    assert set(ratios) == set(shapes)
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values()), ratios


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_planned_is_within_ten_per_cent_of_measured_on_cuda() -> None:
    ratios = planned_by_measured("--device", "cuda")
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values()), ratios
