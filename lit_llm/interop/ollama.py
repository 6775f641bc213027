"""A Modelfile for Ollama beside a GGUF file: the template of conversations, what ends a text, how it is drawn.

Ollama's templates are Go's, and chat templates are Jinja. A template is not translated but found again: it is asked to
write some conversations, which are cut into what stands before and after each message. Where putting these pieces
together writes further conversations in the same way, they are the template; where it does not, there is no such form.

Source: Ollama's Modelfile (FROM, TEMPLATE, PARAMETER, LICENSE) and Go's text/template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.config import UserError
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat_template import CHATML_TEMPLATE, ChatTemplate

Turns = list[dict[str, str]]
# Messages that no template has: private characters around a number.
_WORDS = [f"\ue0f0{number}\ue0f1" for number in range(7)]


@dataclass(frozen=True)
class TurnPieces:
    """What a chat template writes around the words of messages."""

    opening: str
    """Before the first message of a conversation without a system message."""
    around: dict[str, tuple[str, str]]
    """By role: before and after the words; no "system" where the template refuses such messages."""
    prompt: str
    """After the last message, where the assistant's words begin; what follows the words before is `around`'s."""

    def write(self, turns: Sequence[Mapping[str, str]]) -> str:
        """Write a conversation and go on to the assistant's words, as the Go template does."""
        text = "" if turns[0]["role"] == "system" else self.opening
        for turn in turns:
            before, after = self.around[turn["role"]]
            text += before + turn["content"] + after
        return text + self.prompt

    def go_template(self) -> str:
        """Write the template in Go's form; a conversation that ends with the assistant is gone on with there."""
        roles = []
        for role, (before, after) in self.around.items():
            end = _go_text(after)
            if role == "assistant":
                end = f"{{{{ if not $last }}}}{end}{{{{ end }}}}"
            start = "if" if not roles else "else if"
            roles.append(f'{{{{ {start} eq .Role "{role}" }}}}{_go_text(before)}{{{{ .Content }}}}{end}')
        return (
            f"{{{{ if not .System }}}}{_go_text(self.opening)}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f"{''.join(roles)}{{{{ end }}}}"
            f'{{{{ if and $last (ne .Role "assistant") }}}}{_go_text(self.prompt)}{{{{ end }}}}'
            "{{ end }}"
        )


def turn_pieces(tokenizer: Tokenizer) -> TurnPieces | None:
    """Find what a tokenizer's chat template writes around messages; None where it has no form for conversations.

    Raises:
        UserError: the template does more than that, and what.
    """
    source = tokenizer.chat_template
    if not source:
        if tokenizer.im_start_id is None or tokenizer.im_end_id is None:
            return None
        source = CHATML_TEMPLATE
    template = ChatTemplate(source, tokenizer.named_tokens)
    if "strftime_now" in template.names:
        raise _no_form("it writes today's date")
    pieces = _pieces(template)
    plain, more = "What is a\nletter?", "And {two}?"
    asked: list[Turns] = [_turns("user", plain), _turns("user", plain, "assistant", "A sign.", "user", more)]
    if "system" in pieces.around:
        asked += [_turns("system", "Be brief.", "user", plain)]
        asked += [_turns("system", "Be brief.", "user", plain, *["assistant", "A sign.", "user", more] * 2)]
    for turns in asked:
        if template(turns, add_generation_prompt=True) != pieces.write(turns):
            raise _no_form("what it writes around a message depends on more than its role")
    return pieces


def modelfile(
    file: str,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    generation: Mapping[str, Any],
    context: int,
    license_name: str | None = None,
) -> str:
    """Write the text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        tokenizer: the model's.
        stop_ids: tokens that end a text.
        generation: the content of generation_config.json: how text is drawn. What it does not say is said all the
            same, as Ollama's own defaults cut the distribution.
        context: tokens of the model's context.
        license_name: of the model, if it is known.

    Raises:
        UserError: the chat template has no form that Ollama's templates can say, or a token cannot be named there.
    """
    pieces = turn_pieces(tokenizer)
    template = "{{ .Prompt }}" if pieces is None else _without_begin(pieces, tokenizer).go_template()
    names = {index: name for name, index in tokenizer.special_ids.items()}
    stops = [names[index] for index in dict.fromkeys(stop_ids) if index in names]
    if '"""' in template or not all(each.isprintable() or each == "\n" for each in template):
        raise _no_form("it has characters that a Modelfile cannot hold")
    greedy = generation.get("do_sample") is False
    parameters = {
        "num_ctx": context,
        "temperature": 0 if greedy else generation.get("temperature", 1.0),
        "top_k": generation.get("top_k") or 0,
        "top_p": generation.get("top_p") or 1.0,
        "min_p": generation.get("min_p") or 0.0,
        "repeat_penalty": generation.get("repetition_penalty") or 1.0,
    }
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    lines += [f'PARAMETER stop "{name}"' for name in stops]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    if license_name is not None:
        lines.append(f'LICENSE """{license_name}"""')
    return "\n".join(lines) + "\n"


def _turns(*roles_and_words: str) -> Turns:
    pairs = zip(roles_and_words[::2], roles_and_words[1::2], strict=True)
    return [{"role": role, "content": words} for role, words in pairs]


def _pieces(template: ChatTemplate) -> TurnPieces:
    """Cut three conversations into pieces; that these say it all is for the caller to check."""
    user, assistant, later = _WORDS[1:4]
    start, after_user = _gaps(template(_turns("user", user)), [user])
    text = template(_turns("user", user), add_generation_prompt=True)
    prompt = _after(after_user, _gaps(text, [user])[1])
    _, _, after_answer = _gaps(template(_turns("user", user, "assistant", assistant)), [user, assistant])
    talk = _turns("user", user, "assistant", assistant, "user", later)
    _, between, again, _ = _gaps(template(talk), [user, assistant, later])
    before_answer, before_user = _after(after_user, between), _after(after_answer, again)
    if not start.endswith(before_user):
        raise _no_form("a conversation's first message is written in a way of its own")
    around = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    opening = start[: len(start) - len(before_user)]
    try:
        text = template(_turns("system", _WORDS[0], "user", user))
    except UserError:
        return TurnPieces(opening, around, prompt)  # it refuses them
    before, after, _ = _gaps(text, [_WORDS[0], user])
    if not after.endswith(before_user):
        raise _no_form("it writes a system message into the user's")
    return TurnPieces(opening, {"system": (before, after[: len(after) - len(before_user)]), **around}, prompt)


def _gaps(text: str, words: Sequence[str]) -> list[str]:
    """Cut a text at words that stand in it once each, in this order."""
    gaps = []
    for word in words:
        before, found, text = text.partition(word)
        if not found or word in text:
            raise _no_form("it leaves words out, or writes them twice")
        gaps.append(before)
    return [*gaps, text]


def _after(start: str, text: str) -> str:
    if not text.startswith(start):
        raise _no_form("what it writes after a message depends on what follows")
    return text[len(start) :]


def _without_begin(pieces: TurnPieces, tokenizer: Tokenizer) -> TurnPieces:
    """Leave out the token that begins a text where the GGUF file has it put there by the reader."""
    names = {index: name for name, index in tokenizer.special_ids.items()}
    begin = names.get(tokenizer.rule_ids[0], "") if tokenizer.rule_ids else ""
    around = dict(pieces.around)
    if "system" in around:
        around["system"] = (around["system"][0].removeprefix(begin), around["system"][1])
    return TurnPieces(pieces.opening.removeprefix(begin), around, pieces.prompt)


def _go_text(text: str) -> str:
    """Write text of a template; Go reads the braces of an action in a quoted string as text."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or "}}" in text else text


def _no_form(reason: str) -> UserError:
    return UserError(
        f"the chat template cannot be written for Ollama, as {reason}; give format gguf and write a Modelfile by hand"
    )
