"""Pretraining: predict every next token."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lit_llm.config import PretrainConfig, SFTConfig
from lit_llm.model.log_probs import head_rows, over_text, own_targets
from lit_llm.modules.base import LanguageModule
from lit_llm.modules.metrics import NamedMeans
from lit_llm.objectives import IGNORE_INDEX, linear_cross_entropy

_KINDS = ("loss", "bits_per_byte")


class PretrainingModule(LanguageModule):
    """Next-token cross-entropy over every supervised token of a window.

    In validation on several corpora, `loss` and `bits_per_byte` are those of all tokens, so that each corpus weighs by
    its own; `loss/NAME` and `bits_per_byte/NAME` are those of one corpus.

    Args:
        config: the run.
        token_bytes: UTF-8 bytes that each token id stands for [vocab_size], or None.
    """

    config: PretrainConfig | SFTConfig

    def __init__(self, config: PretrainConfig | SFTConfig, token_bytes: Tensor | None = None) -> None:
        super().__init__(config, token_bytes)
        self.corpora = config.data.names if isinstance(config, PretrainConfig) else []
        self.corpus_means = NamedMeans([f"{kind}/{name}" for kind in _KINDS for name in self.corpora])

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of `targets` [b, t] given `tokens` [b, t]; see `LanguageModule.token_loss`."""
        config = self.config
        # each corpus in the batch on its own: a token without a target costs the head nothing
        parts = _targets_of_corpora(batch)
        own = {corpus: own_targets(self.model, targets) for corpus, targets in parts.items()}

        def losses_of(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, ...]:
            return tuple(over_text(self.model, loss_of(hidden, head, targets)) for targets in own.values())

        def loss_of(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
            return linear_cross_entropy(
                hidden.flatten(0, 1),
                targets=targets.flatten(),
                **head_rows(head),
                chunk_tokens=config.loss_chunk(targets.device.type),
                softcap=config.model.logits_softcap,
                z_loss=config.z_loss if training and isinstance(config, PretrainConfig) else 0.0,
                num_classes=config.model.vocab_size,
                supervised=batch.get("supervised") if targets is batch["targets"] else None,
                compiled=self.compiles_on_gpu,
            )

        documents = batch.get("document_ids")
        losses = self.model(batch["tokens"], document_ids=documents, head=losses_of, head_reads_part=True)
        for (corpus, targets), loss in zip(parts.items(), losses, strict=True):
            if corpus is not None:
                self._note_corpus(self.corpora[corpus], targets, loss)
        return sum(losses[1:], losses[0]), (batch["targets"] != IGNORE_INDEX).sum()

    def _note_corpus(self, name: str, targets: Tensor, loss_sum: Tensor) -> None:
        self.corpus_means.update({f"loss/{name}": (loss_sum, (targets != IGNORE_INDEX).sum())})
        if self.token_bytes is not None:
            self.corpus_means.update({f"bits_per_byte/{name}": (loss_sum / math.log(2), self.bytes_of(targets))})

    def validation_values(self) -> dict[str, float]:
        """Give the loss and the bits per byte of each corpus, where there are several."""
        if len(self.corpora) < 2:
            return {}
        values = self.corpus_means.compute()
        self.corpus_means.reset()
        return values


def _targets_of_corpora(batch: dict[str, Tensor]) -> dict[int | None, Tensor]:
    """The targets [b, t] of each corpus that the rows of a batch are from, IGNORE_INDEX elsewhere; None: of all."""
    targets, sources = batch["targets"], batch.get("source_ids")
    found = [] if sources is None else [number for number in sources.unique().tolist() if number >= 0]
    if sources is None or not found:
        return {None: targets}
    return {number: targets.masked_fill(sources[:, None] != number, IGNORE_INDEX) for number in found}
