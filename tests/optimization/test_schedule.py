"""The learning-rate factor at its key steps, by hand, and through LambdaLR and Lightning."""

from __future__ import annotations

import itertools
import math

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from toy_decoder import Model, batch

from lit_llm.config import OptimizerConfig, ScheduleConfig, UserError
from lit_llm.optimization import build_optimizer, build_schedule, learning_rate_factor


def factors(max_steps, steps, **options):
    config = ScheduleConfig(**options)
    return [learning_rate_factor(step, config, max_steps) for step in steps]


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_is_linear_and_never_zero(name):
    assert factors(100, range(4), name=name, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]
    assert factors(100, [0], name=name, warmup_steps=0) == [1.0]


def test_cosine():
    # the peak at step 10, the end at step 110: 100 steps of decay
    got = factors(110, [9, 10, 35, 60, 85, 110], name="cosine", warmup_steps=10, min_ratio=0.2)
    half = math.sqrt(0.5) / 2
    assert got == pytest.approx([1.0, 1.0, 0.2 + 0.8 * (0.5 + half), 0.6, 0.2 + 0.8 * (0.5 - half), 0.2])


def test_linear():
    got = factors(110, [9, 10, 35, 60, 85, 110], name="linear", warmup_steps=10, min_ratio=0.2)
    assert got == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_wsd():
    # the last 20 of 100 steps: the peak until step 80
    got = factors(100, [9, 50, 80, 81, 90, 99, 100], name="wsd", warmup_steps=10, decay_fraction=0.2, min_ratio=0.0)
    assert got == pytest.approx([1.0, 1.0, 1.0, 0.95, 0.5, 0.05, 0.0])
    # a decay as long as the run starts where warm-up ends
    assert factors(20, [10, 15, 20], name="wsd", warmup_steps=10, decay_fraction=1.0, min_ratio=0.5) == [1.0, 0.75, 0.5]


def test_constant_has_no_end():
    assert factors(10, [2, 9, 10, 500], name="constant", warmup_steps=2) == [1.0] * 4


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear"])
@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(1, 0), (2, 0), (2, 1), (7, 0), (7, 6), (1000, 10)])
def test_no_step_is_lost_at_rate_0_and_all_beyond_the_last_have_min_ratio_exactly(name, max_steps, warmup_steps):
    options = {"name": name, "warmup_steps": warmup_steps}
    assert min(factors(max_steps, range(max_steps), **options, min_ratio=0.0)) > 0.0
    assert factors(max_steps, [max_steps, 10 * max_steps], **options, min_ratio=0.3) == [0.3] * 2


@pytest.mark.parametrize(("max_steps", "warmup_steps"), [(12, 0), (12, 3), (200, 20)])
def test_from_the_warm_up_on_the_rates_are_those_of_transformers(max_steps, warmup_steps):
    optimization = pytest.importorskip("transformers.optimization")
    decay = round(0.25 * max_steps)
    theirs = {
        "linear": optimization.get_linear_schedule_with_warmup(lone_sgd(), warmup_steps, max_steps),
        "cosine": optimization.get_cosine_schedule_with_warmup(lone_sgd(), warmup_steps, max_steps),
        "wsd": optimization.get_wsd_schedule(
            lone_sgd(), warmup_steps, decay, num_training_steps=max_steps, decay_type="linear"
        ),
    }
    steps = range(warmup_steps, max_steps + 1)
    for name, schedule in theirs.items():
        options = {"name": name, "warmup_steps": warmup_steps, "decay_fraction": 0.25, "min_ratio": 0.0}
        expected = [schedule.lr_lambdas[0](step) for step in steps]
        assert factors(max_steps, steps, **options) == pytest.approx(expected, abs=1e-12), name


def lone_sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear"])
def test_decay_never_rises(name):
    got = factors(50, range(4, 60), name=name, warmup_steps=5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(got))


def test_a_run_no_longer_than_its_warm_up_only_warms_up():
    assert factors(4, range(6), name="cosine", warmup_steps=8, min_ratio=0.1) == [0.125, 0.25, 0.375, 0.5, 0.1, 0.1]


def test_schedule_scales_every_group_and_its_state_is_plain():
    optimizer = build_optimizer(Model(), OptimizerConfig(name="muon", learning_rate=1.0, muon_learning_rate=10.0))
    schedule = build_schedule(optimizer, ScheduleConfig(name="linear", warmup_steps=2, min_ratio=0.0), 6)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [row[1] for row in seen] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert [row[0] for row in seen] == pytest.approx([5.0, 10.0, 10.0, 7.5, 5.0, 2.5])

    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    assert all(leaf is None or type(leaf) in (int, float, bool) for leaf in leaves(schedule.state_dict()))


def test_max_steps_below_one_is_refused():
    with pytest.raises(UserError, match="max_steps is 0"):
        build_schedule(build_optimizer(Model(), OptimizerConfig()), ScheduleConfig(), 0)


class Lit(lightning.LightningModule):
    def __init__(self, name):
        super().__init__()
        self.name, self.model, self.rates = name, Model(), []

    def training_step(self, tokens, index):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])
        logits = self.model(tokens[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self):
        config = OptimizerConfig(name=self.name, learning_rate=1e-2, muon_learning_rate=0.1)
        optimizer = build_optimizer(self.model, config)
        schedule = build_schedule(optimizer, ScheduleConfig(name="linear", warmup_steps=1, min_ratio=0.5), 3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_fits_in_lightning(name, tmp_path):
    module = Lit(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(tmp_path),
        callbacks=[LearningRateMonitor()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader([batch(step)[0] for step in range(12)], batch_size=4))
    assert trainer.global_step == 3
    assert [row[-1] for row in module.rates] == pytest.approx([0.01, 0.01, 0.0075])
    assert [row[0] for row in module.rates] == pytest.approx(
        [r * (10 if name == "muon" else 1) for r in (0.01, 0.01, 0.0075)]
    )
    assert all(not torch.equal(before[key], value) for key, value in module.state_dict().items())
    # the checkpoint holds the optimizer and the schedule, and nothing that weights_only refuses
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert len(saved["optimizer_states"]) == len(saved["lr_schedulers"]) == 1
