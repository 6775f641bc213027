"""The rows of the chat quickstart: some that are held out from all training, and the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llm.config import CorpusConfig, QuickstartChatConfig, UserError
from lit_llm.data.conversations.forms import Row, RowPlace, prompt_of
from lit_llm.data.conversations.reading import prompt_to_answer
from lit_llm.data.sources.rows import iterate_rows
from lit_llm.interop import read_model_config
from lit_llm.quickstart.functions import write_rows
from lit_llm.stages.loading import find_model
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat, Message

MOST_TOKENS = 256
"""Most tokens of a conversation, where the model reads as many."""
MOST_ANSWER_TOKENS = 128
HELD_OUT = 32
"""Most conversations, and most pairs, that the models are measured on."""
_HELD_OUT_SHARE = 10  # of the prompts, one in so many


@dataclass(frozen=True)
class ChatFiles:
    """The files that hold the rows.

    Attributes:
        folder: of the run.
    """

    folder: Path

    def conversations(self, split: str) -> Path:
        """Name the file of conversations of a split, "train" or "validation"."""
        return self.folder / "rows" / f"conversations_{split}.jsonl"

    def preferences(self, split: str) -> Path:
        """Name the file of preferences of a split."""
        return self.folder / "rows" / f"preferences_{split}.jsonl"


def most_tokens(config: QuickstartChatConfig) -> int:
    """Give the most tokens of a conversation made of a function; longer ones of the user's own are cut off."""
    return min(MOST_TOKENS, read_model_config(find_model(config.start)).max_position_embeddings)


def write_chat_rows(config: QuickstartChatConfig, tokenizer: Tokenizer) -> None:
    """Write the rows of each split, unless they are there.

    Raises:
        UserError: a file cannot be read, or has too few rows; or the tokenizer has no form for conversations.
    """
    ChatFormat(tokenizer)
    files = ChatFiles(config.folder)
    if files.preferences("validation").exists():  # the last one written
        return
    if config.instructions is None or config.preferences is None:
        conversations, preferences = _rows_of_functions(config, tokenizer)
    else:
        conversations = _split_rows(config.instructions, "instructions")
        preferences = _split_rows(config.preferences, "preferences")
    for name, rows in (("conversations", conversations), ("preferences", preferences)):
        for split in ("train", "validation"):
            path = getattr(files, name)(split)
            kept = rows[split] if split == "train" else _spread(rows[split], HELD_OUT)
            write_rows(path, kept)
            print(f"{split}: {len(kept):,} {name} in {path}")


def held_out_prompts(path: Path, count: int) -> list[tuple[Message, ...]]:
    """Give the first prompts of a file of conversations, without the answers."""
    found = []
    for file, number, value in iterate_rows(str(path), "instructions"):
        prompt = prompt_of(Row(RowPlace(file, number), value))
        if prompt:
            found.append(tuple(prompt))
        if len(found) == count:
            break
    return found


def _rows_of_functions(
    config: QuickstartChatConfig, tokenizer: Tokenizer
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Make conversations and preferences of the functions of the standard library."""
    from lit_llm.data.corpus.documents import Corpus
    from lit_llm.quickstart.functions import conversation_row, corrupt, functions_of, preference_row

    corpus = Corpus(CorpusConfig(path="stdlib", split="hash"))
    functions = functions_of(corpus, tokenizer, most_tokens(config), MOST_ANSWER_TOKENS)
    conversations = {split: [conversation_row(each) for each in found] for split, found in functions.items()}
    preferences = {
        split: [
            preference_row(each.request, each.source, text, corruption=kind)
            for each, (text, kind) in zip(found, corrupt(found, config.seed), strict=True)
        ]
        for split, found in functions.items()
    }
    return conversations, preferences


def _split_rows(path: str, option: str) -> dict[str, list[Any]]:
    """Read a file and hold one in ten of its prompts out, the same ones in every file.

    Raises:
        UserError: the file cannot be read, or a part of it is empty.
    """
    rows: dict[str, list[Any]] = {"train": [], "validation": []}
    for file, number, value in iterate_rows(path, option):
        row = Row(RowPlace(file, number), value)
        prompt = prompt_to_answer(row)
        asked = json.dumps(value, sort_keys=True) if prompt is None else str([message.content for message in prompt])
        held_out = hashlib.sha256(asked.encode()).digest()[0] % _HELD_OUT_SHARE == 0
        rows["validation" if held_out else "train"].append(value)
    few = min(map(len, rows.values()))
    if not few:
        count = sum(map(len, rows.values()))
        raise UserError(f"{option} {path}: {count} rows are too few to train on some and to measure on others; give 50")
    return rows


def _spread(rows: list[Any], most: int) -> list[Any]:
    """Choose rows spread evenly over all."""
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
