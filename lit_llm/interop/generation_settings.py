"""A model folder says which tokens begin, end and pad a text and how text is drawn by default; what a model is made of
hands this on to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_llm.config import UserError
from lit_llm.config.notices import tell_once
from lit_llm.config.serialization import shown
from lit_llm.interop.gguf_reading.configuration import config_values, token_ids_of_file
from lit_llm.interop.gguf_reading.container import is_gguf, open_gguf
from lit_llm.interop.json_files import read_object
from lit_llm.interop.peft import base_of, load_tokenizer
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import end_of_turn_id

GENERATION_CONFIG = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""The keys of config.json and of generation_config.json for the tokens that begin, end and pad a text."""
OTHER_IDS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
)
"""Further keys of generation_config.json that hold ids of tokens."""
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""The keys for how text is drawn; older folders have them in config.json."""


@dataclass(frozen=True)
class GenerationSettings:
    """The settings for writing text that are stored in a model folder."""

    ids: dict[str, Any]
    """The values of `IDS` for config.json."""
    generation: dict[str, Any]
    """The content of generation_config.json."""

    def with_padding(self, pad_id: int | None) -> GenerationSettings:
        """Give the same settings with another token for padding."""
        padding = {"pad_token_id": pad_id}
        return replace(self, ids={**self.ids, **padding}, generation={**self.generation, **padding})


def generation_settings(
    tokenizer: Tokenizer, source: Path | None = None, *, learned_turns: bool = False
) -> GenerationSettings:
    """Give the settings of a model that was made from another one, or from nothing.

    They are those of the source: the ids that mean the same token with the new tokenizer, and how text is drawn. Ids
    that now mean another token are left out and named on stderr.

    Args:
        tokenizer: the new model's tokenizer.
        source: the model folder or adapter folder that it was made from; None takes everything from the tokenizer.
        learned_turns: whether the model was trained on conversations, so that the end of a turn ends its texts, too.

    Raises:
        UserError: a file of the source is broken.
    """
    own = token_ids(tokenizer)
    if source is None:
        return GenerationSettings(own, own)
    folder = _whole_model(source)
    values = _stored_values(folder)
    generation = read_generation_config(folder)
    found = {key: values.get(key) for key in SAMPLING if values.get(key) is not None} if generation is None else {}
    generation = {**{key: values[key] for key in IDS if key in values}, **found} if generation is None else generation
    if "bos_token_id" not in values and "bos_token_id" not in generation:
        del own["bos_token_id"]  # transformers then takes the architecture's own
    means_same = _same_tokens(tokenizer, source)
    left_out: list[str] = []
    kept, ids = (
        _kept_ids(
            {key: each[key] for key in IDS if key in each}, folder, values.get("vocab_size"), means_same, left_out
        )
        for each in (generation, values)
    )
    others = {key: value for key, value in generation.items() if key not in IDS}
    for key in OTHER_IDS:
        if key in others and not all(map(means_same, _numbers(others[key]))):
            left_out.append(f"{key} {shown(others.pop(key))}")
    if left_out:
        tell_once(f"{source}: left out, as the tokenizer is another: {', '.join(dict.fromkeys(left_out))}")
    ends = [end_of_turn_id(tokenizer)] if learned_turns else []
    ends += [tokenizer.eot_id] if left_out else []  # training joined documents with this token
    return GenerationSettings(_complete(ids, kept, own, ends), {**_complete(kept, ids, own, ends), **others})


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Say which ids begin, end and pad a text by the tokenizer alone; the end of a chat turn ends a text, too."""
    ends = ends_of(tokenizer)
    return {
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_id,
    }


def ends_of(tokenizer: Tokenizer) -> list[int]:
    """List the ids that end a text or a turn of a chat."""
    ids = (tokenizer.eot_id, tokenizer.im_end_id, end_of_turn_id(tokenizer))
    return list(dict.fromkeys(index for index in ids if index is not None))


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """Read a folder's generation_config.json; None where it has none.

    Raises:
        UserError: it is broken.
    """
    path = folder / GENERATION_CONFIG
    return read_object(path) if path.is_file() else None


def stop_token_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """List the ids that end a text: those of generation_config.json, else of config.json, else the tokenizer's.

    Raises:
        UserError: a file is broken.
    """
    folder = _whole_model(folder)
    config = _stored_values(folder)
    for values in (read_generation_config(folder), config):
        ids = _ids_of("eos_token_id", (values or {}).get("eos_token_id"), folder, config.get("vocab_size"))
        if ids:
            return ids
    return [] if tokenizer.eot_id is None else [tokenizer.eot_id]


def _stored_values(folder: Path) -> dict[str, Any]:
    """Give the content of config.json; of a GGUF file, what of that it says of tokens."""
    if not is_gguf(folder):
        return read_object(folder / "config.json")
    file = open_gguf(folder)
    return {**token_ids_of_file(file), "vocab_size": config_values(file)["vocab_size"]}


def _whole_model(folder: Path) -> Path:
    """Give the folder itself, or for an adapter folder the model folder that the adapter is for."""
    base = base_of(folder)
    return folder if base is None else _whole_model(base)


def _ids_of(key: str, value: Any, folder: Path, vocabulary: Any) -> list[int]:
    """Give the ids of a key whose value is one id, a list of ids, or null.

    Args:
        key: of `IDS`. What ends a text must be a token; old folders have -1 for padding that they lack.
        value: of the key.
        folder: named in an error.
        vocabulary: how many ids the folder's model has, where config.json says it.

    Raises:
        UserError: the value is something else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and abs(each) < 2**31 for each in ids):
        raise UserError(f"{folder}: {key} is {shown(value)}; it must be the id of a token, a list of them, or null")
    most = vocabulary if isinstance(vocabulary, int) else 2**31
    for each in ids if key == "eos_token_id" else ():
        if not 0 <= each < most:
            raise UserError(f"{folder}: {key} {each} is none of its model's tokens, 0 to {most - 1}; correct it")
    return list(ids)


def _same_tokens(tokenizer: Tokenizer, source: Path) -> Callable[[int], bool]:
    """Make a function that says whether an id of the source means the same token with `tokenizer`."""
    try:
        before = load_tokenizer(source)
    except UserError:  # without the old tokenizer nobody knows what its ids meant
        return lambda index: False
    if before.digest == tokenizer.digest:
        return lambda index: True
    old, new = set(before.special_ids.values()), set(tokenizer.special_ids.values())

    def means_same(index: int) -> bool:
        spelled = before.token_bytes(index)
        return spelled != b"" and spelled == tokenizer.token_bytes(index) and (index in old) == (index in new)

    return means_same


def _kept_ids(
    values: dict[str, Any], folder: Path, vocabulary: Any, means_same: Callable[[int], bool], left_out: list[str]
) -> dict[str, Any]:
    """Keep the ids of `IDS` that mean the same token, and append the others to `left_out`."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        ids = _ids_of(key, value, folder, vocabulary)
        same = [index for index in ids if means_same(index)]
        left_out += [f"{key} {index}" for index in ids if index not in same]
        if same or not ids:
            kept[key] = same if isinstance(value, list) else value
    return kept


def _numbers(value: Any) -> list[int]:
    """Collect the whole numbers in nested lists."""
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _complete(
    ids: dict[str, Any], others: dict[str, Any], own: dict[str, Any], ends: list[int | None]
) -> dict[str, Any]:
    """Fill up `ids` from `others` and then from `own`, and add `ends` to the ids that end a text."""
    whole = {**{key: value for key, value in {**own, **others}.items() if value is not None}, **ids}
    for key in ("eos_token_id", "pad_token_id"):
        if whole.get(key) in (None, []) and others.get(key, own[key]) is not None:
            whole[key] = others.get(key) or own[key]
    stops = _as_list(whole.get("eos_token_id"))
    missing = [each for each in dict.fromkeys(ends) if each is not None and each not in stops]
    if missing:
        whole["eos_token_id"] = [*stops, *missing] if stops or len(missing) > 1 else missing[0]
    return whole


def _as_list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
