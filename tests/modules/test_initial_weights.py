"""Weights of a run that starts from a model folder are read from it, or drawn by the seed, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import make_stage

from lit_llm.stages.dpo import build_dpo
from lit_llm.stages.ppo import build_ppo
from lit_llm.stages.reward import build_reward
from lit_llm.stages.sft import build_sft

BUILD = {"sft": build_sft, "reward": build_reward, "dpo": build_dpo, "ppo": build_ppo}


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("sft", {}),
        ("sft", {"lora": {"rank": 2}}),
        ("reward", {}),
        ("reward", {"lora": {"rank": 2}}),
        ("dpo", {}),
        ("ppo", {}),
        ("ppo", {"learns_values_by": "head"}),
    ],
)
def test_no_weight_is_left_as_torch_makes_it(stage: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What torch draws by itself depends on its own stream, which is another in the two builds."""
    found = []
    for stream in (1, 2):
        torch.manual_seed(stream)
        module = BUILD[stage](make_stage(stage, tmp_path, **options))[0]
        found.append({name: value.detach().clone() for name, value in module.named_parameters()})
    one, other = found
    assert one.keys() == other.keys() and len(one) > 10
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
    assert all(bool(value.isfinite().all()) for value in one.values())
