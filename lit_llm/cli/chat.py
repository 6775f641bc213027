"""Talking with a model in the terminal. Heavy libraries are imported only once the options are right."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from lit_llm.config import ChatConfig, UserError
from lit_llm.config.notices import with_pictures
from lit_llm.stages.loading import is_only_pretrained, load
from lit_llm.stages.quantization import QualityText

if TYPE_CHECKING:
    from rich.console import Console

    from lit_llm.cli.conversation import Answer, Conversation


def chat(config: ChatConfig) -> None:
    """Answer each message that comes in on stdin, as part of one conversation, until stdin ends.

    Answers go to stdout, everything else to stderr; prompts are shown where stdin is a terminal.

    Raises:
        UserError: the model is not there, cannot be used as asked, or has no form for conversations.
    """
    own = QualityText("the system message", (config.system,)) if config.system else None
    loaded = load(config, own, compile=config.compile)
    from lit_llm.cli.conversation import Conversation
    from lit_llm.tokenizer import read_as_letters

    conversation = Conversation(loaded, config)
    terminal = _Terminal()
    if terminal.asks:
        quantized = "" if config.quantize == "none" else f", {config.quantize}"
        terminal.tell(
            f"{loaded.folder}{quantized}, on {loaded.device}, {conversation.context} tokens of context. "
            "/help lists the commands, Ctrl-D ends."
        )
        if config.compile:
            terminal.tell("the first answer waits until the model is compiled, a minute or more")
    if is_only_pretrained(loaded.folder):
        terminal.tell(
            f"{config.model} was only pretrained: it goes on with texts, and has not learned to answer; "
            "experiments/sft.py teaches that, and experiments/generate.py continues a text"
        )
    if note := read_as_letters(loaded.tokenizer, config.system or "", "the system message"):
        terminal.tell(note)
    with contextlib.suppress(KeyboardInterrupt):  # at the prompt
        while (line := terminal.read()) is not None:
            if line.strip() and not _reply(conversation, terminal, line):
                break
    terminal.leave()


def _reply(conversation: Conversation, terminal: _Terminal, line: str) -> bool:
    """Show what the conversation makes of a line, and return whether it goes on afterwards."""
    try:
        reply = conversation.handle(line)
        if reply.text:
            terminal.tell(reply.text)
        if reply.answer is not None:
            _show_answer(conversation, terminal, reply.answer)
    except UserError as error:
        terminal.tell(" ".join(f"error: {error}".split()), style="red")
        return True
    return not reply.ends


def _show_answer(conversation: Conversation, terminal: _Terminal, answer: Generator[str, None, None]) -> None:
    began = time.perf_counter()
    stopped = False
    try:
        terminal.begin_answer()
        for piece in answer:
            terminal.write(piece)
    except KeyboardInterrupt:
        stopped = True
        answer.close()
    finally:
        terminal.end_answer()
    last = conversation.last
    assert last is not None
    if stopped and not last.written.text:
        terminal.tell("stopped before a word was written; the conversation is as it was")
    elif not last.written.text.strip():
        terminal.tell("the model ended its answer before it had written a word")
    elif terminal.asks:
        terminal.tell(_account(conversation, last, time.perf_counter() - began, stopped))


def _account(conversation: Conversation, answer: Answer, seconds: float, stopped: bool) -> str:
    """Return one line that says how long an answer is, how fast it was written, and why it ended."""
    tokens = len(answer.written.ids)
    total = answer.prompt_tokens + tokens
    parts = [f"{tokens} tokens", f"{tokens / seconds:.1f} tokens/s", f"{total} of {conversation.context} in context"]
    if stopped:
        parts.append("stopped")
    elif answer.written.finish_reason == "length":
        reached = tokens >= conversation.sampling.max_new_tokens
        parts.append("cut at max_new_tokens" if reached else "cut where the context was full")
    return ", ".join(parts)


class _Terminal:
    """The terminal or pipe that messages are read from and answers are written to."""

    def __init__(self) -> None:
        from rich.console import Console

        self.asks = sys.stdin.isatty()
        self._shows = sys.stdout.isatty()
        self._notes = Console(stderr=True, highlight=False)
        self._out = Console(highlight=False)
        if isinstance(sys.stdin, io.TextIOWrapper):
            # the conversation refuses what is not UTF-8 and goes on
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        if self.asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives `input` editing and a history

    def read(self) -> str | None:
        """Return the next message or command, None at the end; a backslash at a line's end joins the next to it."""
        lines: list[str] = []
        while (line := self._read_line("...> " if lines else "you> ")) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    def _read_line(self, prompt: str) -> str | None:
        if not self.asks:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        if not self._shows:
            self._print(self._notes, prompt, "bold cyan", end="")
            prompt = ""
        try:
            return input(self._styled(prompt))
        except EOFError:
            return None

    def _styled(self, prompt: str) -> str:
        """Return the prompt in color, with readline's marks around the codes that take no room on the line."""
        with self._out.capture() as captured:
            self._print(self._out, prompt, "bold cyan", end="")
        return re.sub(r"(\x1b\[[\d;]*m)", "\x01\\1\x02", captured.get())

    def begin_answer(self) -> None:
        """Show that the model's words follow."""
        if self._shows and self.asks:
            self._print(self._out, "model> ", "bold green", end="")

    def write(self, piece: str) -> None:
        """Show the next part of an answer."""
        sys.stdout.write(with_pictures(piece) if self._shows else piece)
        sys.stdout.flush()

    def end_answer(self) -> None:
        """End the last line of an answer."""
        sys.stdout.write("\n" if self.asks else "\n\n")
        sys.stdout.flush()

    def tell(self, text: str, style: str = "dim") -> None:
        """Show a note that is not part of an answer."""
        self._print(self._notes, with_pictures(text), style)

    def leave(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if self.asks:
            self._print(self._notes, "", "dim")

    @staticmethod
    def _print(console: Console, text: str, style: str, end: str = "\n") -> None:
        from rich.text import Text

        console.print(Text(text, style=style), end=end, soft_wrap=True)
