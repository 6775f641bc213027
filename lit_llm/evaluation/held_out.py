"""A model on requests that it has not seen: the answers it writes, and how it rates given answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.config import ConversationDataConfig, PreferenceDataConfig, SamplingConfig
from lit_llm.config.progress import track
from lit_llm.data.conversations.data_module import RowsDataModule
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.data.conversations.supervised import ConversationDataModule
from lit_llm.generation import Completion, complete
from lit_llm.model import Decoder, token_log_probs
from lit_llm.modules.rewards import model_scores
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message

_ROWS = 16


def write_answers(
    model: Decoder, tokenizer: Tokenizer, requests: Sequence[str], sampling: SamplingConfig
) -> list[Completion]:
    """What the model answers to each request of a user; request i draws with
    `sample_seed(sampling.seed, i)`.

    Args:
        model: a language model.
        tokenizer: its own; has chat tokens.
        requests: the user's turns.
        sampling: how tokens are chosen.
    """
    chat = ChatFormat(tokenizer)
    prompts = [chat.render_prompt([Message("user", request)]) for request in requests]
    return complete(model, prompts, sampling, tokenizer=tokenizer, stop_tokens=chat.stop_ids)


def answer_loss(model: Decoder, tokenizer: Tokenizer, path: Path) -> float:
    """Return the loss in nats per token of the answers in a file of conversations, ends of turns included.

    Args:
        model: a language model.
        tokenizer: its own; has chat tokens.
        path: the file; conversations that are too long for the model are cut off.
    """
    log_probs, tokens = answer_log_probs(model, tokenizer, str(path))
    return float(-log_probs.sum() / tokens.sum())


def answer_log_probs(model: Decoder, tokenizer: Tokenizer, path: str, batch_size: int = _ROWS) -> tuple[Tensor, Tensor]:
    """Return each conversation's log-probability of all its answers [rows] and their number of tokens [rows].

    Args:
        model: a language model.
        tokenizer: its own; has chat tokens.
        path: a file, folder, glob or hf:NAME[:CONFIG[:SPLIT]].
        batch_size: conversations at once.

    Raises:
        UserError: there is nothing at the path that can be read, or no row is left of it.
    """
    config = ConversationDataConfig(
        paths=[path],
        validation_fraction=0.0,
        sequence_length=model.config.max_position_embeddings,
        batch_size=batch_size,
        packing=False,
        too_long="truncate",
        max_dropped_share=1.0,  # what is left out is said
    )
    batches = _every_row(ConversationDataModule(config, tokenizer, seed=0), path)
    log_probs, tokens = zip(*_answer_log_probs(model, batches), strict=True)
    return torch.cat(log_probs), torch.cat(tokens)


def preference_log_probs(
    model: Decoder,
    tokenizer: Tokenizer,
    path: Path | str,
    batch_size: int = _ROWS,
    longest: int | None = None,
    tell: bool = True,
) -> Tensor:
    """Return the log-probabilities of the chosen and the rejected answers in a file of preferences: [pairs, 2].

    Args:
        model: a language model.
        tokenizer: its own; has chat tokens.
        path: a file, folder, glob or hf:NAME.
        batch_size: pairs at once.
        longest: tokens of a text, which is cut after them; None: as many as the model has positions.
        tell: say on stderr how many rows are left out or cut off.
    """
    batches = _pairs(model, tokenizer, path, batch_size, longest, tell)
    return torch.cat([log_probs.view(2, -1).T for log_probs, _ in _answer_log_probs(model, batches)])


def preference_scores(model: Decoder, tokenizer: Tokenizer, path: Path | str, batch_size: int = _ROWS) -> Tensor:
    """Return a reward model's scores of the chosen and the rejected answers in a file of preferences: [pairs, 2].

    Arguments as those of `preference_log_probs`, with a reward model.
    """
    batches = _on_device(
        track(_pairs(model, tokenizer, path, batch_size), "reading answers", unit="batches"), model.eval()
    )
    scores = [model_scores(model, batch["tokens"], batch["lengths"]) for batch in batches]
    return torch.cat([each.view(2, -1).T.cpu() for each in scores])


@torch.no_grad()
def answer_scores(model: Decoder, tokenizer: Tokenizer, requests: Sequence[str], answers: Sequence[str]) -> Tensor:
    """Return a reward model's score of each answer to the request of the same number: [answers]."""
    chat, scores = ChatFormat(tokenizer), []
    for request, answer in zip(requests, answers, strict=True):
        rendered = chat.render([Message("user", request), Message("assistant", answer)])
        end = len(rendered.ids) - rendered.supervised[::-1].index(True)
        # an answer may be longer as text is read again than as it was written
        ids = rendered.ids[:end][: model.config.max_position_embeddings]
        scores.append(model.eval()(torch.tensor([ids], device=model.embedding.weight.device))[0, -1].cpu())
    return torch.stack(scores)


def _pairs(
    model: Decoder,
    tokenizer: Tokenizer,
    path: Path | str,
    batch_size: int,
    longest: int | None = None,
    tell: bool = True,
) -> Iterable[dict[str, Any]]:
    config = PreferenceDataConfig(
        paths=[str(path)],
        validation_fraction=0.0,
        sequence_length=longest or model.config.max_position_embeddings,
        batch_size=batch_size,
        too_long="truncate",
        max_dropped_share=1.0,  # what is left out is said
    )
    return _every_row(PreferenceDataModule(config, tokenizer, seed=0), str(path), tell)


def _every_row(data: RowsDataModule, path: str, tell: bool = True) -> Iterable[dict[str, Any]]:
    """Return batches of all rows of a file, and say on stderr how many rows are left out or cut off."""
    for line in data.statistics_lines() if tell else ():
        name, _, about = line.partition("data.paths: ")
        if about and not name:
            print(f"{path}: {about}", file=sys.stderr)
    return data.make_evaluation_loader("train", 0, 1)


def _on_device(batches: Iterable[dict[str, Any]], model: Decoder) -> Iterator[dict[str, Any]]:
    device = model.embedding.weight.device
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}


def _answer_log_probs(model: Decoder, batches: Iterable[dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each batch the log-probability of each row's answers [rows] and their number of tokens [rows]."""
    for batch in _on_device(track(batches, "reading answers", unit="batches"), model):
        scored = batch["targets"] != IGNORE_INDEX
        with torch.no_grad():
            log_probs = token_log_probs(model.eval(), batch["tokens"], batch["targets"]).log_probs
        yield log_probs.cpu().double().sum(1), scored.sum(1).cpu()
