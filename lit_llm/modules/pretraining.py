"""Pretraining: predict every next token."""

from __future__ import annotations

from torch import Tensor, nn

from lit_llm.config import PretrainConfig, SFTConfig
from lit_llm.modules.base import LanguageModule
from lit_llm.objectives import IGNORE_INDEX, linear_cross_entropy


class PretrainingModule(LanguageModule):
    """Next-token cross-entropy over every supervised token of a window.

    Args:
        config: the run.
        token_bytes: UTF-8 bytes that each token id stands for [vocab_size], or None.
    """

    config: PretrainConfig | SFTConfig

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of `targets` [b, t] given `tokens` [b, t]; see `LanguageModule.token_loss`."""
        config = self.config
        targets = batch["targets"]

        def loss(hidden: Tensor, head: nn.Linear) -> Tensor:
            return linear_cross_entropy(
                hidden.flatten(0, 1),
                head.weight,
                targets.flatten(),
                chunk_tokens=config.loss_chunk(targets.device.type),
                softcap=config.model.logits_softcap,
                z_loss=config.z_loss if training and isinstance(config, PretrainConfig) else 0.0,
                num_classes=config.model.vocab_size,
            )

        loss_sum = self.model(batch["tokens"], document_ids=batch.get("document_ids"), head=loss)
        return loss_sum, (targets != IGNORE_INDEX).sum()
