"""Texts that the model writes along the way."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from lit_llm.config import SampleConfig
from lit_llm.generation import complete
from lit_llm.model.parallel import is_sharded
from lit_llm.tokenizer import Tokenizer


class TextSamples(L.Callback):
    """Writes samples to TensorBoard after each validation, and keeps the newest ones.

    Draws come from streams of their own, so that sampling leaves dropout and everything else as it was.

    Args:
        config: prompts and how tokens are chosen.
        tokenizer: encodes the prompts and decodes what is written.
    """

    def __init__(self, config: SampleConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write one text for each prompt."""
        # with sharded weights every rank has to take part; elsewhere one does it for all
        if not self.config.prompts or not (trainer.is_global_zero or is_sharded(pl_module.model)):
            return
        end = self.tokenizer.eot_id
        prompts = [[end, *self.tokenizer.encode(text)] for text in self.config.prompts]
        room = pl_module.model.config.max_position_embeddings
        sampling = replace(
            self.config.sampling,
            max_new_tokens=max(1, min(self.config.sampling.max_new_tokens, room - max(map(len, prompts)))),
        )
        written = complete(pl_module.model, prompts, sampling, tokenizer=self.tokenizer, stop_tokens=[end])
        self.texts = [text + sample.text for text, sample in zip(self.config.prompts, written, strict=True)]
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_text"):
                for number, text in enumerate(self.texts):
                    # an indented block keeps line ends and markup as they are
                    block = "\n".join("    " + line for line in text.splitlines())
                    logger.experiment.add_text(f"samples/{number}", block, trainer.global_step)
