"""Texts that the model writes at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from lit_llm.config import SamplingConfig, UserError
from lit_llm.distributed.gathering import gathered_once
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation import complete
from lit_llm.generation.request import fitted_prompt
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message
from lit_llm.training.step_lines import StepLines


@dataclass
class SamplePrompts:
    """The beginnings that the samples continue."""

    texts: list[str]
    """Shown before each sample."""
    ids: list[list[int]]
    """The same as the model reads it."""
    stop_ids: tuple[int, ...]
    """Tokens that end a sample."""

    @classmethod
    def of_texts(cls, texts: Sequence[str], tokenizer: Tokenizer) -> SamplePrompts:
        """Take texts as the beginnings of documents."""
        end = tokenizer.eot_id
        return cls(list(texts), [[end, *tokenizer.encode(text)] for text in texts], (end,))

    @classmethod
    def of_turns(cls, conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer) -> SamplePrompts:
        """Take conversations whose next turn is the assistant's."""
        chat = ChatFormat(tokenizer)
        shown = ["".join(f"{turn.role}: {turn.content}\n" for turn in turns) + "assistant: " for turns in conversations]
        return cls(shown, [chat.render_prompt(turns) for turns in conversations], chat.stop_ids)

    def fitted(self, context: int, sampling: SamplingConfig, given: int) -> SamplePrompts:
        """Cut the prompts of rows at their left where they leave no room for a text.

        Args:
            context: positions of the model.
            sampling: how tokens are chosen.
            given: how many of the first prompts are `samples.prompts`, which are not cut unless `sampling` says so.

        Raises:
            UserError: one of those fills the context.
        """
        try:
            ids = [fitted_prompt(prompt, sampling, context) for prompt in self.ids[:given]]
        except UserError as error:
            raise UserError(f"samples.prompts: {error}") from error
        cut = replace(sampling, truncate_prompt=True)
        ids += [fitted_prompt(prompt, cut, context) for prompt in self.ids[given:]]
        texts = [
            text if len(prompt) == len(read) else f"(its last {len(read)} tokens are read) {text}"
            for text, prompt, read in zip(self.texts, self.ids, ids, strict=True)
        ]
        return SamplePrompts(texts, ids, self.stop_ids)


class TextSamples(L.Callback):
    """Writes samples to samples.jsonl and the loggers after each validation, and keeps the newest ones.

    The tokens are drawn from random streams of their own, so that sampling does not change the training.

    Args:
        prompts: what to go on from.
        sampling: how tokens are chosen.
        tokenizer: decodes what is written.
        lines: the run's samples.jsonl.
    """

    def __init__(
        self, prompts: SamplePrompts, sampling: SamplingConfig, tokenizer: Tokenizer, lines: StepLines
    ) -> None:
        self.prompts = prompts
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.lines = lines
        self.texts: list[str] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write one text for each prompt."""
        # with sharded weights every rank has to take part; elsewhere one does it for all
        if not self.prompts.ids or not (trainer.is_global_zero or is_sharded(pl_module.model)):
            return
        room = pl_module.model.config.max_position_embeddings - max(map(len, self.prompts.ids))
        sampling = replace(self.sampling, max_new_tokens=max(1, min(self.sampling.max_new_tokens, room)))
        with gathered_once(pl_module.model, pl_module.config.trainer.reshard_after_forward):
            written = complete(
                pl_module.model,
                self.prompts.ids,
                sampling,
                tokenizer=self.tokenizer,
                stop_tokens=self.prompts.stop_ids,
            )
        self.texts = [text + sample.text for text, sample in zip(self.prompts.texts, written, strict=True)]
        if trainer.is_global_zero:
            self.lines.write(trainer.global_step, {"samples": self.texts})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = list(zip(self.prompts.texts, self.texts, strict=True))
                logger.log_text("samples", columns=["prompt", "text"], data=rows, step=trainer.global_step)
            elif hasattr(logger.experiment, "add_text"):
                for number, text in enumerate(self.texts):
                    # an indented block keeps line ends and markup as they are
                    block = "\n".join("    " + line for line in text.splitlines())
                    logger.experiment.add_text(f"samples/{number}", block, trainer.global_step)
