"""Reward modelling: score the chosen answer of a pair above the rejected one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lit_llm.config import RewardConfig
from lit_llm.model.scores import last_scores
from lit_llm.modules.base import LanguageModule
from lit_llm.modules.metrics import PairScores
from lit_llm.objectives import Calibration, bradley_terry, calibration, correlation, ranking_accuracy


class RewardModule(LanguageModule):
    """The Bradley-Terry loss on the scores of two whole conversations, each read at its last token.

    Margins and centring are part of the training loss alone, so that val/loss is how well pairs are ranked.

    Over the validation split it logs the accuracy with its 95% interval, the spread of the rewards, their correlation
    with the length of the text, and how well sigmoid(margin) is calibrated, as a number, a table and a picture.

    Args:
        config: the run; `config.model` is a score model.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "mean_reward")
    progress_curves = (
        *LanguageModule.progress_curves,
        ("train/accuracy", "accuracy", ".1%"),
        ("val/accuracy", "val accuracy", ".1%"),
    )
    counts_tokens: ClassVar[bool] = False
    config: RewardConfig

    def __init__(self, config: RewardConfig) -> None:
        super().__init__(config)
        self.validation_pairs = PairScores()

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the loss over pairs and count them; `tokens` [2b, t] hold the chosen texts, then the rejected ones."""
        lengths = batch["lengths"]

        def read(hidden: Tensor, head: nn.Linear) -> Tensor:
            return last_scores(hidden, head, lengths)

        chosen, rejected = self.model(batch["tokens"], head=read).chunk(2)
        margin = batch["margin"] if training else None  # val/loss compares runs, with margins and without
        real = batch["sample_ids"] >= 0  # the others fill up a rank's share of the validation split
        count = real.sum()
        losses = bradley_terry(chosen, rejected, margin, self.config.centring if training else 0.0)
        difference = (chosen - rejected).detach()
        self.note(
            {
                "accuracy": (_sum_of((difference > 0).float() + 0.5 * (difference == 0), real), count),
                "margin": (_sum_of(difference, real), count),
                "mean_reward": (_sum_of((chosen + rejected).detach() / 2, real), count),
            },
            training,
        )
        if not training:
            mesh = self.device_mesh
            # tensor-parallel ranks have read the same pairs, of which the first speaks
            kept = real & (mesh is None or mesh["tensor_parallel"].get_local_rank() == 0)
            self.validation_pairs.update(chosen[kept], rejected[kept], *lengths.view(2, -1)[:, kept])
        return _sum_of(losses, real), count

    def tokens_of(self, batch: dict[str, Tensor]) -> int:
        """Count the tokens that are not padding."""
        return int(batch["lengths"].sum())

    def validation_values(self) -> dict[str, float]:
        """Give the numbers that take all validation pairs together: interval, spread, calibration, correlation."""
        # of a single pair, torchmetrics gives scalars
        chosen, rejected, chosen_lengths, rejected_lengths = map(torch.atleast_1d, self.validation_pairs.compute())
        self.validation_pairs.reset()
        margins, rewards = chosen - rejected, torch.cat([chosen, rejected])
        _, (low, high) = ranking_accuracy(margins)
        found = calibration(margins)
        self._show_calibration(found)
        return {
            "accuracy_low": low,
            "accuracy_high": high,
            "min_reward": float(rewards.min()),
            "max_reward": float(rewards.max()),
            "calibration_error": found.error,
            "reward_length_correlation": correlation(rewards, torch.cat([chosen_lengths, rejected_lengths]).float()),
        }

    def _show_calibration(self, found: Calibration) -> None:
        rows = [
            f"| {predicted:.2f} | {observed:.2f} | {count} |"
            for predicted, observed, count in zip(found.predicted, found.observed, found.counts, strict=True)
            if count
        ]
        table = "\n".join(["| said | was right | pairs |", "|---|---|---|", *rows])
        for logger in self.trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                step = self.trainer.global_step
                logger.experiment.add_text("val/calibration", table, step)
                logger.experiment.add_image("val/calibration", calibration_picture(found), step, dataformats="HWC")


def _sum_of(values: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, values, 0.0).sum()


def calibration_picture(found: Calibration, size: int = 200) -> Any:
    """Draw how often pairs were ranked rightly over how sure the model was, both from 1/2 to 1, with the diagonal.

    Args:
        found: of `calibration`.
        size: of the picture, in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    picture = np.full((size, size, 3), 255, dtype=np.uint8)
    line = np.arange(size)
    picture[size - 1 - line, line] = 200
    for predicted, observed, count in zip(found.predicted, found.observed, found.counts, strict=True):
        if count:
            column, row = (int(np.clip((share - 0.5) * 2, 0, 1) * (size - 1)) for share in (predicted, observed))
            top = size - 1 - row
            picture[max(0, top - 3) : top + 4, max(0, column - 3) : column + 4] = (31, 119, 180)
    return picture
