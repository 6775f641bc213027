"""Conversations as token ids, with what an assistant said marked while they are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from lit_llm.config import UserError
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE
from lit_llm.tokenizer.messages import ROLES, THOUGHTS, WORDS, Message, Part, Rendered, the_message
from lit_llm.tokenizer.templated import Templated
from lit_llm.tokenizer.tokenizer import Tokenizer
from lit_llm.tokenizer.tokenizer_kinds import puts_space_once

__all__ = ["ROLES", "ChatFormat", "Message", "Rendered", "end_of_turn_id", "with_chat_tokens"]


class ChatFormat:
    """How a tokenizer's model writes conversations: by its chat template, or as ChatML with our chat tokens.

    Ids are those of transformers' `apply_chat_template`, with two differences, both wanted. The strings of special
    tokens in a message are text like any other, where transformers reads them as tokens. And an assistant's words are
    encoded apart from the header before them, as they are when they are generated, where transformers has a single
    token for, say, the newline that ends the header and one that begins the words.

    Args:
        tokenizer: Of the model.

    Raises:
        UserError: the tokenizer has neither chat tokens nor a template, or its template ends an assistant's turn with
            no special token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        template = tokenizer.chat_template
        has_tokens = tokenizer.im_start_id is not None and tokenizer.im_end_id is not None
        if not template and not has_tokens:
            raise UserError(
                "the tokenizer has neither a chat template nor <|im_start|> and <|im_end|>; set "
                "data.add_chat_tokens true to add them"
            )
        is_ours = has_tokens and template in (None, "", CHATML_TEMPLATE)
        self._writer = _ChatML(tokenizer) if is_ours else Templated(tokenizer, template or "")
        ends = (self._writer.end_id, tokenizer.eot_id)
        self.stop_ids: list[int] = list(dict.fromkeys(index for index in ends if index is not None))
        """What ends an assistant's turn: the token for it first, then the end of the document."""

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Render a whole conversation; what precedes the last answer is `render_prompt` of the messages before it.

        Raises:
            UserError: there is no message, the template refuses them, an assistant's words cannot be told from the
                rest, or something that a message says would not be written: its content, what it has of `WORDS`, or
                the tools.
        """
        self._check(messages)
        return Rendered.of(list(self._writer.parts(messages, prompt=False)))

    def render_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Render what a model answers to: a conversation, and the header of the assistant's turn where turns have one.

        Raises:
            UserError: as `render`.
        """
        self._check(messages)
        return Rendered.of(list(self._writer.parts(messages, prompt=True))).ids

    def render_answer(self, prompt: Sequence[Message], answer: Sequence[Message]) -> tuple[Rendered, int]:
        """`render_prompt` and the turns that answer it, with how many of the ids are the prompt's.

        A template without a generation prompt may write the prompt differently once an answer follows; there the
        answer's words come after what a model reads when it is asked. Where the template does not write the thought
        that its generation prompt opens, the prompt ends before that.

        Raises:
            UserError: as `render`, or such an answer has several turns.
        """
        before = self.render_prompt(prompt)
        if isinstance(self._writer, Templated) and not self._writer.has_generation_prompt and len(answer) == 1:
            self._check([*prompt, *answer])
            rendered = Rendered.of(list(self._writer.parts_of_answer(prompt, answer[0])))
        else:
            rendered = self.render([*prompt, *answer])
        if rendered.ids[: len(before)] != before and self.unwritten_opening:
            before = Rendered.of(list(self._writer.parts(prompt, prompt=True, opened=False))).ids
        if rendered.ids[: len(before)] != before:
            raise UserError(
                "the chat template writes the prompt differently when an answer follows it; let the answer be one turn "
                "of the assistant, or use another template"
            )
        return rendered, len(before)

    @cached_property
    def unwritten_opening(self) -> str:
        """How a generation prompt opens a thought, where the chat template does not write that before a row's answer.

        What is learned then is the answer as the template writes it, without a thought.
        """
        return self._writer.unwritten_opening if isinstance(self._writer, Templated) else ""

    def leaves_out_thoughts(self, messages: Sequence[Message]) -> bool:
        """Whether the chat template does not write what was thought in an earlier turn."""
        return isinstance(self._writer, Templated) and self._writer.leaves_out_thoughts(messages)

    def unread(self, message: Message) -> list[str]:
        """The fields of a message that the form of conversations has no place for."""
        return [name for name in message.fields if not self._writer.reads(name)]

    def _check(self, messages: Sequence[Message]) -> None:
        if not messages:
            raise UserError("a conversation without messages; leave it out")
        if messages[0].tools and not self._writer.reads("tools"):
            raise UserError(
                "the conversation has tools, which the chat template does not write; put them into the system's "
                "message, remove them, or use another template"
            )
        for number, message in enumerate(messages):
            for name in self.unread(message):
                if name in WORDS:
                    raise UserError(
                        f"{the_message(number, message.role)} has {name}, which the chat template does not write; "
                        f"{self._hint(name)}put it into the content, remove it, or use another template"
                    )

    def _hint(self, name: str) -> str:
        read = next((each for each in THOUGHTS if name in THOUGHTS and self._writer.reads(each)), None)
        return f"rename it to {read}, " if read else ""


class _ChatML:
    """Our own form of conversations: <|im_start|>role, newline, content, <|im_end|>, newline."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        assert tokenizer.im_start_id is not None
        assert tokenizer.im_end_id is not None
        self._start, self.end_id = tokenizer.im_start_id, tokenizer.im_end_id
        self._encode = tokenizer.encode_further if puts_space_once(tokenizer.state) else tokenizer.encode

    def reads(self, name: str) -> bool:
        """Whether this form writes a field of a message, or the tools: ChatML writes role and content alone."""
        return False

    def parts(self, messages: Sequence[Message], prompt: bool, opened: bool = True) -> Iterator[Part]:
        """See `Templated`; no thought is opened."""
        for message in messages:
            if message.role == "assistant":
                yield Part(self._header)
                yield Part([*self._tokenizer.encode_further(message.content), self.end_id], message)
            else:
                text = f"{message.role}\n{message.content}"
                yield Part([self._start, *self._encode(text), self.end_id])
            yield Part(self._newline)
        if prompt:
            yield Part(self._header)

    @cached_property
    def _header(self) -> list[int]:
        return [self._start, *self._encode("assistant\n")]

    @cached_property
    def _newline(self) -> list[int]:
        return self._encode("\n")


def end_of_turn_id(tokenizer: Tokenizer) -> int | None:
    """The id that ends an assistant's turn, or None where the tokenizer has no form for conversations."""
    try:
        return ChatFormat(tokenizer).stop_ids[0]
    except UserError:
        return None


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with what it lacks for conversations, after its ids, which stay as they are.

    Added are <|im_start|> and <|im_end|> where it has no chat template of its own, and <|pad|> where padding has no
    token, or that which ends texts.
    """
    missing = [] if tokenizer.chat_template else ["<|im_start|>", "<|im_end|>"]
    ends = (None, tokenizer.eot_id, tokenizer.special_ids.get(tokenizer.named_tokens.get("eos_token", "")))
    if tokenizer.pad_id in ends:
        return tokenizer.extended(["<|pad|>", *missing], pad_token="<|pad|>")
    return tokenizer.extended(missing)
