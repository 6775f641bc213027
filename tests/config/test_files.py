"""Files are whole or not there, and others may read what the umask lets them read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from stage_runs import make_stage, run_stage

from lit_llm.config.files import replace_file, whole_file
from lit_llm.interop import save_model_folder
from lit_llm.interop.gguf import save_gguf
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "old é\n")
    with pytest.raises(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        assert path.read_text(encoding="utf-8") == "old é\n"
        raise ZeroDivisionError
    assert path.read_bytes() == "old é\n".encode()
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".a.json.partial").write_text("of a process that was killed")
    (tmp_path / ".a.json.partial").chmod(0o600)
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_disk_has_a_file_before_its_name_and_then_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(descriptor: int) -> None:
        names = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.iterdir())}
        done.append(names[os.fstat(descriptor).st_ino])

    monkeypatch.setattr(os, "fsync", note)
    replace_file(tmp_path / "a", "new")
    assert done == [".a.partial", tmp_path.name]


def test_two_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path, shared=True) as mine:
        mine.write_text("1")
        with whole_file(path) as other:
            other.write_text("2")
        assert path.read_text() == "2"
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_reads(umask: int, mode: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of a run with an adapter and a reference: checkpoints, model, adapter, tables; of a sharded model and GGUF."""
    config = make_stage("dpo", tmp_path, lora={"rank": 2}, trainer={"max_steps": 1, "val_every_n_steps": None})
    model = tiny_model(tie_word_embeddings=False, vocab_size=tokenizer.vocab_size)
    weights = Decoder(model).state_dict()
    before = os.umask(umask)
    try:
        run_stage(config)
        (tmp_path / "new").mkdir()
        save_model_folder(tmp_path / "new" / "model", model, weights, tokenizer, max_shard_bytes=60_000)
        _save_if_there(lambda: save_gguf(tmp_path / "new" / "a.gguf", model, weights, tokenizer, "F16"))
    finally:
        os.umask(before)
    folders = (config.folder, tmp_path / "reference_log_probs", tmp_path / "new")
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"step_00000001.ckpt", "model.safetensors", "adapter_model.safetensors", "config.yaml"} <= names
    assert {"tokenizer.json", "config.json", "report.md", "model.safetensors.index.json"} <= names
    assert sum(path.parent.name == "reference_log_probs" for path in written) >= 1
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in written}
    assert modes == dict.fromkeys(modes, oct(mode))


def _save_if_there(save: Callable[[], Any]) -> None:
    try:
        import gguf
    except ImportError:
        return
    assert gguf
    save()
