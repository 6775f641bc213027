"""Supervised fine-tuning: predict the assistant's turns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.config import SFTConfig
from lit_llm.model.log_probs import head_rows, over_text, own_targets
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

    progress_curves = (*PretrainingModule.progress_curves, ("val/token_accuracy", "val accuracy", ".1%"))
    config: SFTConfig

    def __init__(self, config: SFTConfig, token_bytes: Tensor | None = None) -> None:
        super().__init__(config, token_bytes)
        self.validation_accuracy = NamedMeans(["token_accuracy"])
        self._lengths: Tensor | None = None  # of the conversation that each token of the batch belongs to [b, t]
        if config.neftune_alpha:
            self.model.embedding.register_forward_hook(self._add_noise)

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy as in pretraining; in validation count the tokens that were the likeliest, too."""
        if training:
            if self.config.neftune_alpha:
                self._lengths = conversation_lengths(batch["targets"], batch.get("document_ids"))
            return super().token_loss(batch, training)
        config, targets, documents = self.config, batch["targets"], batch.get("document_ids")
        own = own_targets(self.model, targets)

        def read(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
            options = {
                "hidden": hidden.flatten(0, 1),
                "targets": own.flatten(),
                **head_rows(head),
                "chunk_tokens": config.loss_chunk(targets.device.type),
                "num_classes": config.model.vocab_size,
            }
            loss = linear_cross_entropy(softcap=config.model.logits_softcap, **options)
            return over_text(self.model, loss), over_text(self.model, linear_correct(**options))

        loss_sum, correct = self.model(batch["tokens"], document_ids=documents, head=read, head_reads_part=True)
        tokens = (targets != IGNORE_INDEX).sum()
        self.validation_accuracy.update({"token_accuracy": (correct, tokens)})
        return loss_sum, tokens

    def validation_values(self) -> dict[str, float]:
        """Give the share of the split's supervised tokens that were the likeliest to the model."""
        values = self.validation_accuracy.compute()
        self.validation_accuracy.reset()
        return values

    def _add_noise(self, module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        """Add uniform noise of at most alpha / sqrt(l d) to embeddings [b, t, d] of conversations of l tokens.

        Source: Jain et al. 2023 (NEFTune, https://arxiv.org/abs/2310.05914).
        """
        if not module.training or self._lengths is None:
            return embedded
        # ranks that share a row lengthen it to a multiple of them
        lengths = F.pad(self._lengths, (0, embedded.size(1) - self._lengths.size(1)), value=1)
        largest = self.config.neftune_alpha * (lengths * embedded.size(2)).rsqrt()  # [b, t]
        return embedded + torch.empty_like(embedded).uniform_(-1.0, 1.0) * largest.unsqueeze(2).to(embedded.dtype)


def conversation_lengths(targets: Tensor, document_ids: Tensor | None) -> Tensor:
    """Count, for each token, the tokens of the conversation that it belongs to, without the padding of its row.

    Args:
        targets: [b, t]. Where a row is one conversation, it ends with the last that is not IGNORE_INDEX.
        document_ids: [b, t], which count the conversations of a row; None where a row is one.

    Returns:
        [b, t], at least 1.
    """
    if document_ids is None:
        ends = torch.where(targets != IGNORE_INDEX, torch.arange(1, targets.size(1) + 1, device=targets.device), 1)
        return ends.amax(1, keepdim=True).expand_as(targets)
    counts = torch.zeros_like(document_ids).scatter_add_(1, document_ids, torch.ones_like(document_ids))
    return counts.gather(1, document_ids)
