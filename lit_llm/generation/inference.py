"""This file prepares a model for writing text and calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lit_llm.config import UserError
from lit_llm.model import Decoder, KVCache


@contextmanager
def inference(model: Decoder, sharded: bool) -> Iterator[None]:
    """Run in evaluation mode, without gradients, cuDNN's attention and compiled blocks; then all is as before.

    A text has another length at every token. cuDNN's attention plans each new one for some 50 ms (H100), and blocks
    that are compiled for training would be compiled again for each layer and then given up.

    Args:
        model: the decoder.
        sharded: whether its weights are spread over ranks. They are gathered into memory that training uses again,
            which must not be made in inference mode.
    """
    was_training, by_cudnn = model.training, torch.backends.cuda.cudnn_sdp_enabled()
    calls = [(block, block._compiled_call_impl) for block in model.blocks]
    compiled_calls = [(block, call) for block, call in calls if call is not None]
    if was_training:
        model.eval()
    for block, _ in compiled_calls:
        block._compiled_call_impl = None
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.no_grad() if sharded else torch.inference_mode():
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(by_cudnn)
        for block, call in compiled_calls:
            block._compiled_call_impl = call
        if was_training:
            model.train()


def cache_for(model: Decoder, batch_size: int, max_length: int, spare: int = 0) -> KVCache:
    """Make a cache in the type and on the device of `model`, for this rank's heads.

    Raises:
        UserError: it is a reward model.
    """
    model.config.check_gives_text("the model")
    weight = model.embedding.weight
    return KVCache(
        model.config,
        batch_size,
        max_length,
        spare=spare,
        tensor_parallel_size=model.tensor_parallel_size,
        device=weight.device,
        dtype=weight.dtype,
    )


def logits_of_last(model: Decoder, cache: KVCache, row: int, tokens: list[int], last: int, chunk: int) -> torch.Tensor:
    """Read tokens into one row, `chunk` at a time, and give the logits [last, vocab] of the last of them.

    Raises:
        UserError: they are not finite.
    """
    device = model.embedding.weight.device
    rest = max(len(tokens) - max(chunk, last), 0)
    for start in range(0, rest, chunk):
        piece = tokens[start : min(start + chunk, rest)]
        step = cache.step(len(piece), range(row, row + 1))
        model(torch.tensor([piece], device=device), cache=step, head=lambda hidden, head: None)
    step = cache.step(len(tokens) - rest, range(row, row + 1))
    logits = model(
        torch.tensor([tokens[rest:]], device=device),
        cache=step,
        head=lambda hidden, head: model.logits(hidden[0, -last:]),
    )
    return finite(logits)


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Give the logits [b, vocab].

    Raises:
        UserError: those of a row are not finite.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise not_finite()
    return logits


def not_finite() -> UserError:
    """Make the error about a model whose predictions are not finite."""
    return UserError(
        "the model's predictions are not finite; its weights are damaged, or need another dtype, as float32"
    )
