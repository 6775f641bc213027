"""Commands that are printed to be copied: what is put into them is quoted for a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from lit_llm.cli.results import show_fetched
from lit_llm.config import FetchModelConfig, UserError
from lit_llm.data.pretraining.shard_folder import require_shards
from lit_llm.stages.fetch_model import FetchedModel

_OPTION = re.compile(r"--[a-z_.]+ $")


def unquoted(tree: ast.AST) -> Iterator[str]:
    """Values that follow an option in a text, and are neither numbers nor quoted; what is called `word` is."""
    for text in ast.walk(tree):
        if not isinstance(text, ast.JoinedStr):
            continue
        for before, value in zip(text.values, text.values[1:], strict=False):
            if not (isinstance(before, ast.Constant) and _OPTION.search(before.value)):
                continue
            assert isinstance(value, ast.FormattedValue)
            source = ast.unparse(value.value)
            if value.format_spec is None and not source.startswith(("shlex.quote(", "','.join(")) and source != "word":
                yield source


def test_every_value_in_a_printed_command_is_quoted() -> None:
    found = {}
    for path in (ROOT / "lit_llm").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "--" in source and (names := list(unquoted(ast.parse(source)))):
            found[path.name] = names
    assert found == {}
    assert list(unquoted(ast.parse('f"--model {folder} --rate {rate:g} --to {shlex.quote(x)}"'))) == ["folder"]


def test_paths_with_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "my models" / "one.gguf"
    model.parent.mkdir()
    model.write_bytes(b"1234")
    show_fetched(FetchModelConfig(["smollm2-135m-instruct"]), FetchedModel(model, False))
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].endswith(f"experiments/chat.py --model '{model}'")
    assert printed[2].endswith(f"experiments/quickstart_chat.py --model '{model}'")
    (model.parent / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"--init_from '{model.parent}'"):
        require_shards(str(model.parent))
