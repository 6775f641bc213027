"""Packages that only metrics of others need are not imported at a start, and are there for who asks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lightning_utilities.core import imports

from lit_llm.cli import commands
from lit_llm.cli.lean_imports import UNUSED_BY_METRICS, without_unused_packages


def test_only_in_the_block_are_the_packages_said_to_be_missing() -> None:
    packages = ("transformers", "transformers>=4.4.0", "numpy")
    with without_unused_packages():
        inside = [bool(imports.RequirementCache(each)) for each in packages]
        found = [imports.package_available(each) for each in ("transformers", "numpy")]
    assert (inside, found) == ([False, False, True], [False, True])
    assert all(imports.RequirementCache(each) for each in packages[::2])


def test_a_command_imports_its_stage_in_the_block(monkeypatch) -> None:
    asked = []

    def notes(module: str) -> object:
        asked.append((module, bool(imports.RequirementCache("transformers"))))
        return type("stage", (), {"compare": staticmethod(lambda config: asked.append(config))})

    monkeypatch.setattr(commands.importlib, "import_module", notes)
    command = commands.Command(object, "a.stage:compare", "")
    command.run("configuration")
    assert asked == [("a.stage", False), "configuration"]


@pytest.mark.slow
def test_a_pretraining_run_is_imported_without_them() -> None:
    code = (
        "from lit_llm.cli.commands import COMMANDS\n"
        "try: COMMANDS['pretrain'].run(None)\n"
        "except AttributeError: pass\n"
        "import sys, torchmetrics\n"
        f"print([name for name in {UNUSED_BY_METRICS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
