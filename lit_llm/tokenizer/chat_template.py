"""Jinja templates of conversations: ours, and those that other models bring, run as transformers runs them."""

from __future__ import annotations

import math
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

    Attributes:
        names: Every name, attribute and text in the source: what a template reads is among them.

    Raises:
        UserError: it is not a template, or a very long one.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        from lit_llm.tokenizer.template_limits import MAX_SOURCE

        self._tokens = dict(names)
        if len(source) > MAX_SOURCE:
            raise UserError(
                f"the tokenizer's chat template has {len(source):,} characters, and {MAX_SOURCE:,} is the most that is "
                "read; replace it"
            )
        self._environment = _environment()
        try:
            self.names = _names_in(self._environment.parse(source))
            self._template = self._environment.from_string(source)
        except Exception as error:  # parser and compiler recurse, and Python's own compiler has limits
            raise UserError(
                f"the tokenizer's chat template is broken ({_in_a_line(error)}); correct it, or remove it"
            ) from None

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, tools: Sequence[Any] = ()
    ) -> str:
        """Render a conversation as text.

        Args:
            messages: Each with role and content, and what else the template may read.
            add_generation_prompt: Go on to where an assistant's words begin, if the template knows that option.
            tools: What the assistant may call, as JSON schemas.

        Raises:
            UserError: the template refuses the conversation, or takes more time or room than conversations need.
        """
        from lit_llm.tokenizer.template_room import TemplateLimit, measure

        given = {"messages": [dict(message) for message in messages], "tools": list(tools) or None}
        try:
            size, _ = measure(list(given.values()), math.inf)
            self._environment.begin(size, len(messages))
            return self._environment.concat(
                self._template.generate(
                    **given, documents=None, add_generation_prompt=add_generation_prompt, **self._tokens
                )
            )
        except TemplateLimit as error:
            raise UserError(f"the chat template is not rendered to its end: {error}; use another template") from None
        except Exception as error:  # a template may fail in any way that Python can
            raise UserError(f"the chat template refuses the conversation ({_in_a_line(error)})") from None


def _names_in(template: Any) -> frozenset[str]:
    from jinja2 import nodes

    found = {node.value for node in template.find_all(nodes.Const) if isinstance(node.value, str)}
    found |= {node.attr for node in template.find_all(nodes.Getattr)}
    return frozenset(found | {node.name for node in template.find_all(nodes.Name)})


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols

    from lit_llm.tokenizer.template_limits import LimitedEnvironment

    class Generation(Extension):
        """Reads {% generation %} as if it were not there: where an assistant's words begin is found another way."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    # without transformers' strftime_now: a model would be trained on, and asked with, another text every day, and a run
    # could not be resumed the next; templates that know the function have a fixed date for where it is missing
    return LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
