"""Supervised fine-tuning: predict the assistant's turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.config import SFTConfig
from lit_llm.modules.metrics import NamedMeans
from lit_llm.modules.pretraining import PretrainingModule
from lit_llm.objectives import IGNORE_INDEX, linear_correct, linear_cross_entropy


class SFTModule(PretrainingModule):
    """Next-token cross-entropy over the supervised tokens of conversations.

    Over the validation split it also logs the share of these tokens that were the likeliest to the model.

    Args:
        config: the run.
        token_bytes: UTF-8 bytes that each token id stands for [vocab_size], or None.
    """

    config: SFTConfig

    def __init__(self, config: SFTConfig, token_bytes: Tensor | None = None) -> None:
        super().__init__(config, token_bytes)
        self.validation_accuracy = NamedMeans(["token_accuracy"])
        if config.neftune_alpha:
            self.model.embedding.register_forward_hook(self._add_noise)

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """As in pretraining; see the class for what validation adds."""
        if training:
            return super().token_loss(batch, training)
        config, targets = self.config, batch["targets"]

        def read(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
            arguments = hidden.flatten(0, 1), head.weight, targets.flatten()
            options = {"chunk_tokens": config.loss_chunk_tokens, "num_classes": config.model.vocab_size}
            loss = linear_cross_entropy(*arguments, softcap=config.model.logits_softcap, **options)
            return loss, linear_correct(*arguments, **options)

        loss_sum, correct = self.model(batch["tokens"], document_ids=batch.get("document_ids"), head=read)
        tokens = (targets != IGNORE_INDEX).sum()
        self.validation_accuracy.update({"token_accuracy": (correct, tokens)})
        return loss_sum, tokens

    def validation_values(self) -> dict[str, float]:
        """What is said of the whole split besides the loss."""
        values = self.validation_accuracy.compute()
        self.validation_accuracy.reset()
        return values

    def _add_noise(self, module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        """Uniform noise of at most alpha / sqrt(t d) on embeddings [b, t, d].

        Source: Jain et al. 2023 (NEFTune, https://arxiv.org/abs/2310.05914).
        """
        if not module.training:
            return embedded
        largest = self.config.neftune_alpha / (embedded.size(1) * embedded.size(2)) ** 0.5
        return embedded + torch.empty_like(embedded).uniform_(-largest, largest)
