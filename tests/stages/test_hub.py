"""Uploads, to a server here that speaks the part of the Hub's interface that they need."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRun

from lit_llm.cli.commands import run_command
from lit_llm.config import ExportConfig, PretrainConfig, UserError
from lit_llm.stages.export import export
from lit_llm.stages.pretrain import pretrain

huggingface_hub = pytest.importorskip("huggingface_hub")
if huggingface_hub.constants.HF_HUB_OFFLINE:
    pytest.skip("HF_HUB_OFFLINE is set: nothing is uploaded", allow_module_level=True)


class Hub(ThreadingHTTPServer):
    """What has been made and uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refusal: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    """Answers as the Hub does."""

    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.server.refusal is not None:
            return self.answer({"error": "You may not."}, self.server.refusal)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            return self.answer({"url": f"{self.server.address}/{name}", "id": name})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            page = f"{self.server.address}/user/model/commit/{'1' * 40}"
            return self.answer({"commitUrl": page, "commitOid": "1" * 40, "success": True})
        return self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "user/model", "sha": "0" * 40, "siblings": []})

    def answer(self, values: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub, with a token for it."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)  # read from HF_ENDPOINT at import
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(make_run: MakeRun) -> PretrainConfig:
    config = make_run(trainer={"max_steps": 2})
    pretrain(config)
    return config


def test_a_model_folder(run: PretrainConfig, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "exported"
    output.mkdir()
    (output / "diary.txt").write_text("not for others")
    words = ["--checkpoint", str(run.folder), "--output", str(output), "--license", "apache-2.0"]
    run_command("export", [*words, "--push_to_hub", "user/model", "--private", "true"])
    assert f"uploaded      {hub.address}/user/model" in capsys.readouterr().out
    assert hub.repositories == {"user/model": True} and hub.tokens == {"Bearer hf_secret"}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= hub.files.keys()
    assert "diary.txt" not in hub.files
    for name, content in hub.files.items():
        assert content == (output / name).read_bytes(), name
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and "pretrain" in card.data.tags and "| steps | 2 |" in card.text
    # the checkpoint is of the step of the last validation
    results = {each.metric_name: each.metric_value for each in card.data.eval_results}
    ours = huggingface_hub.ModelCard.load(run.folder / "model" / "README.md").data.eval_results
    assert "val/loss" in results  # Lightning keeps the last values in float32
    assert results == {each.metric_name: pytest.approx(each.metric_value, rel=1e-6) for each in ours}

    # a model folder becomes another one, under the license of the first; the repository is there already
    hub.files.clear()
    exported = export(ExportConfig(str(output), str(tmp_path / "half"), dtype="bfloat16", push_to_hub="user/model"))
    assert exported.page == f"{hub.address}/user/model" and hub.repositories == {"user/model": True}
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert (
        card.data.license == "apache-2.0"
        and card.data.eval_results is None
        and f"made from {tmp_path.name}/exported" in card.text
    )


def test_a_gguf_file(run: PretrainConfig, hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "other.gguf").write_bytes(b"not for others")
    export(ExportConfig(str(run.folder), str(tmp_path / "gguf"), format="gguf", push_to_hub="user/gguf"))
    assert hub.files.keys() == {"model.gguf", "README.md"} and hub.files["model.gguf"][:4] == b"GGUF"
    assert huggingface_hub.ModelCard(hub.files["README.md"].decode()).data.library_name == "gguf"
    # a file among others has no card, and takes none along that is another's
    hub.files.clear()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes")
    export(ExportConfig(str(run.folder), str(tmp_path / "mine" / "a.gguf"), format="gguf", push_to_hub="user/gguf"))
    assert hub.files.keys() == {"a.gguf"} and (tmp_path / "mine" / "README.md").read_text() == "notes"


def test_what_the_hub_refuses_is_one_line(
    run: PretrainConfig, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def options(name: str, **more: Any) -> ExportConfig:
        return ExportConfig(str(run.folder), str(tmp_path / name), push_to_hub="user/model", **more)

    hub.refusal = 403
    with pytest.raises(UserError, match=r"cannot upload .* to user/model, and it stays here: .*403") as error:
        export(options("refused"))
    assert "\n" not in str(error.value) and "hf_secret" not in str(error.value)
    assert (tmp_path / "refused" / "model.safetensors").is_file()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot upload"):
        export(options("unreachable"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="needs a token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN"):
        export(options("nameless"))
    assert not (tmp_path / "nameless").exists()  # it is told before the work
    for wrong, message in (
        ({"push_to_hub": "model"}, "push_to_hub is 'model'; it must be a name as USER/NAME"),
        ({"private": True}, "private has no effect without push_to_hub"),
    ):
        with pytest.raises(UserError, match=message):
            ExportConfig(**wrong)
