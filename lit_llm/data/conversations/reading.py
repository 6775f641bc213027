"""Rows of files as conversations, preferences and prompts, each one checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from lit_llm.config import UserError
from lit_llm.config.progress import track
from lit_llm.data.conversations.forms import (
    FORMS,
    Messages,
    Row,
    RowPlace,
    conversation_of,
    form_of,
    prompt_of,
    unknown_form,
    with_system,
    without_prompt,
)
from lit_llm.data.conversations.statistics import NOT_LEARNED, Rows, RowStatistics
from lit_llm.data.sources.rows import iterate_rows

__all__ = [
    "Conversation",
    "Preference",
    "Prompt",
    "RowPlace",
    "RowStatistics",
    "Rows",
    "prompt_to_answer",
    "read_conversations",
    "read_preferences",
    "read_prompts",
]

T = TypeVar("T")

FormName = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "gsm8k"]

EMPTY = "with an empty answer"
SAME = "whose two answers are the same"

_TELLING_SHARE = 0.1  # where this share of a file's answers begins with the prompt, that is no chance


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with an answer; no answer in it is empty.

    Attributes:
        messages: The turns in order, the last an assistant's.
        place: Where the row is.
    """

    messages: Messages
    place: RowPlace


@dataclass(frozen=True)
class Preference:
    """Two different answers to a prompt, neither of them empty.

    Attributes:
        prompt: At least one message, the last not an assistant's.
        chosen: The better answer: one message of an assistant, or several turns that begin and end with one.
        rejected: The worse, in the same form.
        margin: By how much it is worse, where that is known.
        place: Where the row is.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float | None
    place: RowPlace


@dataclass(frozen=True)
class Prompt:
    """A prompt to be answered.

    Attributes:
        messages: At least one, the last not an assistant's.
        fields: The whole row, for a reward function to look at.
        place: Where the row is.
    """

    messages: Messages
    fields: dict[str, Any]
    place: RowPlace


def read_conversations(
    paths: Sequence[str], form: FormName = "auto", *, option: str = "data.paths"
) -> Rows[Conversation]:
    """Reads conversations to learn from. Rows with an empty answer are left out and counted, and so are those that say
    that they are not to be learned.

    Args:
        paths: Files (.json with a list, .jsonl, .parquet; .gz of the first two), folders or globs of them, or
            hf:NAME[:CONFIG[:SPLIT]].
        form: How rows hold them; "auto" tells by the fields of a file's first row.
        option: What gave the paths, for errors.

    Raises:
        UserError: a file is missing or broken, a row is not as it should be or of another form than the rows of its
            file before, or none is left. The message names file and row.
    """
    forms: dict[str, str] = {}

    def parse(row: Row) -> Conversation | str:
        found = forms.setdefault(row.place.file, form if form != "auto" else form_of(row) or "")
        if not found:
            raise unknown_form(row)
        other = form_of(row)
        if form == "auto" and other not in (found, None) and not row.has(*FORMS[found].fields):
            raise row.error(
                f"the row has the form {other}, those before it the form {found}", "put rows of each form into a file"
            )
        messages = conversation_of(row, found)
        if messages[-1].role != "assistant":
            raise row.error(
                f"the last message is from {messages[-1].role!r}, not 'assistant'",
                "end the conversation with an answer, or leave the row out",
            )
        if not row.is_learned():
            return NOT_LEARNED
        return EMPTY if _has_empty_answer(messages) else Conversation(messages, row.place)

    rows = _read(paths, option, parse, lambda conversation: conversation.messages)
    for conversation in rows:
        is_completion = forms[conversation.place.file] == "prompt_completion" and len(conversation.messages) > 1
        if is_completion and without_prompt(conversation.messages[-1].content, conversation.messages[-2].content):
            rows.statistics.found_repeated(1, conversation.place)
    return rows


def read_preferences(
    paths: Sequence[str],
    *,
    option: str = "data.paths",
    margins: bool = True,
    score_scale: float | None = None,
) -> Rows[Preference]:
    """Reads pairs of answers. Rows whose answers are the same are left out and counted, and so are those with an empty
    answer and those that say that they are not to be learned.

    A row has `chosen` and `rejected`, both text or both messages, and a prompt: as `prompt` (text or messages), in
    Alpaca's fields, or as the messages with which both answers begin. Where all answers of a file begin with the text
    of their prompt, it is taken off them.

    Args:
        paths: as `read_conversations`.
        option: as `read_conversations`.
        margins: read the field `margin`.
        score_scale: where a row has no margin, it is so many times `score_chosen` - `score_rejected`; None: scores are
            not read.

    Raises:
        UserError: as `read_conversations`, or a part of a file's answers begin with their prompt.
    """
    rows = _read(
        paths,
        option,
        lambda row: _preference(row, _margin(row, score_scale) if margins else None),
        lambda pair: (*pair.prompt, *pair.chosen),
    )
    _take_prompts_off(rows)
    if not rows:
        raise UserError(f"{option} {', '.join(paths)}: all rows are left out: {rows.statistics.reasons}")
    return rows


def read_prompts(paths: Sequence[str], *, option: str = "data.paths") -> Rows[Prompt]:
    """Reads prompts to be answered, from rows of any form; answers in them are not read.

    Args and raises: as `read_conversations`.
    """

    def parse(row: Row) -> Prompt:
        messages = prompt_to_answer(row)
        if messages is None:
            raise row.error(
                f"no prompt (its fields: {', '.join(map(str, row.fields)) or 'none'})",
                "name it prompt, instruction, question, messages or conversations",
            )
        _check_prompt(row, messages)
        return Prompt(messages, row.fields, row.place)

    return _read(paths, option, parse, lambda prompt: prompt.messages)


def prompt_to_answer(row: Row) -> Messages | None:
    """What a row of any form asks, without the answers that it may have; None where it has no field for that.

    Raises:
        UserError: a field is not as it should be.
    """
    return _split_answers(row)[0] if row.has("chosen", "rejected") else prompt_of(row)


def _read(
    paths: Sequence[str], option: str, parse: Callable[[Row], T | str], messages_of: Callable[[T], Messages]
) -> Rows[T]:
    """Reads rows and keeps what `parse` makes of them; where it returns a string, that is why the row is left out."""
    rows = Rows[T]()
    statistics = rows.statistics
    for path in paths:
        for file, number, value in track(iterate_rows(path, option), f"reading {path}"):
            statistics.rows += 1
            row = Row(RowPlace(file, number), value)
            parsed = parse(row)
            if not isinstance(parsed, Prompt):  # a prompt's reward functions read the whole row
                statistics.unread.update(row.unread)
            if isinstance(parsed, str):
                statistics.dropped[parsed] += 1
                continue
            statistics.turns[sum(message.role != "system" for message in messages_of(parsed))] += 1
            rows.append(parsed)
    if not rows:
        why = f"all {statistics.rows:,} rows are left out: {statistics.reasons}" if statistics.rows else "no row there"
        raise UserError(f"{option} {', '.join(paths)}: {why}; give other files")
    return rows


def _preference(row: Row, margin: float | None) -> Preference | str:
    row.check_context()
    if thoughts := row.thoughts():
        raise row.error(
            f"the field {next(iter(thoughts))!r} says not which answer it belongs to",
            "let chosen and rejected be messages that have it, or remove it",
        )
    prompt, chosen, rejected = _split_answers(row)
    _check_prompt(row, prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        for message, which in ((answer[0], "begins with"), (answer[-1], "ends with")):
            if message.role != "assistant":
                raise row.error(
                    f"{name} {which} a message from {message.role!r} where an answer is due",
                    "both have to be an assistant's answers to the same prompt",
                )
    if not row.is_learned():
        return NOT_LEARNED
    if _has_empty_answer(chosen) or _has_empty_answer(rejected):
        return EMPTY
    return SAME if chosen == rejected else Preference(prompt, chosen, rejected, margin, row.place)


def _split_answers(row: Row) -> tuple[Messages, Messages, Messages]:
    """The prompt of a pair, and what follows it on either side."""
    are_text = [isinstance(row.value(name), str) for name in ("chosen", "rejected")]
    if are_text[0] != are_text[1]:
        raise row.error("one of chosen and rejected is text, the other is not", "make both text or both messages")
    chosen, rejected = (row.text_or_messages(name, "assistant") for name in ("chosen", "rejected"))
    prompt = prompt_of(row)
    if chosen[0].role == "assistant" or rejected[0].role == "assistant":
        if prompt is None:
            raise row.error(
                "no prompt (a preference file without prompts)",
                "add a field 'prompt', or let chosen and rejected be the messages of the whole conversation",
            )
        return prompt, chosen, rejected
    # One message is left on either side, also where one conversation is how the other begins.
    longest = min(len(chosen), len(rejected)) - 1
    common = next((index for index in range(longest) if chosen[index] != rejected[index]), longest)
    if not common:
        raise row.error("chosen and rejected have no first message in common", "both have to begin with the prompt")
    asked = {message.content.strip() for message in chosen[:common]}
    if prompt is not None and prompt[-1].content.strip() not in asked:
        raise row.error("the prompt is not what chosen and rejected begin with", "correct it, or leave it out")
    return with_system(row, chosen[:common]), chosen[common:], rejected[common:]


def _margin(row: Row, score_scale: float | None) -> float | None:
    if row.has("margin"):
        return row.number("margin")
    scores = ("score_chosen", "score_rejected")
    if score_scale is None or not any(map(row.has, scores)):
        return None
    return score_scale * (row.number(scores[0]) - row.number(scores[1]))


def _take_prompts_off(rows: Rows[Preference]) -> None:
    """Takes the prompt off answers that repeat it, where all answers of a file do; it would be learned twice.

    Raises:
        UserError: so many of a file's answers begin with the prompt that this is no chance, but not all of them do.
    """
    by_file: dict[str, list[int]] = {}
    for index, pair in enumerate(rows):
        if len(pair.chosen) == len(pair.rejected) == 1:
            by_file.setdefault(pair.place.file, []).append(index)
    gone = []
    for indices in by_file.values():
        rests = {index: _rests(rows[index]) for index in indices}
        repeating = [index for index in indices if any(rest is not None for rest in rests[index])]
        if not repeating:
            continue
        # an answer may well begin with a prompt of one word, such as a greeting
        telling = [index for index in repeating if len(rows[index].prompt[-1].content.split()) > 1]
        if all(None not in found for found in rests.values()) and (telling or len(indices) > 1):
            rows.statistics.taken_off += len(indices)
            for index, (chosen, rejected) in rests.items():
                pair = rows[index]
                answers = (replace(pair.chosen[0], content=chosen),), (replace(pair.rejected[0], content=rejected),)
                rows[index] = replace(pair, chosen=answers[0], rejected=answers[1])
                if _has_empty_answer(answers[0]) or _has_empty_answer(answers[1]):
                    gone.append(index)
        elif len(telling) >= _TELLING_SHARE * len(indices):
            raise UserError(
                f"{rows[telling[0]].place}: an answer begins with the prompt, as in {len(telling):,} of "
                f"{len(indices):,} rows of the file, and not all answers do; take it out of them, or let every answer "
                "begin with it"
            )
        else:
            rows.statistics.found_repeated(len(repeating), rows[repeating[0]].place)
    for index in reversed(gone):
        del rows[index]
        rows.statistics.dropped[EMPTY] += 1


def _rests(pair: Preference) -> tuple[str | None, str | None]:
    prompt = pair.prompt[-1].content
    return without_prompt(pair.chosen[0].content, prompt), without_prompt(pair.rejected[0].content, prompt)


def _check_prompt(row: Row, messages: Messages) -> None:
    if not messages or messages[-1].role == "assistant":
        what = "ends with an assistant's message" if messages else "is empty"
        raise row.error(f"the prompt {what}", "end it with a message to be answered, or leave the row out")


def _has_empty_answer(messages: Messages) -> bool:
    """Whether an assistant says nothing, nor calls a tool."""
    return any(
        message.role == "assistant"
        and not message.content.strip()
        and not any(name.endswith(("_call", "_calls")) for name in message.fields)
        for message in messages
    )
