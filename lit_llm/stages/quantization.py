"""Quantizing a model, with its loss of quality told. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import DataConfig, UserError
from lit_llm.data.sources.encoding import read_text

if TYPE_CHECKING:
    from lit_llm.model import Decoder
    from lit_llm.tokenizer import Tokenizer

# Prose and code, so that there is something to compare on where there is no other text.
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
# What is calibrated on. A gram of inputs is to have more tokens than the inputs of a wide layer.
MOST_CALIBRATION_TOKENS = 16_384
# The attention of longer windows takes longer, and tells little more about what layers read.
CALIBRATION_WINDOW = 512
# With fewer tokens of the user's own, another text is measured on as well: a mean over some words says little.
ENOUGH_TOKENS = 128


@dataclass(frozen=True)
class QualityText:
    """Texts that the loss of quality is measured on, and what they are called."""

    name: str
    texts: tuple[str, ...]


def quality_texts(
    tokenizer: Tokenizer, folder: Path, given: str | None, own: QualityText | None = None
) -> list[QualityText]:
    """What the loss of quality is measured on: the user's own text where there is one.

    That is the file of the option `quality_text`; or else what the model is asked to read, and, where that is short,
    the validation text of the pretraining run that the model is from, if it is still there, or a built-in text.

    Args:
        tokenizer: the model's.
        folder: the model folder, or a run or a checkpoint of one.
        given: the option `quality_text`.
        own: what the model is asked to read.

    Raises:
        UserError: the file is missing, no text, or empty.
    """
    if given is not None:
        return [QualityText(given, (read_quality_text(given),))]
    found = [own] if own is not None and any(own.texts) else []
    tokens = sum(len(tokenizer.encode(text)) for each in found for text in each.texts)
    if tokens < ENOUGH_TOKENS:
        found.append(_validation_text(folder, tokenizer) or QualityText("a built-in text", (SAMPLE,)))
    return found


def _validation_text(folder: Path, tokenizer: Tokenizer) -> QualityText | None:
    """The beginning of what a pretraining run was validated on; None where that is not to be found."""
    import yaml

    from lit_llm.data.corpus.shards import ShardedTokens

    above = (folder, folder.parent, *folder.resolve().parents[:2])
    run = next((each for each in above if (each / "config.yaml").is_file()), None)
    if run is None:
        return None
    try:
        options = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        shards = Path(DataConfig.folders_in(options)[0])
        tokens = ShardedTokens(shards / "validation")
        tokens.check_tokenizer(tokenizer)
        ids = tokens.read(0, min(len(tokens), MOST_TOKENS)).tolist()
    except (UserError, OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return None
    return QualityText(f"the validation text of {run}", (tokenizer.decode(ids, skip_special=True),))


def quantize_and_tell(
    model: Decoder,
    tokenizer: Tokenizer,
    kind: str,
    measured: Sequence[QualityText],
    *,
    tied_head: bool = False,
    calibration: str | None = None,
) -> None:
    """Quantize a model in place and say on stderr what that changed.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        kind: "int8", "int8_dynamic" or "int4".
        measured: measured on, up to `MOST_TOKENS` tokens in all; a line is said for each.
        tied_head: round a head that is the embedding as well; see `quantize`.
        calibration: a text by which int4 is rounded, and a line for rounding to the nearest is said before it; None
            rounds to the nearest.

    Raises:
        UserError: the model cannot be quantized so, is a reward model, or there is no token to measure on.
    """
    model.config.check_gives_text("what is to be quantized")
    import torch

    from lit_llm.model.calibration import quantize_by_texts
    from lit_llm.model.quality import compare, predictions
    from lit_llm.model.quantization import quantize
    from lit_llm.tokenizer import prompt_ids

    context = model.config.max_position_embeddings
    windows: list[list[torch.Tensor]] = []
    room = MOST_TOKENS
    for each in measured:
        windows.append([])
        for text in dict.fromkeys(filter(None, each.texts)):
            ids = prompt_ids(tokenizer, text, special_tokens=False)[:room]
            room -= len(ids)
            windows[-1] += [torch.tensor(ids[start : start + context]) for start in range(0, len(ids), context)]
    before = [list(predictions(model, of_text)) for of_text in windows]

    def tell(quantized: Decoder, name: str) -> None:
        for each, of_text, full in zip(measured, windows, before, strict=True):
            found = compare(of_text, full, predictions(quantized, of_text))
            print(f"{name} against the full model, on {each.name}: {found}", file=sys.stderr)

    if calibration is None:
        quantize(model, kind, tied_head=tied_head)
        tell(model, kind)
        return
    tell(quantize(_same_weights(model), kind), f"{kind} rounded to the nearest")
    ids = torch.tensor(prompt_ids(tokenizer, calibration, special_tokens=False)[:MOST_CALIBRATION_TOKENS])
    quantize_by_texts(model, ids.split(min(context, CALIBRATION_WINDOW)))
    tell(model, f"{kind} calibrated on {len(ids):,} tokens")


def _same_weights(model: Decoder) -> Decoder:
    """Another model over the same memory, whose layers can be replaced without touching those of the first."""
    import torch

    from lit_llm.model import Decoder

    with torch.device("meta"):
        other = Decoder(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie()
    return other.eval()


def read_quality_text(path: str, option: str = "quality_text") -> str:
    """Read the text that quality is to be measured on, or that another option names.

    Raises:
        UserError: it is missing, no text, or empty.
    """
    text = read_text(Path(path))
    if not text.strip():
        raise UserError(f"{option} {path} is empty")
    return text
