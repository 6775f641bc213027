"""What a chat model answers, many requests at a time, always with its likeliest token."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_llm.config import BeginToken, SamplingConfig, UserError
from lit_llm.config.progress import progress
from lit_llm.generation import complete
from lit_llm.generation.request import Event
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.begin import conversation_ids
from lit_llm.tokenizer.chat import ChatFormat, Message

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def answers(
    model: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_size: int,
    description: str,
    begin_token: BeginToken = "auto",
) -> list[str | None]:
    """Return the answer to each conversation; None where it does not fit the model's context.

    Args:
        model: a chat model.
        tokenizer: its own.
        conversations: each ends with a message to be answered.
        max_new_tokens: of an answer at most.
        batch_size: answers written at once.
        description: of the progress that is shown.
        begin_token: see `conversation_ids`.

    Raises:
        UserError: the template refuses a conversation, or none fits.
    """
    chat = ChatFormat(tokenizer)
    prompts = [conversation_ids(tokenizer, chat.render_prompt(each), begin_token) for each in conversations]
    room = model.config.max_position_embeddings
    fitting = [number for number, ids in enumerate(prompts) if len(ids) < room]
    if not fitting:
        raise UserError(
            f"no request of the check of {description} fits the model's context of {room} tokens; leave the check out"
        )
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0, context_full="stop")
    with progress(description, len(fitting), "answers") as advance:

        def tell(number: int, event: Event) -> None:
            if event.finish_reason is not None:
                advance(1)

        written = complete(
            model,
            [prompts[number] for number in fitting],
            sampling,
            tokenizer=tokenizer,
            stop_tokens=chat.stop_ids,
            max_batch=batch_size,
            on_event=tell,
        )
    found: list[str | None] = [None] * len(prompts)
    for number, completion in zip(fitting, written, strict=True):
        found[number] = completion.text
    return found


def without_thought(text: str) -> str:
    """An answer without what stands in <think>, as far as it does."""
    return _THOUGHT.sub("", text).strip()
