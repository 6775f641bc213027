"""Conversations as token ids, with what an assistant said marked while they are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from lit_llm.config import UserError
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE, ChatTemplate
from lit_llm.tokenizer.kinds import puts_space_once
from lit_llm.tokenizer.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")

# Private-use characters: they stand for what content has of special tokens, and for where content begins.
_ESCAPE, _MARK, _FIRST_CODE = "\ue000", "\ue001", 0xF0000

Part = tuple[list[int], bool]
"""Ids, and whether they are supervised."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: Any valid Unicode.

    Raises:
        UserError: the role is another.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"a message has the role {self.role!r}; it must be one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: Token ids.
        supervised: For each, whether it is an assistant's words or the token that ends them.
    """

    ids: list[int]
    supervised: list[bool]


class ChatFormat:
    """How a tokenizer's model writes conversations: by its chat template, or as ChatML with our chat tokens.

    Ids are those of transformers' `apply_chat_template`, with two differences, both wanted. The strings of special
    tokens in a message are text like any other, where transformers reads them as tokens. And an assistant's words are
    encoded apart from the header before them, as they are when they are generated, where transformers has a single
    token for, say, the newline that ends the header and one that begins the words.

    Args:
        tokenizer: Of the model.

    Raises:
        UserError: the tokenizer has neither chat tokens nor a template, or its template does not let an assistant's
            words be told from the rest.
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
        self._writer = _ChatML(tokenizer) if is_ours else _Templated(tokenizer, template)
        ends = (self._writer.end_id, tokenizer.eot_id)
        self.stop_ids: list[int] = list(dict.fromkeys(index for index in ends if index is not None))
        """What ends an assistant's turn: the token for it first, then the end of the document."""

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation. What precedes its last assistant's words is `render_prompt` of the messages before.

        Raises:
            UserError: there is no message, the template refuses them, or an assistant's words cannot be told from
                the rest.
        """
        parts = self._parts(messages, prompt=False)
        ids = [index for part, _ in parts for index in part]
        return Rendered(ids, [supervised for part, supervised in parts for _ in part])

    def render_prompt(self, messages: Sequence[Message]) -> list[int]:
        """What a model answers to: a conversation and the header of an assistant's turn.

        Raises:
            UserError: as `render`.
        """
        return [index for part, _ in self._parts(messages, prompt=True) for index in part]

    def _parts(self, messages: Sequence[Message], prompt: bool) -> list[Part]:
        if not messages:
            raise UserError("a conversation without messages; leave it out")
        return list(self._writer.parts(messages, prompt))


class _ChatML:
    """<|im_start|>role, newline, content, <|im_end|>, newline."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self.end_id = tokenizer.im_start_id, tokenizer.im_end_id
        self._encode = tokenizer.encode_further if puts_space_once(tokenizer.state) else tokenizer.encode

    def parts(self, messages: Sequence[Message], prompt: bool) -> Iterator[Part]:
        for message in messages:
            if message.role == "assistant":
                yield self._header, False
                yield [*self._tokenizer.encode_further(message.content), self.end_id], True
            else:
                text = f"{message.role}\n{message.content}"
                yield [self._start, *self._encode(text), self.end_id], False
            yield self._newline, False
        if prompt:
            yield self._header, False

    @cached_property
    def _header(self) -> list[int]:
        return [self._start, *self._encode("assistant\n")]

    @cached_property
    def _newline(self) -> list[int]:
        return self._encode("\n")


class _Templated:
    """What a Jinja template writes.

    An assistant's words begin where the template's own generation prompt ends, and end with the first special token
    after that. To be sure that this is the template's, the strings of special tokens in contents are hidden from it
    behind private-use characters, which are taken away again when the text is encoded.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, tokenizer.named_tokens)
        added = {token["content"]: token for token in tokenizer.state["added_tokens"] if token["special"]}
        names = sorted(added, key=len, reverse=True)
        # A token may swallow the white space beside it.
        forms = (
            (r"\s*" if added[name]["lstrip"] else "") + re.escape(name) + (r"\s*" if added[name]["rstrip"] else "")
            for name in names
        )
        self._special = re.compile("|".join(forms) or "(?!)")
        self._hidden = [_ESCAPE, _MARK, *names]
        self._codes = {name: _ESCAPE + chr(_FIRST_CODE + index) for index, name in enumerate(self._hidden)}
        self._to_hide = re.compile("|".join(map(re.escape, self._hidden)))
        self._encode = tokenizer.encode_further if puts_space_once(tokenizer.state) else tokenizer.encode
        self._generation_prompt = self._find_generation_prompt()
        self.end_id = self._find_end()

    def parts(self, messages: Sequence[Message], prompt: bool) -> Iterator[Part]:
        turns = self._hide(messages)
        text = self._prompt(turns) if prompt else self._template(turns)
        position, after_text = 0, False
        for index, message in enumerate(messages):
            if message.role == "assistant":
                begin = self._begin(turns, index, text)
                end = self._special.search(text, begin)
                if begin < position or end is None or self._id(end) != self.end_id:
                    raise UserError(
                        f"the chat template does not end message {index + 1}, an assistant's, as it ends others; "
                        "use another template"
                    )
                ids, after_text = self._encode_piece(text[position:begin], after_text)
                yield ids, False
                ids, after_text = self._encode_piece(text[begin : end.end()], after_text)
                yield ids, True
                position = end.end()
        yield self._encode_piece(text[position:], after_text)[0], False

    def _hide(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        return [
            {"role": message.role, "content": self._to_hide.sub(lambda found: self._codes[found[0]], message.content)}
            for message in messages
        ]

    def _show(self, text: str) -> str:
        codes = rf"{_ESCAPE}([{chr(_FIRST_CODE)}-{chr(_FIRST_CODE + len(self._hidden) - 1)}])"
        return re.sub(codes, lambda found: self._hidden[ord(found[1]) - _FIRST_CODE], text)

    def _id(self, special: re.Match[str]) -> int:
        return self._tokenizer.special_ids[special[0].strip()]

    def _encode_piece(self, text: str, after_text: bool) -> tuple[list[int], bool]:
        """The ids of a part of the text, and whether it ends in text; `after_text`: what precedes it does."""
        ids: list[int] = []
        position = 0
        for special in (*self._special.finditer(text), None):
            ordinary = self._show(text[position : special.start() if special else None])
            if ordinary:
                ids += self._tokenizer.encode_further(ordinary) if after_text else self._encode(ordinary)
                after_text = True
            if special:
                ids.append(self._id(special))
                position, after_text = special.end(), False
        return ids, after_text

    def _prompt(self, turns: list[dict[str, str]]) -> str:
        if self._generation_prompt is not None:
            return self._template(turns, add_generation_prompt=True)
        answered = [*turns, {"role": "assistant", "content": ""}]
        return self._before_content(answered, len(turns)).rstrip(" ")

    def _begin(self, turns: list[dict[str, str]], index: int, text: str) -> int:
        """Where the words of the assistant's turn `index` begin in `text`, the rendered `turns`."""
        if self._generation_prompt is not None:
            before = self._template(turns[:index], add_generation_prompt=True)
            if text.startswith(before):
                return len(before)
        # A template may write what comes before differently when more follows (Mistral moves the system's message).
        before = self._before_content(turns, index)
        is_last = index == len(turns) - 1
        if text.startswith(before) and (self._generation_prompt is None or not is_last):
            if self._generation_prompt is None:
                return len(before.rstrip(" "))  # a space belongs to the token of the word after it
            if before.endswith(self._generation_prompt):
                return len(before)
        raise UserError(
            f"the chat template does not show where the words of message {index + 1}, an assistant's, begin: its "
            "generation prompt is not how it begins such a turn; use another template"
        )

    def _before_content(self, turns: list[dict[str, str]], index: int) -> str:
        """What the template writes before the content of a turn."""
        marked = [dict(turn) for turn in turns]
        marked[index]["content"] = _MARK + marked[index]["content"]
        before, mark, _ = self._template(marked).partition(_MARK)
        if not mark:
            raise UserError(f"the chat template leaves out the content of message {index + 1}; use another template")
        return before

    def _find_generation_prompt(self) -> str | None:
        """The header of an assistant's turn; None where the template does not know add_generation_prompt."""
        turns = [{"role": "user", "content": "x"}]
        without, full = (self._template(turns, add_generation_prompt=prompt) for prompt in (False, True))
        return None if full == without else full.removeprefix(without)

    def _find_end(self) -> int:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        text = self._template(turns)
        end = self._special.search(text, self._begin(turns, 1, text))
        if end is None:
            raise UserError(
                "the chat template ends an assistant's turn with no special token, so that a model could not learn to "
                "stop; use another template"
            )
        return self._id(end)


def end_of_turn_id(tokenizer: Tokenizer) -> int | None:
    """What ends an assistant's turn; None where the tokenizer has no form for conversations that we can read."""
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
