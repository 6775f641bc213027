"""The prompts of a comparison, and each model's answers to them: read from files, or written by models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_llm.config import SamplingConfig, UserError, sample_seed
from lit_llm.config.progress import progress
from lit_llm.data.conversations.reading import Prompt, read_prompts
from lit_llm.evaluation.judging.endpoint import Endpoint, Refused, content_of
from lit_llm.evaluation.judging.model_judges import chat_of
from lit_llm.generation import Completion, Engine
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import Message

_NAMED = 3


@dataclass(frozen=True)
class Asked:
    """A prompt of a comparison.

    Attributes:
        id: its row's field id, or else the row's number from 1 among all rows.
        messages: the conversation to be answered.
        number: its place among the prompts, from 0, which keys the draws of its answers.
    """

    id: str
    messages: tuple[Message, ...]
    number: int


def read_asked(paths: Sequence[str], most: int | None, option: str) -> list[Asked]:
    """Read the prompts; one that is there twice is taken once, and that is said on stderr.

    Args:
        paths: files of rows.
        most: take only the first so many; None: all.
        option: what gave the paths, for errors.

    Raises:
        UserError: a file cannot be read, a row has no prompt, or two prompts have one id.
    """
    found: dict[Any, Asked] = {}
    ids: dict[str, str] = {}
    rows = read_prompts(paths, option=option)
    for number, row in enumerate(rows, 1):  # rows, as labels count them: those that are there twice as well
        if most is not None and len(found) == most:
            break
        if (key := _key(row)) in found:
            continue
        name = str(row.fields.get("id", number))
        if name in ids:
            raise UserError(
                f"{row.place}: the id {name[:40]!r} is that of {ids[name]} as well; give each prompt its own"
            )
        ids[name] = str(row.place)
        found[key] = Asked(name, tuple(row.messages), len(found))
    if most is None and len(found) < len(rows):
        print(f"{len(rows) - len(found):,} of {len(rows):,} prompts are there twice, and taken once", file=sys.stderr)
    return list(found.values())


def read_answers(name: str, path: str, asked: Sequence[Asked], answer_field: str) -> list[str]:
    """Read a model's answers to all prompts from a file of rows.

    Args:
        name: of the model.
        path: of the file, or a folder, a glob or hf:NAME.
        asked: the prompts.
        answer_field: field of the rows that has the answer.

    Raises:
        UserError: a row has no prompt or no answer, or another one to the same prompt; a prompt is not answered; all
            answers are empty.
    """
    answers: dict[Any, str] = {}
    wanted = {_key_of(each.messages) for each in asked}
    for row in read_prompts([path], option=f"models.{name}"):
        answer = row.fields.get(answer_field)
        if not isinstance(answer, str):
            has = ", ".join(map(str, row.fields))
            raise UserError(f"{row.place}: no text in the field {answer_field!r} (its fields: {has}); see answer_field")
        if (key := _key(row)) not in wanted:
            continue
        if answers.setdefault(key, clean(answer)) != clean(answer):
            raise UserError(f"{row.place}: the prompt has another answer before; keep one of the two")
    missing = [each.id for each in asked if _key_of(each.messages) not in answers]
    if missing:
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise UserError(
            f"models.{name}: {path} has no answer to {len(missing):,} of {len(asked):,} prompts: "
            f"{', '.join(missing[:_NAMED])}{more}; every model has to answer the same prompts"
        )
    return [answers[_key_of(each.messages)] for each in asked]


def write_by_engine(
    name: str,
    model: Decoder,
    tokenizer: Tokenizer,
    stop_tokens: Sequence[int],
    asked: Sequence[Asked],
    sampling: SamplingConfig,
    batch_size: int,
    keep: Callable[[Asked, str], None],
) -> None:
    """Write a model's answers; what a prompt's answer is does not depend on which other prompts are asked.

    Args:
        name: of the model.
        model: a language model.
        tokenizer: its own; has chat tokens or a template.
        stop_tokens: ids that end a text.
        asked: the prompts that have no answer yet, at least one.
        sampling: how tokens are chosen.
        batch_size: answers written at once.
        keep: is given each prompt and its answer.

    Raises:
        UserError: a prompt is too long for the model, or predictions are not finite.
    """
    chat = chat_of(tokenizer, f"models.{name}")
    prompts = [chat.render_prompt(each.messages) for each in asked]
    limit = model.config.max_position_embeddings
    longest = min(limit, max(map(len, prompts)) + sampling.max_new_tokens)
    engine = Engine(model, min(batch_size, len(asked)), longest, tokenizer=tokenizer)
    waiting: dict[int, tuple[Asked, Completion]] = {}
    for each, ids in zip(asked, prompts, strict=True):
        own = replace(sampling, seed=sample_seed(sampling.seed, each.number))
        try:
            request = engine.submit(ids, own, stop_tokens=(*stop_tokens, *chat.stop_ids))
        except UserError as error:
            raise UserError(f"models.{name}, prompt {each.id[:40]}: {error}") from None
        waiting[request] = each, Completion()
    with progress(f"answers of {name}", len(asked), "answers") as advance:
        while engine.busy:
            for event in engine.step():
                each, completion = waiting[event.request]
                completion.add(event)
                if event.error is not None:
                    raise event.error
                if event.finish_reason is not None:
                    keep(each, clean(completion.text))
                    advance(1)


def write_by_endpoint(
    name: str, endpoint: Endpoint, asked: Sequence[Asked], sampling: SamplingConfig, keep: Callable[[Asked, str], None]
) -> None:
    """Have an endpoint write a model's answers.

    Args and raises: as `write_by_engine`; and UserError, where the endpoint is down or refuses a prompt.
    """

    def ask(each: Asked) -> str:
        messages = [{"role": message.role, "content": message.content} for message in each.messages]
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": sample_seed(sampling.seed, each.number),
        }
        given = {"top_p": sampling.top_p, "stop": sampling.stop_strings or None}
        given |= {"presence_penalty": sampling.presence_penalty or None}
        given |= {"frequency_penalty": sampling.frequency_penalty or None}
        try:
            return content_of(endpoint.chat(body | {key: value for key, value in given.items() if value is not None}))
        except Refused as error:
            raise UserError(f"models.{name} {endpoint.address}, prompt {each.id[:40]}: {error}") from None

    with progress(f"answers of {name}", len(asked), "answers") as advance:
        for number, answer in endpoint.each(asked, ask):
            keep(asked[number], clean(answer))
            advance(1)


def clean(text: str) -> str:
    """A text that can be written to any file: halves of surrogate pairs become question marks."""
    return text.encode("utf-8", "replace").decode()


def _key(row: Prompt) -> Any:
    return _key_of(row.messages)


def _key_of(messages: Sequence[Message]) -> Any:
    return tuple((message.role, message.content) for message in messages)
