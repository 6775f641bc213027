"""Answers that a policy writes, and the tensors of their tokens that PPO learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig
from lit_llm.data.conversations.encoded_rows import padded_width
from lit_llm.distributed.ranks import gather
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation import Engine
from lit_llm.model import Decoder
from lit_llm.objectives import IGNORE_INDEX


@dataclass
class Answer:
    """The answer of a policy to a prompt.

    Attributes:
        prompt: token ids.
        ids: token ids, the one that ended the answer included.
        ended: whether it ended by itself; otherwise it was cut off.
    """

    prompt: list[int]
    ids: list[int]
    ended: bool = False


@dataclass
class Experience:
    """Answers as padded rows, b of t tokens; the numbers at position i are about the choice of token i + 1.

    Attributes:
        tokens: [b, t] prompt and answer, then padding.
        targets: [b, t] the next token where it is the answer's, elsewhere IGNORE_INDEX.
        lengths: [b] tokens of a row without its padding.
        ended: [b] bool; see `Answer`.
        log_probs: [b, t] of the targets, under the policy that wrote them.
        reference_log_probs: [b, t] under the reference.
        values: [b, t] expected reward before the choice; zeros where no values are learned.
        scores: [b] reward of the whole answer.
        advantages, returns: [b, t].
    """

    tokens: Tensor
    targets: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    values: Tensor
    scores: Tensor
    advantages: Tensor
    returns: Tensor

    @classmethod
    def of_answers(cls, answers: Sequence[Answer], most: int, device: torch.device) -> Experience:
        """Make the rows of some answers, as wide as `padded_width` says; what is computed later is 0 at first."""
        lengths = [len(answer.prompt) + len(answer.ids) for answer in answers]
        width = padded_width(max(lengths), most)
        tokens = torch.zeros(len(answers), width, dtype=torch.long)
        targets = torch.full_like(tokens, IGNORE_INDEX)
        for row, answer in enumerate(answers):
            tokens[row, : lengths[row]] = torch.tensor(answer.prompt + answer.ids)
            targets[row, len(answer.prompt) - 1 : lengths[row] - 1] = torch.tensor(answer.ids)
        ended = torch.tensor([answer.ended for answer in answers], device=device)
        per_token = torch.zeros(tokens.shape, device=device)
        return cls(
            tokens.to(device),
            targets.to(device),
            torch.tensor(lengths, device=device),
            ended,
            *(per_token for _ in range(3)),
            torch.zeros(len(answers), device=device),
            *(per_token for _ in range(2)),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mask(self) -> Tensor:
        """[b, t] bool: where a token of the answer is chosen."""
        return self.targets != IGNORE_INDEX

    def rows(self, index: slice | Tensor) -> Experience:
        """Select some of the answers."""
        return Experience(*(getattr(self, field.name)[index] for field in fields(self)))

    def split(self, rows: int | None) -> list[Experience]:
        """Cut the answers into parts of at most `rows`; None leaves them together."""
        rows = len(self) if rows is None else rows
        return [self.rows(slice(start, start + rows)) for start in range(0, len(self), rows)]


def write_answers(
    model: Decoder,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    max_batch: int,
) -> list[Answer]:
    """Draw an answer to each prompt; it depends on the weights, the prompt and the seed alone.

    Where the model is sharded, every rank writes the answers to all ranks' prompts, in the same steps.

    Args:
        model: the policy.
        prompts: token ids.
        seeds: one for each prompt, no two equal on any rank.
        stop_ids: tokens that end an answer.
        max_new_tokens: most tokens of an answer.
        temperature: divides the logits.
        max_batch: answers written at once.
    """
    asked = dict(zip(seeds, prompts, strict=True))
    if is_sharded(model):
        asked = {seed: prompt for each in gather(asked) for seed, prompt in each.items()}
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, context_full="stop")
    longest = max(map(len, asked.values()))
    engine = Engine(model, min(max_batch, len(asked)), longest + max_new_tokens)
    written: dict[int, Answer] = {}
    for seed, prompt in asked.items():
        written[engine.submit(prompt, replace(sampling, seed=seed))] = Answer(prompt, [])
    by_seed = dict(zip(asked, written.values(), strict=True))
    while engine.busy:
        for event in engine.step():
            if event.error is not None:
                raise event.error
            answer = written[event.request]
            assert event.token is not None  # the engine knows no stop token, and so writes them all
            answer.ids.append(event.token)
            if event.token in stop_ids:
                answer.ended = True
                engine.cancel(event.request)
    return [by_seed[seed] for seed in seeds]


@contextmanager
def evaluating(*models: Decoder) -> Iterator[None]:
    """Keep models in evaluation mode, without dropout, while the block runs."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)
