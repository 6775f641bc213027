"""YAML as it was meant: what a reader would drop or turn into something else in silence is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DoubtfulYaml(yaml.YAMLError):
    """Says in a line what may not be meant, and where; it quotes keys and no values."""


class _Writer(yaml.SafeDumper):
    """Puts in quotes what other readers than PyYAML take for a number: that of options reads 3e-4 as one."""

    def represent_text(self, text: str) -> yaml.Node:
        """Escape what PyYAML writes as line breaks and reads as spaces."""
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _Writer.represent_text)
_Writer.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789."))


def write_yaml(values: Any) -> str:
    """Write plain values so that every reader of ours has them back, texts as texts."""
    return yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True)


def read_yaml(text: str) -> Any:
    """Read a document, and check it as `check_yaml` does.

    Raises:
        yaml.YAMLError: it is no YAML, or not what it looks like.
    """
    values = yaml.safe_load(text)
    check_yaml(text)
    return values


def check_yaml(text: str) -> None:
    """Refuse a key that stands twice in a mapping, of which the first would be dropped, and numbers in sixties.

    Args:
        text: one document that can be read.

    Raises:
        DoubtfulYaml: one is there.
    """
    waiting: list[yaml.Node | None] = [yaml.compose(text, Loader=_FAST)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # aliases may lead there many times
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode) and node.tag in (_INT, _FLOAT) and ":" in node.value:
            raise DoubtfulYaml(
                f"line {node.start_mark.line + 1}: numbers with colons count in sixties, 1:30 as 90; put a time in "
                "quotes, as '00:30:00'"
            )
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            waiting += [each for pair in node.value for each in pair]


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line, same = key.start_mark.line + 1, (key.tag, key.value)
            if same in lines:
                raise DoubtfulYaml(
                    f"line {line}: {key.value} stands there a second time, after line {lines[same]}; make them one"
                )
            lines[same] = line
