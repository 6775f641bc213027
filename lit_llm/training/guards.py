"""Checks of every optimizer step before its update; refused steps and spikes are written down for replay."""

from __future__ import annotations

import base64
import math
import shlex
import sys
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_llm.config import RunConfig, UserError, to_plain
from lit_llm.distributed.ranks import gather
from lit_llm.training.step_record import MicroBatch, Sample, StepRecord

MOST_SKIPS_IN_A_ROW = 8
"""Spikes in a row that are left out; what lasts longer is a new level, not a spike."""


@dataclass
class Verdict:
    """The judgement of a `SpikeWindow` on a step."""

    score: float | None
    """Standard deviations above the steps before, of the loss or the norm, whichever is more; None: too few of them."""
    spike: bool = False
    """Whether that is too much."""
    leave_out: bool = False
    """Whether its update is to be left out."""
    new_level: bool = False
    """Whether it is taken, though a spike, because as many before it were as may be left out."""


class SpikeWindow:
    """The losses and gradient norms of recent steps, and whether a new step lies too far above them.

    The score is the larger of (value - mean) / std for the loss and for the norm, over the values in the window, with
    the sample standard deviation; only upward jumps score high. There is no score before the window is half full, as
    the first steps of a run differ from each other by more than their noise.

    A step that is left out does not enter the window: it would widen it, and hide the next spike of the same kind. So
    that a lasting change of level does not end the learning, the window starts anew after `MOST_SKIPS_IN_A_ROW`. A
    step that is updated enters, spike or not.

    Args:
        size: steps in the window.
        sigmas: score above which a step is a spike.
        skip: whether spikes are to be left out.

    Source: the skip-step rule of OLMo 2 (https://arxiv.org/abs/2501.00656), as OLMo-core has it: 128 steps, 6 sigma,
    active from half a window on. There, steps that are left out enter the window.
    """

    def __init__(self, size: int, sigmas: float, skip: bool) -> None:
        self.losses: deque[float] = deque(maxlen=size)
        self.norms: deque[float] = deque(maxlen=size)
        self.sigmas = sigmas
        self.skip = skip
        self.needed = max(2, size // 2)
        self.skipped_in_a_row = 0

    def judge(self, loss: float, norm: float) -> Verdict:
        """Score a step by those before it, decide, and take it into the window unless it is left out."""
        if len(self.losses) < self.needed:
            verdict = Verdict(None)
        else:
            score = max(_standard_score(loss, self.losses), _standard_score(norm, self.norms))
            spike = score > self.sigmas
            lasting = spike and self.skip and self.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW
            verdict = Verdict(score, spike, spike and self.skip and not lasting, lasting)
        if verdict.leave_out:
            self.skipped_in_a_row += 1
            return verdict
        self.skipped_in_a_row = 0
        if verdict.new_level:
            self.losses.clear()
            self.norms.clear()
        self.losses.append(loss)
        self.norms.append(norm)
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """Give everything that a decision depends on."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the steps of a checkpoint, or the newest of them if this window is smaller."""
        self.losses = deque(state["losses"], maxlen=self.losses.maxlen)
        self.norms = deque(state["norms"], maxlen=self.norms.maxlen)
        self.skipped_in_a_row = state["skipped_in_a_row"]


def _standard_score(value: float, values: deque[float]) -> float:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
    # equal values would make a spike of a rounding error
    return (value - mean) / max(math.sqrt(variance), 1e-6 * abs(mean), 1e-30)


class StepGuard(L.Callback):
    """Decides on each step between its backward pass and its update, and writes down what it objects to.

    The module asks it through `LanguageModule.step_guard`. With trainer.spike_action "log" a spike is written as a
    point of `train/spike_score`, a line on stderr and a replay file; with "skip" its update is left out, too: weights,
    moments and the optimizer's counters stay as they were, while the schedule and the step count go on.

    The window is part of the checkpoint, so a resumed run decides as one that was not interrupted; and all ranks decide
    alike, as they see the same reduced values.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        options = config.trainer
        self.window = SpikeWindow(options.spike_window, options.spike_sigmas, options.spike_action == "skip")
        self._sample_ids: list[Tensor] = []
        self._random_state: dict[str, str] = {}
        self._trainer: L.Trainer | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module this guard, which it asks before each update."""
        self._trainer = trainer
        pl_module.step_guard = self

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which samples the step reads, and the random state that it starts from."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._sample_ids = []
            self._random_state = encoded_random_state()
        self._sample_ids.append(batch["sample_ids"])

    def refuse(self, step: int, loss: float, norm: float, parts: list[tuple[Tensor, Tensor]]) -> str:
        """Write down a step whose loss or gradient is not finite; every rank must call it.

        Args:
            step: number of the step, from 1.
            loss: mean over its tokens, in nats.
            norm: of its whole gradient.
            parts: loss sum and token count of each of this rank's micro-batches.

        Returns:
            What to tell the user besides.
        """
        path = self._write(step, loss, norm, parts, None, updated=False)
        return self._advice(path, "shows which sample and which layer")

    def leaves_out(self, step: int, loss: float, norm: float, parts: list[tuple[Tensor, Tensor]]) -> bool:
        """Return whether the update of a step with finite numbers is to be left out; every rank must call this.

        Args:
            step: number of the step, from 1.
            loss: mean over its tokens, in nats.
            norm: of its whole gradient, before clipping.
            parts: loss sum and token count of each of this rank's micro-batches.
        """
        options = self.config.trainer
        if options.spike_action == "off":
            return False
        verdict = self.window.judge(loss, norm)
        if verdict.score is not None and (verdict.spike or self._module().logs_step(step)):
            self._module().record({"train/spike_score": verdict.score}, step)
        if verdict.spike:
            path = self._write(step, loss, norm, parts, verdict.score, updated=not verdict.leave_out)
            done = "its update is left out" if verdict.leave_out else "its update is made"
            if verdict.new_level:
                done += f" (after {MOST_SKIPS_IN_A_ROW} in a row this is a new level, no spike)"
            self._say(
                f"step {step} is a spike: loss {loss:.4f}, gradient norm {norm:.4f}, {verdict.score:.1f} standard "
                f"deviations above the steps before; {done}; {self._advice(path, 'looks into it')}"
            )
        return verdict.leave_out

    def state_dict(self) -> dict[str, Any]:
        """Give the window of recent steps."""
        return self.window.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the window of the checkpoint."""
        self.window.load_state_dict(state_dict)

    def _module(self) -> Any:
        return self._trainer.lightning_module  # type: ignore[union-attr]

    def _advice(self, path: Path, gain: str) -> str:
        return f"--replay {shlex.quote(str(path))} {gain}" if self._module().replayable else f"{path} names its samples"

    def _say(self, line: str) -> None:
        if self._trainer.is_global_zero:  # type: ignore[union-attr]
            print(line, file=sys.stderr)

    def _write(
        self,
        step: int,
        loss: float,
        norm: float,
        parts: list[tuple[Tensor, Tensor]],
        score: float | None,
        updated: bool,
    ) -> Path:
        """Write the replay file on the first rank; returns its path."""
        mine = {
            "random_state": self._random_state,
            "micro_batches": [
                {"sample_ids": ids.tolist(), "loss_sum": float(loss_sum), "tokens": int(tokens)}
                for ids, (loss_sum, tokens) in zip(self._sample_ids, parts, strict=True)
            ],
        }
        ranks = gather(mine)
        path = self.config.folder / "replay" / f"step_{step:08d}.json"
        trainer = self._trainer
        if trainer is None or not trainer.is_global_zero:
            return path
        micro_batches = [MicroBatch(rank, **part) for rank, each in enumerate(ranks) for part in each["micro_batches"]]
        ids = sorted({index for part in micro_batches for index in part.sample_ids})
        data = trainer.datamodule  # type: ignore[attr-defined]
        record = StepRecord(
            step=step,
            loss=loss,
            gradient_norm=norm,
            spike_score=score,
            updated=updated,
            checkpoint=f"checkpoints/step_{step - 1:08d}.ckpt" if step > 1 else None,
            seed=self.config.seed,
            first_sample=ids[0],
            num_samples=len(ids),
            samples=[
                Sample(index, str(file), offset)
                for index, (file, offset) in zip(ids, data.train_dataset.locate(ids), strict=True)
            ],
            world_size=len(ranks),
            accumulation=int(trainer.accumulate_grad_batches),
            micro_batches=micro_batches,
            random_states=[each["random_state"] for each in ranks],
            device=self._module().device.type,
            torch_version=str(torch.__version__),
            fingerprint=data.fingerprint,
            config=to_plain(replace(self.config, ckpt_path=None, overwrite=False, resume_changed=False)),
        )
        try:
            record.save(path)
        except UserError as error:  # on one rank, and of no importance beside what is being reported
            self._say(str(error))
        return path


def encoded_random_state() -> dict[str, str]:
    """Give the state of the generators that a forward pass draws from (CPU, current CUDA device), as text."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def restore_encoded_random_state(state: dict[str, str]) -> None:
    """Put back what `encoded_random_state` gave; the CUDA state only where there is such a device."""
    tensors = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in state.items()
    }
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
