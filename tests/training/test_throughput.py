"""The curves of a run, above all those of its speed."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import all_curves

from lit_llm.stages.pretrain import pretrain
from lit_llm.training.throughput import PEAK_FLOPS, Throughput, peak_flops

NAMES = {
    "train/loss",
    "train/gradient_norm",
    "learning_rate/muon",
    "learning_rate/adamw_no_decay",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "throughput/tokens",
    "throughput/tokens_per_second",
    "throughput/data_wait_share",
    "throughput/peak_memory_gib",
}


class Slow(L.Callback):
    """Makes every training step, or every validation, last a known time."""

    def __init__(self, step: float = 0.0, validation: float = 0.0) -> None:
        self.step, self.validation = step, validation

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        time.sleep(self.step)

    def on_validation_batch_start(self, *arguments: Any) -> None:
        time.sleep(self.validation)


@pytest.mark.parametrize("micro", [None, 2])
def test_every_curve_of_the_house_is_written(micro: int | None, make_run: MakeRun) -> None:
    config = make_run(optimizer={"name": "muon"}, data={"micro_batch_size": micro})
    pretrain(config, callbacks=[Slow(step=0.02)])
    curves = all_curves(config)
    # no MFU: the peak of a CPU is not known; an embedding tied to the head leaves no matrix to AdamW
    assert set(curves) == NAMES
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["val/loss"]] == [3, 6]
    # a step is batch_size x sequence_length tokens, however it is accumulated
    assert curves["throughput/tokens"] == [(step, step * 4 * 32) for step in range(1, 7)]
    assert all(0.0 <= share <= 1.0 for _, share in curves["throughput/data_wait_share"])
    # a step lasts 0.02 s at least
    assert all(0 < speed < 4 * 32 / 0.02 for _, speed in curves["throughput/tokens_per_second"])
    assert all(0.05 < memory < 64 for _, memory in curves["throughput/peak_memory_gib"])


def test_validation_does_not_count(make_run: MakeRun) -> None:
    """Two validations of eight windows that would hold the clock for 2 x 8 x 0.1 s: 80 tokens/s at the most."""
    config = make_run(trainer={"val_every_n_steps": 1, "max_steps": 3}, data={"validation_batch_size": 1})
    result = pretrain(config, callbacks=[Slow(validation=0.1)])
    speeds = [speed for _, speed in all_curves(config)["throughput/tokens_per_second"]]
    assert max(speeds[1:]) > 2 * 4 * 32 / 0.8
    assert result.tokens_per_second == pytest.approx(speeds[-1])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40", None),  # not an L4
        ("NVIDIA A10", None),
        ("Tesla T4", "Tesla T4"),
        ("Somebody's accelerator", None),
    ],
)
def test_peak_of_a_device_by_its_name(name: str, known: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == (None if known is None else PEAK_FLOPS[known])
    assert peak_flops(torch.device("cpu")) is None


def test_mfu_is_flops_over_the_peak_of_all_ranks(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_llm.training.throughput.peak_flops", lambda device: 1e12)
    config = make_run(trainer={"max_steps": 2})
    kept: list[Throughput] = []

    class Keep(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            kept.extend(callback for callback in trainer.callbacks if isinstance(callback, Throughput))

    pretrain(config, callbacks=[Keep()])
    curves = all_curves(config)
    for (_, mfu), (_, speed) in zip(curves["throughput/mfu"], curves["throughput/tokens_per_second"], strict=True):
        assert mfu == pytest.approx(speed * kept[0].flops_per_token / 1e12, rel=1e-5)
