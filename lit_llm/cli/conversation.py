"""A conversation with a model, without input or output: its history, what of it the model reads, and its commands."""

from __future__ import annotations

import dataclasses
import difflib
import json
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lit_llm.cli.parsing import parse
from lit_llm.config import ChatConfig, SamplingConfig, UserError, sample_seed
from lit_llm.generation import Completion, Engine
from lit_llm.generation.request import fitted_prompt
from lit_llm.stages.loading import LoadedModel
from lit_llm.stages.prefix_cache import make_prefix_cache
from lit_llm.tokenizer import ChatFormat, Message, conversation_ids, read_as_letters


@dataclass
class Reply:
    """What a line of the user led to."""

    text: str = ""
    """One or more lines to show to the user before the answer; may be empty."""
    answer: Generator[str, None, None] | None = None
    """The model's answer in pieces as it is written. When it is closed early, what was written stays."""
    ends: bool = False
    """Whether the conversation is over."""


@dataclass
class Answer:
    """The newest answer, and how much the model read for it."""

    prompt_tokens: int
    """Number of tokens that the model read before it answered."""
    written: Completion


class Conversation:
    """The messages of a conversation with a model, and what can be done with them.

    A line that goes into `handle` is a command or a message. Whatever fails, or is stopped before the first word is
    written, leaves the conversation as it was.

    Args:
        loaded: the model.
        config: its system message, sampling, begin_token, prefill_chunk, prefix_cache_mib and compile.

    Raises:
        UserError: the model has no form for conversations, its template refuses the system message, or the prefix cache
            cannot be had.
    """

    def __init__(self, loaded: LoadedModel, config: ChatConfig) -> None:
        self.turns: list[Message] = []
        """A user's message and its answer in turn; the system's message is not among them."""
        self.system: str | None = None
        self.sampling = config.sampling
        self.last: Answer | None = None
        self.context = loaded.model.config.max_position_embeddings
        self.prefix_cache = make_prefix_cache(loaded.model, config.prefix_cache_mib, 2 * self.context)
        """What answers have read and written, which those after them do not read again."""
        self._loaded = loaded
        self._config = config
        self._chat = _chat_format(loaded)
        self._stop_tokens = list(dict.fromkeys((*self._chat.stop_ids, *loaded.stop_tokens)))
        self._drawn: list[int] = []  # answers to each message, each of which had a seed of its own
        self._said_left_out = False
        self._set_system(config.system or "")

    def handle(self, line: str) -> Reply:
        """Do what a command says, or answer a message; two slashes begin a message that begins with one.

        Args:
            line: what the user wrote; it may have several lines, and must not be blank.

        Raises:
            UserError: there is no such command, it cannot be done, or the message does not fit into the context. Of
                the iterator of an answer: the model could not be compiled.
        """
        _check_characters(line, "the line")
        if line.startswith("/") and not line.startswith("//"):
            name, *rest = line.split(maxsplit=1)
            return self._command(name, "".join(rest).rstrip())
        return self._answer([*self.turns, Message("user", line.removeprefix("/"))], 0)

    def _command(self, name: str, value: str) -> Reply:
        command = COMMANDS.get(name)
        if command is None:
            raise UserError(f"there is no command {name}; /help lists them")
        if value and not command.takes:
            raise UserError(f"{name} takes nothing after it; write it alone")
        return command.run(self, value)

    def _answer(self, turns: list[Message], number: int) -> Reply:
        """Begin an answer to `turns`, the last of which is a user's; `number` chooses the seed."""
        prompt, left_out = self._prompt(turns)
        sampling = replace(self.sampling, seed=sample_seed(self.sampling.seed, number))
        engine = Engine(
            self._loaded.model,
            1,
            min(self.context, len(prompt) + sampling.max_new_tokens),
            tokenizer=self._loaded.tokenizer,
            prefill_chunk=self._config.prefill_chunk,
            compile=self._config.compile,
            prefix_cache=self.prefix_cache,
        )
        engine.submit(prompt, sampling, stop_tokens=self._stop_tokens)
        self.last = Answer(len(prompt), Completion())
        text = read_as_letters(self._loaded.tokenizer, turns[-1].content, "the message")
        if left_out and not self._said_left_out:
            self._said_left_out = True
            text += "\n" * bool(text) + (
                f"the conversation no longer fits into the context of {self.context} tokens: from now on the model "
                "does not read its oldest turns"
            )
        return Reply(text, self._write(engine, turns, number, self.last.written))

    def _write(
        self, engine: Engine, turns: list[Message], number: int, written: Completion
    ) -> Generator[str, None, None]:
        try:
            while engine.busy:
                for event in engine.step():
                    if event.error is not None:
                        raise event.error
                    written.add(event)
                    if event.text:
                        yield event.text
        finally:
            engine.close()
            if written.text or written.finish_reason is not None:
                self.turns = [*turns, Message("assistant", written.text)]
                self._drawn = [*self._drawn[: len(turns) // 2], number + 1]

    def _prompt(self, turns: list[Message]) -> tuple[list[int], int]:
        """Return the prompt, and how many of the oldest exchanges had to be left out of it to make room for an answer.

        Raises:
            UserError: the last turn does not fit even alone.
        """
        first = [] if self.system is None else [Message("system", self.system)]
        most = max(self.context - self.sampling.max_new_tokens, self.context // 2)

        def rendered(left_out: int) -> list[int]:
            ids = self._chat.render_prompt([*first, *turns[2 * left_out :]])
            return conversation_ids(self._loaded.tokenizer, ids, self._config.begin_token)

        left_out = bisect_left(range(len(turns) // 2), True, key=lambda count: len(rendered(count)) <= most)
        prompt = rendered(left_out)
        if len(prompt) >= self.context and not self.sampling.truncate_prompt:
            along = " with the system message" if first else ""
            raise UserError(
                f"the message takes {len(prompt)} tokens{along}, which leaves no room for an answer in the context of "
                f"{self.context} tokens; shorten it"
            )
        return fitted_prompt(prompt, self.sampling, self.context), left_out

    def _help(self, _: str) -> Reply:
        listed = [(f"{name} {command.takes}".rstrip(), command.help) for name, command in COMMANDS.items()]
        listed += [
            ("//TEXT", "a message that begins with a slash"),
            ("TEXT\\", "a line that ends with a backslash goes on in the next"),
            ("Ctrl-C", "stop the answer; at the prompt, end the conversation"),
        ]
        return Reply("\n".join(f"{what:<18} {meaning}" for what, meaning in listed))

    def _reset(self, _: str) -> Reply:
        self.turns, self._drawn, self._said_left_out = [], [], False
        return Reply("a new conversation begins")

    def _set_system(self, value: str) -> Reply:
        if value.strip():
            _check_characters(value, "the system message")
            self._chat.render_prompt([Message("system", value), Message("user", "x")])  # a template may refuse it
        self.system = value if value.strip() else None
        if self.system is None:
            return Reply("there is no system message")
        note = read_as_letters(self._loaded.tokenizer, self.system, "it")
        return Reply("from now on this is the system message" + (f"; {note}" if note else ""))

    def _retry(self, _: str) -> Reply:
        if not self.turns:
            raise UserError("there is no answer yet to write again; write a message first")
        reply = self._answer(self.turns[:-1], self._drawn[-1])
        if self.sampling.temperature == 0 and not reply.text:
            reply.text = "at temperature 0 every answer is the same; /set temperature 0.8 draws others"
        return reply

    def _undo(self, _: str) -> Reply:
        if not self.turns:
            raise UserError("there is no message to take back")
        self.turns, self._drawn = self.turns[:-2], self._drawn[:-1]
        return Reply("the last message and its answer are taken back")

    def _set(self, value: str) -> Reply:
        fields = [field.name for field in dataclasses.fields(SamplingConfig)]
        if not value:
            return Reply(self._shown(fields))
        name, *text = value.split(maxsplit=1)
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)[0]
            raise UserError(f"there is no option {name}; the nearest is {near}")
        if text:
            changed = getattr(parse(SamplingConfig, [f"--{name}={text[0]}"]), name)
            self.sampling = replace(self.sampling, **{name: changed})
            if name == "seed" and self._drawn:
                self._drawn[-1] = 0  # /retry draws with just this seed
        return Reply(self._shown([name]))

    def _shown(self, names: Iterable[str]) -> str:
        return "\n".join(f"{name} {json.dumps(getattr(self.sampling, name), ensure_ascii=False)}" for name in names)

    def _save(self, value: str) -> Reply:
        """Append a row to a file of JSON lines.

        Raises:
            UserError: there is no conversation, `sft` would leave it out, or the file cannot be written.
        """
        path = Path(value)
        if not self.turns:
            raise UserError("there is nothing to save yet")
        if path.suffix != ".jsonl":
            raise UserError(f"/save writes a row of a .jsonl file, and {value or 'no file'} was given; name one")
        answers = self.turns[1::2]
        if empty := next((number for number, each in enumerate(answers, start=1) if not each.content.strip()), None):
            raise UserError(
                f"answer {empty} is empty, and sft.py leaves a conversation with such an answer out; /retry writes the "
                "last answer anew, /undo takes it back"
            )
        first = [] if self.system is None else [Message("system", self.system)]
        row = {"messages": [{"role": each.role, "content": each.content} for each in (*first, *self.turns)]}
        try:
            with path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    if file.read() != b"\n":
                        file.write(b"\n")
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); name another file") from error
        return Reply(f"the conversation is now the last row of {path}")

    def _quit(self, _: str) -> Reply:
        return Reply(ends=True)


@dataclass(frozen=True)
class Command:
    """A command that a line with a slash can give."""

    takes: str
    """How the help shows what follows the command's name; empty where nothing follows."""
    help: str
    run: Callable[[Conversation, str], Reply]


COMMANDS = {
    "/help": Command("", "this list", Conversation._help),
    "/reset": Command("", "begin a new conversation", Conversation._reset),
    "/system": Command("TEXT", "what the model is told first; without TEXT, nothing", Conversation._set_system),
    "/retry": Command("", "another answer to the last message, with another seed", Conversation._retry),
    "/undo": Command("", "take back the last message and its answer", Conversation._undo),
    "/set": Command("NAME VALUE", "change how answers are drawn; without VALUE, show it", Conversation._set),
    "/save": Command("FILE.jsonl", "add the conversation to a file that sft.py reads", Conversation._save),
    "/quit": Command("", "end the conversation", Conversation._quit),
    "/exit": Command("", "the same", Conversation._quit),
}


def _check_characters(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python keeps as halves of surrogate pairs
        raise UserError(f"{what} has bytes that are not UTF-8; write it without them") from error


def _chat_format(loaded: LoadedModel) -> ChatFormat:
    try:
        return ChatFormat(loaded.tokenizer)
    except UserError as error:
        if loaded.tokenizer.chat_template:
            raise
        raise UserError(
            f"{loaded.folder}: the model has no chat template, so it cannot hold a conversation; let it go on from a "
            "text with experiments/generate.py, or teach it with experiments/sft.py --data.add_chat_tokens true"
        ) from error
