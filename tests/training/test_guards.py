"""Steps that are refused, and spikes: found, written down, and left out where that was asked for."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import all_curves, assert_equal_weights, checkpoints, last_state

from lit_llm.config import PretrainConfig, UserError
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.guards import MOST_SKIPS_IN_A_ROW, SpikeWindow
from lit_llm.training.step_record import StepRecord

WEIGHT = "model.final_norm.weight"
CURVES = ("train/loss", "train/gradient_norm", "train/spike_score", "val/loss")
# a window of 4 is half full after 2 steps
GUARDED = {"spike_window": 4, "spike_sigmas": 100.0, "save_every_n_steps": 1, "keep_last_checkpoints": 9}


class Spoil(L.Callback):
    """Multiplies one weight during one step, as a flipped bit or a bad batch would make a spike."""

    def __init__(self, step: int, factor: float = 1e4, accumulation: int = 1) -> None:
        self.step, self.factor, self.accumulation = step, factor, accumulation
        self.kept: torch.Tensor | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == (self.step - 1) * self.accumulation:
            weight = pl_module.get_parameter(WEIGHT)
            self.kept = weight.detach().clone()
            with torch.no_grad():
                weight.mul_(self.factor)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.kept is not None and batch_idx + 1 == self.step * self.accumulation:
            with torch.no_grad():
                pl_module.get_parameter(WEIGHT).copy_(self.kept)
            self.kept = None


class Crash(L.Callback):
    """Dies at the start of a micro-batch."""

    def __init__(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch_idx:
            raise RuntimeError("the power is gone")


def spiking_run(make_run: MakeRun, name: str, action: str, **groups: Any) -> PretrainConfig:
    trainer = {**GUARDED, "spike_action": action, **groups.pop("trainer", {})}
    return make_run(name, trainer=trainer, **groups)


def state(config: PretrainConfig, step: int) -> dict[str, Any]:
    return torch.load(checkpoints(config)[step], weights_only=True)


def tensors(values: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor and number in nested dicts, by its keys."""
    if isinstance(values, dict):
        return {
            name: leaf for key, inside in values.items() for name, leaf in tensors(inside, f"{prefix}/{key}").items()
        }
    return {prefix: torch.as_tensor(values)}


def differences(one: Any, other: Any) -> list[str]:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


# the score


def test_the_score_is_the_larger_number_of_standard_deviations() -> None:
    losses, norms = [2.0, 2.5, 1.5, 2.25, 1.75], [1.0, 1.1, 0.9, 1.2, 0.7]

    def score(loss: float, norm: float) -> float | None:
        window = SpikeWindow(4, 6.0, skip=False)
        for before in zip(losses, norms, strict=True):
            window.judge(*before)
        return window.judge(loss, norm).score

    of_loss = (3.0 - statistics.mean(losses[1:])) / statistics.stdev(losses[1:])
    of_norm = (3.0 - statistics.mean(norms[1:])) / statistics.stdev(norms[1:])
    assert score(3.0, 0.0) == pytest.approx(of_loss)
    assert score(3.0, 3.0) == pytest.approx(of_norm) and of_norm > of_loss
    assert score(-100.0, -100.0) < 0  # type: ignore[operator]  # a fall is no spike


@pytest.mark.parametrize("sigmas", [1.0, 6.0, 6.5])
def test_a_spike_is_what_lies_above_so_many_standard_deviations(sigmas: float) -> None:
    values = (2.0, 2.5, 1.75, 2.25)
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    for distance, spike in ((sigmas - 0.01, False), (sigmas + 0.01, True)):
        for loss, norm in ((mean + distance * deviation, mean), (mean, mean + distance * deviation)):
            window = SpikeWindow(8, sigmas, skip=True)
            for value in values:
                window.judge(value, value)
            assert window.judge(loss, norm).spike is spike


def test_there_is_no_score_before_half_a_window() -> None:
    window = SpikeWindow(8, 1e9, skip=True)
    scores = [window.judge(2.0 + number, 1.0).score for number in range(6)]
    assert [score is None for score in scores] == [True, True, True, True, False, False]


def test_equal_values_make_no_spike_of_a_rounding_error() -> None:
    window = SpikeWindow(8, 6.0, skip=True)
    for _ in range(4):
        window.judge(2.0, 1.0)
    assert not window.judge(2.0 + 1e-7, 1.0).spike
    assert window.judge(2.1, 1.0).leave_out


def test_a_step_left_out_does_not_widen_the_window_and_a_lasting_level_is_taken() -> None:
    window = SpikeWindow(4, 6.0, skip=True)
    for loss in (2.0, 2.1, 2.0, 2.1):
        assert not window.judge(loss, 1.0).spike
    verdicts = [window.judge(3.0, 1.0) for _ in range(MOST_SKIPS_IN_A_ROW + 4)]
    assert [verdict.leave_out for verdict in verdicts] == [True] * MOST_SKIPS_IN_A_ROW + [False] * 4
    assert [verdict.new_level for verdict in verdicts] == [False] * MOST_SKIPS_IN_A_ROW + [True] + [False] * 3
    assert list(window.losses) == [3.0] * 4
    # without skipping, every step enters
    window = SpikeWindow(4, 6.0, skip=False)
    for loss in (2.0, 2.1, 2.0, 2.1):
        window.judge(loss, 1.0)
    assert window.judge(3.0, 1.0).spike and list(window.losses) == [2.1, 2.0, 2.1, 3.0]


# spikes in a run


@pytest.mark.parametrize(("optimizer", "strategy"), [("adamw", "auto"), ("muon", "auto"), ("muon", "fsdp")])
def test_skip_leaves_everything_but_the_counts_as_it_was(
    optimizer: str, strategy: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    config = spiking_run(make_run, "run", "skip", optimizer={"name": optimizer}, trainer={"strategy": strategy})
    pretrain(config, callbacks=[Spoil(4)])
    before, spike, after = (state(config, step) for step in (3, 4, 5))
    assert [each["global_step"] for each in (before, spike, after)] == [3, 4, 5]
    assert differences(spike["state_dict"], before["state_dict"]) == []
    for one, other in zip(spike["optimizer_states"], before["optimizer_states"], strict=True):
        assert differences(one["state"], other["state"]) == []
        for group, earlier in zip(one["param_groups"], other["param_groups"], strict=True):
            assert [name for name in group if group[name] != earlier[name]] == ["lr"]  # the schedule goes on
    assert spike["TokenDataModule"]["samples_consumed"] == 16
    assert len(differences(after["state_dict"], spike["state_dict"])) == len(after["state_dict"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert line.startswith("step 4 is a spike: loss ") and "its update is left out" in line
    assert str(config.folder / "replay" / "step_00000004.json") in line


def test_log_tells_and_changes_nothing(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    off, log = (spiking_run(make_run, action, action, trainer={"log_every_n_steps": 5}) for action in ("off", "log"))
    pretrain(off, callbacks=[Spoil(4)])
    assert "spike" not in capsys.readouterr().err and not (off.folder / "replay").exists()
    pretrain(log, callbacks=[Spoil(4)])
    assert_equal_weights(off, log)
    err = capsys.readouterr().err
    assert err.count("is a spike") == 1 and "step 4 is a spike" in err and "its update is made" in err
    points = dict(all_curves(log)["train/spike_score"])
    assert sorted(points) == [4, 5, 6] and points[4] > 50 > max(points[5], points[6])
    assert "train/spike_score" not in all_curves(off)
    record = StepRecord.load(log.folder / "replay" / "step_00000004.json")
    assert record.updated and record.spike_score == pytest.approx(points[4], rel=1e-6)


def test_skipping_goes_on_bit_identically_after_a_crash(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """The window is in the checkpoint: with a fresh one after a crash at step 4, step 5 would be no spike."""
    options: dict[str, Any] = {
        "trainer": {"max_steps": 8, "val_every_n_steps": None},
        "data": {"micro_batch_size": 2},
        "model": {"dropout": 0.1},
    }
    straight = spiking_run(make_run, "straight", "skip", **options)
    pretrain(straight, callbacks=[Spoil(5, accumulation=2)])
    assert "step 5 is a spike" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="power"):
        pretrain(spiking_run(make_run, "crashed", "skip", **options), callbacks=[Crash(8)])
    resumed = spiking_run(make_run, "crashed", "skip", **options, ckpt_path="last")
    pretrain(resumed, callbacks=[Spoil(5, accumulation=2)])
    assert "step 5 is a spike" in capsys.readouterr().err
    assert_equal_weights(straight, resumed)
    one, other = ([all_curves(config)[name] for name in CURVES] for config in (straight, resumed))
    assert one == other
    one, other = (last_state(config)["callbacks"]["StepGuard"] for config in (straight, resumed))
    assert one == other and len(one["losses"]) == 4


# steps that are not finite


def overflowing(make_run: MakeRun, **groups: Any) -> PretrainConfig:
    """A run whose learning rate overflows at the second update."""
    return make_run(
        "overflow",
        optimizer={"learning_rate": 1e30, "eps": 1e-12},
        schedule={"name": "constant", "warmup_steps": 0},
        trainer={"gradient_clip_val": None, "save_every_n_steps": 1, **groups.pop("trainer", {})},
        **groups,
    )


def test_a_refused_step_is_written_down(make_run: MakeRun, shards: Path) -> None:
    config = overflowing(make_run, data={"micro_batch_size": 2})
    with pytest.raises(UserError, match="not finite") as error:
        pretrain(config)
    path = config.folder / "replay" / "step_00000002.json"
    assert f"--replay {path}" in str(error.value) and "\n" not in str(error.value)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    record = StepRecord.load(path)
    assert (record.step, record.seed, record.world_size, record.accumulation) == (2, config.seed, 1, 2)
    assert (record.first_sample, record.num_samples) == (4, 4)
    assert [part.sample_ids for part in record.micro_batches] == [[4, 5], [6, 7]]
    sums = [part.loss_sum for part in record.micro_batches]
    assert not math.isfinite(sum(sums)) or not math.isfinite(record.gradient_norm)
    assert record.checkpoint == "checkpoints/step_00000001.ckpt" and not record.updated
    # strict JSON: other tools can read it
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    # the place of a sample is that of its text
    from lit_llm.data.pretraining.data_module import TokenDataModule

    dataset = TokenDataModule(config.data, None, config.seed).train_dataset
    for sample in record.samples:
        file, tokens = Path(sample.file), dataset[sample.index]["tokens"].tolist()
        split = ShardedTokens(file.parent)
        before = sum(shard.tokens for shard in split.manifest.shards if shard.file < file.name)
        assert split.read(before + sample.offset, 32).tolist() == tokens
    # a source's last window may have a token less to predict
    counts = {each.index: int((dataset[each.index]["targets"] >= 0).sum()) for each in record.samples}
    assert [part.tokens for part in record.micro_batches] == [counts[4] + counts[5], counts[6] + counts[7]]


def test_the_first_step_has_no_checkpoint_to_go_back_to(make_run: MakeRun) -> None:
    config = make_run("first")

    class Infinite(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with torch.no_grad():
                pl_module.get_parameter(WEIGHT)[0] = math.inf

    with pytest.raises(UserError, match="step 1 is not finite"):
        pretrain(config, callbacks=[Infinite()])
    assert StepRecord.load(config.folder / "replay" / "step_00000001.json").checkpoint is None


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"step": 3}', '{"steps": 3, "samples": [], "micro_batches": []}']
)
def test_what_is_not_a_replay_file(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "step_00000003.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"step_00000003\.json") as error:
        StepRecord.load(path)
    assert "\n" not in str(error.value)


def test_overwrite_takes_the_replay_files_of_the_earlier_run_away(make_run: MakeRun) -> None:
    config = overflowing(make_run)
    with pytest.raises(UserError, match="not finite"):
        pretrain(config)
    assert (config.folder / "replay").exists()
    pretrain(make_run("overflow", trainer={"max_steps": 2}, overwrite=True))
    assert not (config.folder / "replay").exists()
