"""Conversations as token ids by way of the Jinja template that a model brings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lit_llm.config import UserError
from lit_llm.tokenizer.chat_template import ChatTemplate
from lit_llm.tokenizer.messages import THOUGHTS, WORDS, Message, Part, the_message
from lit_llm.tokenizer.tokenizer import Tokenizer
from lit_llm.tokenizer.tokenizer_kinds import puts_space_once

# Private-use characters: they stand for what content has of special tokens, for where content begins, and for where
# it ends.
_ESCAPE, _MARK, _END_MARK, _FIRST_CODE = "\ue000", "\ue001", "\ue002", 0xF0000

# What a generation prompt may go on with after the header of an assistant's turn: <think>, [THINK], <seed:think>.
_OPENING = re.compile(r"[<\[][^<>\[\]]*(?:think|thought|reason)[^<>\[\]]*[>\]].*\Z", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = "</think>"

Turns = list[dict[str, Any]]
Write = Callable[..., str]
"""A function that renders turns by the template, with the tools of the conversation."""


class Templated:
    """The form of conversations that a Jinja template writes.

    An assistant's words begin where the template's own generation prompt ends, or before the thought that it opens
    where the template writes the turn without that, and end with the first special token after that. To be sure that
    this is the template's, the strings of special tokens in contents are hidden from it behind private-use characters,
    which are taken away again when the text is encoded.

    Args:
        tokenizer: Of the model.
        template: In Jinja.

    Attributes:
        end_id: The token that ends an assistant's turn.

    Raises:
        UserError: the template is broken, or does not end an assistant's turn with a special token. Of `parts`, too: it
            refuses the conversation, leaves out what a message says, or does not show where an assistant's words begin,
            which only a whole conversation has to, as nothing is learned from a prompt.
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
        self._hidden = [_ESCAPE, _MARK, _END_MARK, *names]
        self._codes = {name: _ESCAPE + chr(_FIRST_CODE + index) for index, name in enumerate(self._hidden)}
        self._to_hide = re.compile("|".join(map(re.escape, self._hidden)))
        self._encode = tokenizer.encode_further if puts_space_once(tokenizer.state) else tokenizer.encode
        self._reads: dict[str, bool] = {}
        self._generation_prompt = self._find_generation_prompt()
        opening = _OPENING.search(self._generation_prompt or "")
        self._opening = opening[0] if opening else ""
        self.end_id = self._find_end()

    @property
    def has_generation_prompt(self) -> bool:
        """Whether the template writes anything for add_generation_prompt."""
        return self._generation_prompt is not None

    @property
    def unwritten_opening(self) -> str:
        """The opening of a thought that the generation prompt has, and that is not written before a row's answer."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        before = self._template(turns[:1], add_generation_prompt=True)
        return "" if self._template(turns).startswith(before) else self._opening

    def reads(self, name: str) -> bool:
        """Whether the template looks at a field of messages, or at the tools."""
        if name not in self._reads:
            self._reads[name] = name in self._template.names or self._shows(name)
        return self._reads[name]

    def _shows(self, name: str) -> bool:
        """Whether the template writes a field without naming it, as one does that writes whole messages."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        changed, tools = ([turns[0], {**turns[1], name: "z"}], ()) if name != "tools" else (turns, ["z"])
        try:
            return self._template(turns) != self._template(changed, tools=tools)
        except UserError:
            return False

    def leaves_out_thoughts(self, messages: Sequence[Message]) -> bool:
        """Whether the template leaves out what was thought in an earlier turn, as many do."""
        if not any(_thoughts(message.content, message.fields) for message in messages[:-1]):
            return False
        turns, write = self._turns(messages)
        return any(self._lost_thoughts(turns, number, write) for number in range(len(turns) - 1))

    def parts(self, messages: Sequence[Message], prompt: bool, opened: bool = True) -> Iterator[Part]:
        """The ids of a conversation, part by part.

        Args:
            messages: At least one.
            prompt: Go on to where an assistant's words begin.
            opened: With the thought that the generation prompt may open.
        """
        turns, write = self._turns(messages)
        text = self._text(turns, write, prompt)
        self._check_shown(turns, text, partial(self._text, write=write, prompt=prompt), range(len(turns)))
        if messages[0].tools and self._text(turns, self._template, prompt) == text:
            raise UserError(
                "the chat template leaves out the tools in this conversation; put them into the system's message, or "
                "use another template"
            )
        if prompt and not opened:
            text = text.removesuffix(self._opening)
        yield from self._parts(messages, turns, text, write, prompt)[0]

    def parts_of_answer(self, prompt: Sequence[Message], answer: Message) -> Iterator[Part]:
        """`parts` of a prompt, and the words of the assistant's turn after it."""
        turns, write = self._turns(prompt)
        before = self._text(turns, write, True)
        parts, after_text = self._parts(prompt, turns, before, write, True)
        yield from parts
        whole = [*turns, self._turn(answer)]
        text = write(whole)
        begin, end = self._words(whole, len(turns), text, write)
        self._check_shown(whole, text, write, [len(turns)])
        ids, after_text = self._encode_piece(text[begin:end], after_text)
        yield Part(ids, answer)
        yield Part(self._encode_piece(text[end:], after_text)[0])

    def _parts(
        self, messages: Sequence[Message], turns: Turns, text: str, write: Write, prompt: bool
    ) -> tuple[list[Part], bool]:
        """The parts of the rendered `turns`, and whether the last ends in text."""
        parts, position, after_text = [], 0, False
        for index, message in enumerate(messages):
            if message.role == "assistant":
                try:
                    begin, end = self._words(turns, index, text, write, position)
                except UserError:
                    if not prompt:
                        raise
                    continue  # it is read like the turns of others
                ids, after_text = self._encode_piece(text[position:begin], after_text)
                parts.append(Part(ids))
                ids, after_text = self._encode_piece(text[begin:end], after_text)
                parts.append(Part(ids, message))
                position = end
        ids, after_text = self._encode_piece(text[position:], after_text)
        return [*parts, Part(ids)], after_text

    def _turns(self, messages: Sequence[Message]) -> tuple[Turns, Write]:
        """The messages as the template reads them, and the function that renders them."""
        tools = [self._hide(tool) for tool in messages[0].tools]
        return [self._turn(message) for message in messages], partial(self._template, tools=tools)

    def _turn(self, message: Message) -> dict[str, Any]:
        return {"role": message.role, "content": self._hide(message.content), **self._hide(dict(message.fields))}

    def _hide(self, value: Any) -> Any:
        """Text, or what holds text, without the strings of special tokens."""
        if isinstance(value, str):
            return self._to_hide.sub(lambda found: self._codes[found[0]], value)
        if isinstance(value, dict):
            return {self._hide(key): self._hide(child) for key, child in value.items()}
        return [self._hide(child) for child in value] if isinstance(value, list | tuple) else value

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

    def _text(self, turns: Turns, write: Write, prompt: bool) -> str:
        if self._generation_prompt is not None or not prompt:
            return write(turns, add_generation_prompt=prompt)
        # The template does not know the option: the header that it puts before an assistant's words, where it has one.
        text = write(turns)
        try:
            answered = [*turns, {"role": "assistant", "content": ""}]
            before = self._before_content(answered, len(turns), write).rstrip(" ")
        except UserError:  # no assistant's turn may come here
            return text
        return before if before.startswith(text) else text

    def _check_shown(self, turns: Turns, text: str, again: Callable[[Turns], str], numbers: Iterable[int]) -> None:
        """Refuse a text in which nothing is left of what some turns say; `again` writes other turns the same way."""
        marks = [f"{_END_MARK}{number}{_END_MARK}" for number in range(len(turns))]
        seen = again([{**turn, "content": turn["content"] + mark} for turn, mark in zip(turns, marks, strict=True)])
        same = re.sub(f"{_END_MARK}[0-9]+{_END_MARK}", "", seen).split() == text.split()
        for number in numbers:
            turn = turns[number]
            lines = [line for line in map(str.strip, turn["content"].splitlines()) if line]
            if lines and not (marks[number] in seen and (same or any(line in text for line in lines))):
                raise _left_out("content", number, turn["role"])
            for name in WORDS:
                # thoughts of earlier turns may be left out, as models do not read them again
                if turn.get(name) and (name.endswith(("_call", "_calls")) or number == len(turns) - 1):
                    without = [*turns[:number], {**turn, name: None}, *turns[number + 1 :]]
                    if again(without) == text:
                        raise _left_out(name, number, turn["role"])
            if number == len(turns) - 1 and "content" in self._lost_thoughts(turns, number, again):
                raise _left_out(f"thought (what precedes {_END_OF_THOUGHT})", number, turn["role"])

    def _lost_thoughts(self, turns: Turns, number: int, again: Callable[[Turns], str]) -> list[str]:
        """The fields of a turn whose thoughts are not written; `again` writes other turns the same way."""
        lost, turn = [], turns[number]
        for name in _thoughts(turn["content"], turn) if turn["role"] == "assistant" else ():
            said = turn[name] if isinstance(turn[name], str) else ""
            marked = said.replace(_END_OF_THOUGHT, _MARK + _END_OF_THOUGHT, 1) if name == "content" else said + _MARK
            if _MARK not in again([*turns[:number], {**turn, name: marked}, *turns[number + 1 :]]):
                lost.append(name)
        return lost

    def _words(self, turns: Turns, index: int, text: str, write: Write, position: int = 0) -> tuple[int, int]:
        """Where the words of the assistant's turn `index` begin, and where the token that ends them ends."""
        begin = self._begin(turns, index, text, write)
        end = self._special.search(text, begin)
        if begin < position or end is None or self._id(end) != self.end_id:
            raise UserError(
                f"the chat template does not end message {index + 1}, an assistant's, as it ends others; use another "
                "template"
            )
        return begin, end.end()

    def _begin(self, turns: Turns, index: int, text: str, write: Write) -> int:
        """Where the words of the assistant's turn `index` begin in `text`, the rendered `turns`."""
        if self._generation_prompt is not None:
            before = write(turns[:index], add_generation_prompt=True)
            for known in (before, before.removesuffix(self._opening)):
                if text.startswith(known):
                    return len(known)
        # A template may write what comes before differently when more follows (Mistral moves the system's message).
        before = self._before_content(turns, index, write)
        is_last = index == len(turns) - 1
        if text.startswith(before) and (self._generation_prompt is None or not is_last):
            if self._generation_prompt is None:
                return len(before.rstrip(" "))  # a space belongs to the token of the word after it
            if before.endswith((self._generation_prompt, self._generation_prompt.removesuffix(self._opening))):
                return len(before)
        raise UserError(
            f"the chat template does not show where the words of message {index + 1}, an assistant's, begin: its "
            "generation prompt is not how it begins such a turn; use another template"
        )

    def _before_content(self, turns: Turns, index: int, write: Write) -> str:
        """What the template writes before the content of a turn."""
        return self._split_at_content(turns, index, write)[0]

    def _split_at_content(self, turns: Turns, index: int, write: Write) -> tuple[str, str]:
        content = turns[index]["content"]
        thought, end, answer = content.rpartition(_END_OF_THOUGHT)
        # Where the thought of an earlier turn is left out, its content begins after that.
        for marked in dict.fromkeys((_MARK + content, thought + end + _MARK + answer)):
            turn = {**turns[index], "content": marked}
            before, mark, after = write([*turns[:index], turn, *turns[index + 1 :]]).partition(_MARK)
            if mark:
                return before, after
        raise _left_out("content", index, turns[index]["role"])

    def _find_generation_prompt(self) -> str | None:
        """The header of an assistant's turn; None where the template does not know add_generation_prompt."""
        turns = [{"role": "user", "content": "x"}]
        without, full = (self._template(turns, add_generation_prompt=prompt) for prompt in (False, True))
        return None if full == without else full.removeprefix(without)

    def _find_end(self) -> int:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        end = self._special.search(self._split_at_content(turns, 1, self._template)[1])
        if end is None:
            raise UserError(
                "the chat template ends an assistant's turn with no special token, so that a model could not learn to "
                "stop; use another template"
            )
        return self._id(end)


def _thoughts(content: str, fields: Mapping[str, Any]) -> list[str]:
    """The fields of a turn that hold what was thought in it."""
    return ["content"] * (_END_OF_THOUGHT in content) + [name for name in THOUGHTS if fields.get(name)]


def _left_out(name: str, number: int, role: str) -> UserError:
    return UserError(
        f"the chat template leaves out the {name} of {the_message(number, role)} in this conversation; put what it "
        "says into another turn, or use another template"
    )
