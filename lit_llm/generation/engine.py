"""Batched generation with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lit_llm.config import SamplingConfig, UserError
from lit_llm.generation.samplers import choose
from lit_llm.model import Decoder, KVCache
from lit_llm.model.parallel import is_sharded


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    eos_id: int | None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt.

    Rows of different lengths are padded on the left and do not affect one another. A row that outgrows the model's
    context goes on from the newest half of the context, read again.

    Args:
        model: the decoder; it is put in evaluation mode for the call.
        prompts: token ids, at least one each.
        sampling: how tokens are chosen; row r draws from a stream seeded by `sampling.seed + r`.
        eos_id: token that ends a text (it is not returned), or None.
        on_token: called with the row and the id of every new token.

    Returns:
        New token ids of each prompt.

    Raises:
        UserError: a prompt is empty or leaves no room in the context.
    """
    limit = model.config.max_position_embeddings
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt is empty; give it at least the end-of-text token")
        if len(prompt) >= limit:
            raise UserError(f"a prompt of {len(prompt)} tokens leaves no room in the context of {limit} tokens")
    was_training = model.training
    model.eval()
    # sharded weights are gathered into memory that training uses again, which must not be made in inference mode
    guard = torch.no_grad() if is_sharded(model) else torch.inference_mode()
    try:
        with guard:
            return _generate(model, [list(prompt) for prompt in prompts], sampling, eos_id, on_token)
    finally:
        model.train(was_training)


def _generate(
    model: Decoder,
    texts: list[list[int]],
    sampling: SamplingConfig,
    eos_id: int | None,
    on_token: Callable[[int, int], None] | None,
) -> list[list[int]]:
    limit = model.config.max_position_embeddings
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(texts))]
    written: list[list[int]] = [[] for _ in texts]
    running = set(range(len(texts)))
    cache, logits = _read(model, texts, min(limit, max(map(len, texts)) + sampling.max_new_tokens))
    for step in range(sampling.max_new_tokens):
        chosen = choose(logits, sampling, generators).tolist()
        running = {row for row in running if chosen[row] != eos_id}
        for row in sorted(running):
            written[row].append(chosen[row])
            if on_token is not None:
                on_token(row, chosen[row])
        if not running or step + 1 == sampling.max_new_tokens:
            break
        # rows that have ended are fed along with the others: a batch keeps its shape
        texts = [[*text, token] for text, token in zip(texts, chosen, strict=True)]
        if cache.length == limit:
            # a row drops its older half when it is full itself, not when its neighbour is
            texts = [text[-(limit // 2) :] if len(text) > limit else text for text in texts]
            cache, logits = _read(model, texts, limit)
        else:
            logits = model(torch.tensor(chosen, device=logits.device).unsqueeze(1), cache=cache)[:, -1]
    return written


def _read(model: Decoder, texts: list[list[int]], max_length: int) -> tuple[KVCache, torch.Tensor]:
    """Read texts into a fresh cache; returns it and the logits after each text, [b, vocab]."""
    weight = model.embedding.weight
    width = max(map(len, texts))
    starts = torch.tensor([width - len(text) for text in texts], device=weight.device)
    rows = [[0] * (width - len(text)) + text for text in texts]
    cache = KVCache(
        model.config,
        len(texts),
        max_length,
        tensor_parallel_size=model.tensor_parallel_size,
        starts=starts if bool(starts.any()) else None,
        device=weight.device,
        dtype=weight.dtype,
    )
    logits = model(torch.tensor(rows, device=weight.device), cache=cache)[:, -1]
    return cache, logits
