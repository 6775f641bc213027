"""Configuration of the data of the stages after pretraining: rows of conversations, preferences and prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.data import BatchConfig
from lit_llm.config.errors import UserError


@dataclass
class RowsConfig(BatchConfig):
    """Rows of text files, split into training and validation."""

    paths: list[str] = field(default_factory=list)
    """Files (.json, .jsonl, .parquet), folders, globs or hf:NAME[:CONFIG[:SPLIT]] with the training rows."""
    validation_paths: list[str] = field(default_factory=list)
    """The same for validation; empty: a part of the training rows, see validation_fraction."""
    validation_fraction: float = 0.05
    """Share of the rows that is set aside for validation, by a hash of the prompt: equal prompts stay together. Not
    with validation_paths."""
    validation_rows: int | None = None
    """Read only the first so many validation rows; null reads all."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What becomes of a row of more than sequence_length tokens: left out and counted, or cut off at the end."""
    max_dropped_share: float = 0.1
    """Largest share of the rows that may be left out; more is an error."""
    add_chat_tokens: bool = False
    """Give a tokenizer without chat tokens <|im_start|>, <|im_end|> and <|pad|>, and the model rows for them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.validation_fraction < 1.0:
            raise UserError(f"data.validation_fraction is {self.validation_fraction}; it must be from 0 to below 1")
        # the default may have been given, too, and 0 is what happens
        if self.validation_paths and self.validation_fraction not in (0.0, RowsConfig.validation_fraction):
            raise UserError(
                "data.validation_fraction has no effect with data.validation_paths, which bring the validation rows; "
                "leave one of the two out"
            )
        if not 0.0 <= self.max_dropped_share <= 1.0:
            raise UserError(f"data.max_dropped_share is {self.max_dropped_share}; it must be from 0 to 1")
        if self.validation_rows is not None and self.validation_rows < 1:
            raise UserError(f"data.validation_rows is {self.validation_rows}; it must be at least 1, or null")


@dataclass
class ConversationDataConfig(RowsConfig):
    """Conversations to learn the answers of."""

    form: Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "gsm8k"] = "auto"
    """How a row holds its conversation; "auto" tells by its fields."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Tokens that the loss is taken over: the assistant's turns with their ends, or all."""
    packing: bool = True
    """Fill each row with several conversations (best fit), kept apart by masks; false pads each conversation."""


@dataclass
class PreferenceDataConfig(RowsConfig):
    """Pairs of a chosen and a rejected answer."""


@dataclass
class PromptDataConfig(RowsConfig):
    """Prompts to answer; batch_size counts prompts."""

    paths: list[str] = field(default_factory=list)
    """Files (.json, .jsonl, .parquet), folders, globs or hf:NAME[:CONFIG[:SPLIT]] of rows such as
    {"prompt": "What is 2 + 3?", "answer": "5"}, whose fields the reward functions are given by name. The prompt stands
    in the field prompt, instruction, question, messages or conversations; answers that are in it are not read."""
