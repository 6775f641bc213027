"""In speculative decoding a small model guesses ahead, and the large one checks all guesses in one pass.

What is written has the large model's distribution: a guess x is kept with probability min(1, p(x) / q(x)), and the
first that is not is replaced by a draw from max(p - q, 0). Source: Leviathan et al. 2023; Chen et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_llm.config import SamplingConfig, UserError
from lit_llm.distributed.tensors import is_sharded
from lit_llm.generation.inference import cache_for, inference, logits_of_last
from lit_llm.generation.request import FinishReason, fitted_prompt, new_stream
from lit_llm.generation.samplers import draw, filtered_probabilities
from lit_llm.model import Decoder


@dataclass
class Speculation:
    """A text written with the help of a draft model."""

    ids: list[int] = field(default_factory=list)
    """The tokens written, without the stop token."""
    finish_reason: FinishReason = "length"
    """Why it ended."""
    guessed: int = 0
    """How many tokens the draft model guessed."""
    kept: int = 0
    """How many of the guesses the model kept."""


def speculate(
    model: Decoder,
    draft: Decoder,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    draft_tokens: int = 4,
    stop_tokens: Iterable[int] = (),
    prefill_chunk: int = 512,
    on_token: Callable[[int], None] | None = None,
) -> Speculation:
    """Continue one prompt; the text has the distribution (not the draws) that `model` alone would give it.

    Args:
        model: the decoder whose text it is.
        draft: a smaller one of the same vocabulary.
        prompt: token ids, at least one.
        sampling: temperature, filters, length and seed; both models' guesses are filtered alike.
        draft_tokens: guesses per pass of `model`.
        stop_tokens: ids that end the text, besides those of `sampling`.
        prefill_chunk: most tokens of the prompt read in one pass.
        on_token: called with every new token.

    Raises:
        UserError: the vocabularies differ, the prompt does not fit, `sampling` has penalties, a bias or stop strings,
            or predictions are not finite.
    """
    _check(model, draft, sampling)
    limit = min(model.config.max_position_embeddings, draft.config.max_position_embeddings)
    context = fitted_prompt(list(prompt), sampling, limit)
    ends = frozenset((*stop_tokens, *sampling.stop_token_ids))
    sharded = is_sharded(model) or is_sharded(draft)
    with inference(model, sharded), inference(draft, sharded):
        pair = _Pair(model, draft, sampling, min(limit, len(context) + sampling.max_new_tokens), draft_tokens)
        done = Speculation()
        while True:
            room = min(sampling.max_new_tokens - len(done.ids) - 1, limit - len(context))
            kept, guessed, extra = pair.advance(context, min(draft_tokens, room), prefill_chunk)
            done.guessed += guessed
            done.kept += len(kept)
            for token in (*kept, extra):
                if token in ends:
                    done.finish_reason = "stop"
                    return done
                context.append(token)
                done.ids.append(token)
                if on_token is not None:
                    on_token(token)
            if len(done.ids) == sampling.max_new_tokens:
                return done
            if len(context) > limit:
                if sampling.context_full == "stop":
                    return done
                context = context[-(limit // 2) :]
                pair.forget()


def _check(model: Decoder, draft: Decoder, sampling: SamplingConfig) -> None:
    if model.config.vocab_size != draft.config.vocab_size:
        raise UserError(
            f"the draft model has a vocabulary of {draft.config.vocab_size} tokens and the model one of "
            f"{model.config.vocab_size}; they must be the same"
        )
    if sampling.penalizes or sampling.logit_bias or sampling.stop_strings:
        raise UserError("a draft model cannot be used together with penalties, logit_bias or stop_strings")


class _Pair:
    """The two models, each with a cache of one row."""

    def __init__(
        self, model: Decoder, draft: Decoder, sampling: SamplingConfig, max_length: int, draft_tokens: int
    ) -> None:
        self.model, self.draft = model, draft
        self.sampling = sampling
        self.stream = new_stream(sampling.seed)
        self.cache = cache_for(model, 1, max_length, spare=draft_tokens + 1)
        self.draft_cache = cache_for(draft, 1, max_length, spare=draft_tokens + 1)

    def forget(self) -> None:
        """Empty the caches and go on from another context."""
        self.cache.truncate(0, 0)
        self.draft_cache.truncate(0, 0)

    def advance(self, context: list[int], draft_tokens: int, chunk: int) -> tuple[list[int], int, int]:
        """Guess, check, and draw one more token; returns the kept guesses, how many there were, and that token."""
        guesses, q = self._guess(context, draft_tokens, chunk)
        unread = (context + guesses)[self.cache.lengths[0] :]
        logits = logits_of_last(self.model, self.cache, 0, unread, len(guesses) + 1, chunk)
        p = filtered_probabilities(logits, self.sampling).cpu()
        kept = 0
        while kept < len(guesses):
            guess = guesses[kept]
            uniform = torch.rand((), dtype=torch.float64, generator=self.stream)
            if uniform * q[kept][guess] >= p[kept][guess]:
                break
            kept += 1
        rest = p[kept] if kept == len(guesses) else (p[kept] - q[kept]).clamp(min=0.0)
        if not bool(rest.any()):  # the two distributions differ only by rounding
            rest = p[kept]
        extra = int(draw(rest.unsqueeze(0), [self.stream]))
        text = context + guesses[:kept]
        for cache in (self.cache, self.draft_cache):
            length = min(len(text), cache.lengths[0])
            cache.truncate(0, length, text[length - 1])
        return guesses[:kept], len(guesses), extra

    def _guess(self, context: list[int], count: int, chunk: int) -> tuple[list[int], list[Tensor]]:
        """Draw tokens from the draft model; returns them and the distribution [vocab] that each was drawn from."""
        guesses: list[int] = []
        distributions = []
        for _ in range(count):
            unread = (context + guesses)[self.draft_cache.lengths[0] :]
            logits = logits_of_last(self.draft, self.draft_cache, 0, unread, 1, chunk)
            distributions.append(filtered_probabilities(logits, self.sampling)[0].cpu())
            guesses.append(int(draw(distributions[-1].unsqueeze(0), [self.stream])))
        return guesses, distributions
