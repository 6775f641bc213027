"""Quantizing a model, with its loss of quality told. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import UserError
from lit_llm.data.sources.encoding import read_text

if TYPE_CHECKING:
    from lit_llm.model import Decoder
    from lit_llm.tokenizer import Tokenizer

# Prose and code, so that there is something to compare on where the prompts are short.
SAMPLE = '''The river was high that spring, and nobody crossed it before noon. "Wait for the ferry," she said, "it comes
at 11:45." He counted his coins (there were seven), wrote the number down, and asked how far it was to the next town.

def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    if not values:
        raise ValueError("mean of nothing")
    return sum(values) / len(values)
'''
# The full model's predictions are held while it is quantized: 4 bytes for each token and entry of the vocabulary.
MOST_TOKENS = 512


def quantize_and_tell(
    model: Decoder,
    tokenizer: Tokenizer,
    kind: str,
    texts: Iterable[str] = (),
    source: str | None = None,
    *,
    tied_head: bool = False,
) -> None:
    """Quantize a model in place and say on stderr what that changed.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        kind: "int8", "int8_dynamic" or "int4".
        texts: measured on, up to `MOST_TOKENS` tokens in all.
        source: what the texts are called; None: they are prompts, if any, and `SAMPLE` is measured on as well.
        tied_head: round a head that is the embedding as well; see `quantize`.

    Raises:
        UserError: the model cannot be quantized so, is a reward model, or there is no token to measure on.
    """
    model.config.check_gives_text("what is to be quantized")
    import torch

    from lit_llm.model.quality import compare, predictions
    from lit_llm.model.quantization import quantize
    from lit_llm.tokenizer import prompt_ids

    context = model.config.max_position_embeddings
    windows: list[torch.Tensor] = []
    room = MOST_TOKENS
    texts = [text for text in texts if text]
    for text in dict.fromkeys([*texts, SAMPLE] if source is None else texts):
        ids = prompt_ids(tokenizer, text, special_tokens=False)[:room]
        room -= len(ids)
        windows += [torch.tensor(ids[start : start + context]) for start in range(0, len(ids), context)]
    before = list(predictions(model, windows))
    quantize(model, kind, tied_head=tied_head)
    found = compare(windows, before, predictions(model, windows))
    where = source or ("the prompts and a built-in text" if texts else "a built-in text")
    print(f"{kind} against the full model, on {where}: {found}", file=sys.stderr)


def read_quality_text(path: str) -> str:
    """Read the text that quality is to be measured on.

    Raises:
        UserError: it is missing, no text, or empty.
    """
    text = read_text(Path(path))
    if not text.strip():
        raise UserError(f"quality_text {path} is empty")
    return text
