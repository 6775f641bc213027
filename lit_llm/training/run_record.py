"""The configuration that a run leaves in its folder: config.yaml, and config.1.yaml and so on for earlier parts.

A resumed run may have other settings than its checkpoint was made with. Those that only change how the work is done
are told; those that change what is learned are refused, unless `resume_changed` allows them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from lit_llm.config import CONFIG_KEY, RunConfig, ScheduleConfig, UserError, flatten, from_plain, to_plain
from lit_llm.config.files import replace_file
from lit_llm.config.yaml_text import write_yaml
from lit_llm.optimization import build_optimizer, learning_rate_factor
from lit_llm.training.checkpoint_files import saved_checkpoints, step_of
from lit_llm.training.run_folder import KEPT_CONFIG, forget_replaced

# Options that say how this process starts, with the values that config.yaml gives them.
_OF_ONE_START = {"ckpt_path": None, "overwrite": False, "replay": None, "resume_changed": False}
# Options that do not change what is learned. One that is on no list does: whoever adds an option has to think of it.
_NOT_LEARNED = frozenset(
    {
        "run_name",
        "output_root",
        "data.paths",  # the data module compares what is in them
        "data.validation_paths",
        "data.validation_rows",
        "data.validation_windows",
        "data.validation_batch_size",
        "data.micro_batch_size",
        "data.num_workers",
        "data.prefetch_factor",
        "data.pin_memory",
        "data.verify",
        "data.max_dropped_share",
        "epochs",  # which counts as trainer.max_steps
        "optimizer.fused",
        "loss_chunk_tokens",
        "sample_prompts",
        "rollout_batch_size",
        "update_micro_batch_size",
    }
)
_NOT_LEARNED_GROUPS = ("samples.", "trainer.", "data.remote.")
_PATH_OF_CORPUS = re.compile(r"data\.mix\.corpora\..+\.path")
_LEARNED_OF_TRAINER = frozenset({"trainer.precision", "trainer.gradient_clip_val"})
_HELD = re.compile(r"# (?:holds|held) from step (\d+)(?: to step (\d+))?")
_ASIDE = ".abandoned"


@dataclass(frozen=True)
class Difference:
    """A setting whose value in this run is not the one that the checkpoint was made with."""

    name: str
    old: Any
    new: Any
    learned: bool
    """Whether the setting changes what is learned."""

    def __str__(self) -> str:
        return f"{self.name} (from {self.old} to {self.new})"


def differences(saved: dict[str, Any], config: RunConfig, step: int) -> list[Difference]:
    """Find the settings of `config` that differ from those that a checkpoint was made with.

    Args:
        saved: the checkpoint's configuration. An option that it lacks was added to this package later, and counts as
            having had its default.
        config: the configuration of the run that goes on.
        step: the number of optimizer steps that the checkpoint was saved after.
    """
    old, new = flatten(saved), flatten(to_plain(config))
    defaults = flatten(to_plain(type(config)()))
    names = [name for name in {**old, **new} if name not in _OF_ONE_START]
    pairs = [(name, old.get(name, defaults.get(name)), new.get(name)) for name in names]
    return [
        Difference(name, before, now, _is_learned(name, saved, config, step))
        for name, before, now in pairs
        if before != now
    ]


def _is_learned(name: str, saved: dict[str, Any], config: RunConfig, step: int) -> bool:
    if name == "trainer.max_steps":
        return _other_rates(saved, config, step)
    if name.startswith("trainer.spike_"):  # which only leaves out updates where it is asked to
        return "skip" in (saved["trainer"].get("spike_action"), config.trainer.spike_action)
    if name == "init_from":  # the weights are in the checkpoint, but for those below an adapter and of a reference
        return to_plain(config).get("lora", {}).get("rank", 0) > 0 or hasattr(config, "reference_model")
    if name in _LEARNED_OF_TRAINER:
        return True
    if _PATH_OF_CORPUS.fullmatch(name):  # as with data.paths
        return False
    return name not in _NOT_LEARNED and not name.startswith(_NOT_LEARNED_GROUPS)


def _other_rates(saved: dict[str, Any], config: RunConfig, step: int) -> bool:
    """Tell whether a run of the new length would have given the first `step` steps other learning rates."""
    before, old_steps = from_plain(ScheduleConfig, saved["schedule"]), saved["trainer"]["max_steps"]
    return any(
        learning_rate_factor(each, before, old_steps)
        != learning_rate_factor(each, config.schedule, config.trainer.max_steps)
        for each in range(step)
    )


def _reordered(data: Any) -> list[Difference]:
    """The mix of the samples so far, where this run would not have had it, be it for its options or for its length."""
    return [] if data.reordered is None else [Difference("the mix", *data.reordered, learned=True)]


class RunRecord(L.Callback):
    """Refuses a resume whose settings would change what is learned, and writes config.yaml.

    A refused resume leaves the earlier config.yaml alone. When a resume with other settings goes on, the earlier file
    is kept as config.1.yaml (then config.2.yaml and so on), with a first line that names the steps it held for.

    Args:
        config: the configuration of the run.
        resume_from: the checkpoint that the run goes on from; None for a start at step 0.
    """

    def __init__(self, config: RunConfig, resume_from: str | None) -> None:
        self.config = config
        self.resume_from = resume_from
        self._saved: dict[str, Any] | None = None
        self._differences: list[Difference] = []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the settings with those of the checkpoint, which the module and its data have accepted by now.

        Raises:
            UserError: a setting that changes what is learned differs, and `resume_changed` is false.
        """
        if trainer.state.fn != "fit":
            return
        if checkpoint["global_step"] > trainer.max_steps:
            raise UserError(
                f"{self.resume_from} is of step {checkpoint['global_step']}, after trainer.max_steps "
                f"{trainer.max_steps}; raise that, or give --ckpt_path an earlier checkpoint"
            )
        self._saved = checkpoint[CONFIG_KEY]
        self._differences = differences(checkpoint[CONFIG_KEY], self.config, checkpoint["global_step"])
        self._differences += _reordered(trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            for each in self._differences:
                print(f"{'changed' if each.learned else 'differs'}: {each}", file=sys.stderr)
        learned = [each for each in self._differences if each.learned]
        if learned and not self.config.resume_changed:
            raise UserError(
                f"{self.resume_from} was made with other settings, which change what is learned: "
                f"{', '.join(map(str, learned))}; put them back, or --resume_changed true goes on with the new ones"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put changed settings of the optimizer in force, write config.yaml, and tell the loggers all options."""
        step = trainer.global_step
        if any(each.name.startswith(("optimizer.", "schedule.", "trainer.max_steps")) for each in self._differences):
            self._renew_optimizers(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._set_aside(step if any(each.learned for each in self._differences) else trainer.max_steps)
        write_config(self.config, step, self._saved)
        forget_replaced(self.config.folder)
        options = {name: value for name, value in flatten(to_plain(self.config)).items() if name not in _OF_ONE_START}
        for logger in trainer.loggers:
            logger.log_hyperparams(options)

    def _renew_optimizers(self, trainer: L.Trainer, module: Any) -> None:
        """Replace the optimizer options and the learning rate that the checkpoint has restored by those of this run."""
        fresh = build_optimizer(module.trained, self.config.optimizer)
        for optimizer, plan in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            scheduler = plan.scheduler
            for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
                group.update({name: new[name] for name in new if name not in ("params", "step")})
                group["initial_lr"] = new["lr"]
                if group.get("fused"):  # whose kernel counts steps on the device
                    for parameter in group["params"]:
                        steps = optimizer.state.get(parameter, {}).get("step")
                        if isinstance(steps, torch.Tensor):
                            optimizer.state[parameter]["step"] = steps.to(parameter.device)
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            for group, rate, factor in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = rate * factor(scheduler.last_epoch)

    def _set_aside(self, step: int) -> None:
        """Rename checkpoints of later steps, which this run will not come to, so that `last` does not find them."""
        for later, path in saved_checkpoints(self.config.folder / "checkpoints").items():
            if later > step:
                path.rename(path.with_name(path.name + _ASIDE))
                print(f"{path} is of the run before; kept as {path.name}{_ASIDE}", file=sys.stderr)


def write_config(config: RunConfig, step: int, saved: dict[str, Any] | None) -> None:
    """Write config.yaml, and keep the file that it replaces if any step was trained with that configuration.

    Args:
        config: the configuration that holds from now on.
        step: the number of optimizer steps that are done.
        saved: the configuration in the checkpoint that the run goes on from; None for a start at step 0.
    """
    folder, body = config.folder, _yaml_of(to_plain(config))
    path = folder / "config.yaml"
    if step == 0 or saved is None:
        replace_file(path, body)
        return
    first, earlier = _read_record(path) if path.exists() else (0, _yaml_of(saved))
    kept: Path | None = None
    if first >= step:  # the steps of config.yaml, if it has any, do not lead to the checkpoint
        if earlier != body and _has_steps(folder, first):
            gone = _next_name(folder)
            replace_file(gone, f"# held from step {first}, from where the run went back to step {step}\n{earlier}")
            print(f"the configuration of the steps that the run went back from is kept in {gone}", file=sys.stderr)
        kept = _kept_of(folder, step)
        first, earlier = (0, _yaml_of(saved)) if kept is None else _read_record(kept)
    if earlier == body:
        before = _kept_of(folder, first)
        replace_file(path, _note(first, before) + body)
        if kept is not None:  # which goes on as config.yaml
            kept.unlink()
        return
    if kept is None:
        kept = _next_name(folder)
        print(f"the configuration until step {step} is kept in {kept}", file=sys.stderr)
    replace_file(kept, f"# held from step {first} to step {step}\n{earlier}")
    replace_file(path, _note(step, kept) + body)


def recorded_configurations(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """The configurations that a run's steps were trained with, each with the number of steps before it, in order.

    Those of steps that a run went back from are left out.

    Raises:
        UserError: the folder has none, or one cannot be read.
    """
    paths = [path for path in (folder / "config.yaml", *_kept_configs(folder).values()) if path.is_file()]
    if not paths:
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    found: dict[int, dict[str, Any]] = {}
    for path in paths:
        held = _HELD.match(path.read_text(encoding="utf-8"))
        if path.name != "config.yaml" and (held is None or held[2] is None):
            continue
        first, body = _read_record(path)
        try:
            values = yaml.safe_load(body)
        except yaml.YAMLError as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]})") from None
        found.setdefault(first, values)
    return sorted(found.items())


def _note(first: int, before: Path | None) -> str:
    """Make the first line of a config.yaml that does not hold for the whole run; an empty text where it does."""
    if first == 0:
        return ""
    return f"# holds from step {first} on{'' if before is None else f'; before it {before.name}'}\n"


def _read_record(path: Path) -> tuple[int, str]:
    """Read a configuration file; returns the step from which it held, and its text without the line about that."""
    text = path.read_text(encoding="utf-8")
    held = _HELD.match(text)
    return (int(held[1]), text.partition("\n")[2]) if held else (0, text)


def _kept_configs(folder: Path) -> dict[int, Path]:
    """List the files config.N.yaml of a run folder by their number N, the newest first."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := KEPT_CONFIG.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def _next_name(folder: Path) -> Path:
    return folder / f"config.{1 + max(_kept_configs(folder), default=0)}.yaml"


def _kept_of(folder: Path, step: int) -> Path | None:
    """Find the file config.N.yaml with the configuration that a step was trained with; None if there is none."""
    for path in _kept_configs(folder).values():
        held = _HELD.match(path.read_text(encoding="utf-8"))
        if held and held[2] and int(held[1]) < step <= int(held[2]):
            return path
    return None


def _has_steps(folder: Path, first: int) -> bool:
    """Tell whether the folder has a checkpoint of a step after `first`, those that were set aside included."""
    names = (path.with_name(path.name.removesuffix(_ASIDE)) for path in folder.glob("checkpoints/step_*"))
    return any((step_of(path) or 0) > first for path in names)


def _yaml_of(plain: dict[str, Any]) -> str:
    """Write a configuration as YAML that repeats the run, whatever options its first process was started with."""
    return write_yaml({**plain, **_OF_ONE_START})
