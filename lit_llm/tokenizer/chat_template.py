"""Jinja templates of conversations: ours, and those that other models bring, run as transformers runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lit_llm.config import UserError

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, with the marks that transformers finds an assistant's words by."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja, as transformers reads it.
        names: `bos_token` and the like, which the template may write.

    Raises:
        UserError: it is not a template.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        from jinja2 import TemplateError

        self._names = dict(names)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise UserError(f"the tokenizer's chat template is broken ({error}); correct it, or remove it") from None

    def __call__(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            messages: Each with role and content.
            add_generation_prompt: Go on to where an assistant's words begin, if the template knows that option.

        Raises:
            UserError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except Exception as error:  # a template may fail in any way that Python can
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the chat template refuses the conversation ({reason})") from None


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Reads {% generation %} as if it were not there: where an assistant's words begin is found another way."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    # without transformers' strftime_now: a model would be trained on, and asked with, another text every day, and a run
    # could not be resumed the next; templates that know the function have a fixed date for where it is missing
    return environment
