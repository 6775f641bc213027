"""A GGUF file where a model folder is asked for: every stage and tool takes it, and gives what the folder gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from chat_rows import save_policy, some_pairs, some_talks, write_rows
from conftest import tiny_model
from random_decoder import random_decoder
from stage_runs import chat_tokenizer, make_stage, run_stage

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import (
    CorpusConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PrepareConfig,
    SamplingConfig,
    UserError,
)
from lit_llm.interop import gguf_license, load_model_folder, load_tokenizer, load_weights, read_model_config
from lit_llm.interop.gguf import save_gguf
from lit_llm.stages.checkpoints import read_trained_model
from lit_llm.stages.evaluate import evaluate
from lit_llm.stages.export import export
from lit_llm.stages.prepare import prepare_data

pytest.importorskip("gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A chat model whose numbers fit float16, so that the file and the folder beside it hold the same."""
    tokenizer = chat_tokenizer()
    config = tiny_model("llama-10m", vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    model = random_decoder(config, std=0.1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    save_policy(tmp_path / "folder", tokenizer, model)
    save_gguf(tmp_path / "small.gguf", config, model.state_dict(), tokenizer, "F32")
    return tmp_path / "small.gguf"


def test_the_tools_give_what_the_folder_gives(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = file.with_name("folder")
    rows = write_rows(file.with_name("rows.jsonl"), some_talks(6))
    pairs = write_rows(file.with_name("pairs.jsonl"), some_pairs(6))
    written, found = [], []
    for model in (folder, file):
        sampling = SamplingConfig(max_new_tokens=12, temperature=0.0)
        COMMANDS["generate"].run(GenerateConfig(model=str(model), prompts=["a letter"], sampling=sampling))
        written.append(capsys.readouterr().out)
        config = EvaluateConfig(str(model), answers=[rows], preferences=[pairs], reference=str(file), dtype="float32")
        found.append(evaluate(config))
    assert written[0] == written[1] != ""
    assert found[1].folder == file.with_name("small") / "evaluation"
    assert found[0].report["losses"][0]["loss"] == found[1].report["losses"][0]["loss"]
    assert found[0].report["preferences"][0] | {"source": ""} == found[1].report["preferences"][0] | {"source": ""}
    with pytest.raises(UserError, match="is there already; give another --output"):
        evaluate(EvaluateConfig(str(file), answers=[rows]))


def test_a_lora_run_from_a_file_its_adapter_and_its_export(file: Path) -> None:
    config = make_stage("sft", file.parent, init_from=file, lora={"rank": 2}, trainer={"max_steps": 2})
    result = run_stage(config)
    merged = load_weights(result.model_folder, read_model_config(result.model_folder))
    assert load_tokenizer(result.model_folder).digest == load_tokenizer(file).digest
    start = load_weights(file, read_model_config(file))
    assert any(not torch.equal(merged[name], weight) for name, weight in start.items())
    adapter = json.loads((result.folder / "adapter" / "adapter_config.json").read_text())
    assert Path(adapter["base_model_name_or_path"]).name == "small.gguf"
    model, tokenizer = load_model_folder(result.folder / "adapter")
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged.get(name, weight), rtol=1e-5, atol=1e-6)
    assert tokenizer.digest == load_tokenizer(file).digest
    export(ExportConfig(str(result.folder), str(file.with_name("again"))))
    for name, weight in load_weights(file.with_name("again"), read_model_config(file.with_name("again"))).items():
        assert torch.equal(weight, merged[name])
    assert read_trained_model(result.folder).base_folder() == file.resolve()


def test_dpo_keeps_what_the_reference_said(file: Path) -> None:
    """Under a digest of the file: the same one is not read again, another one is."""

    def kept() -> set[str]:
        return {path.name for path in (file.parent / "reference_log_probs").glob("*")}

    for name in ("one", "two"):
        run_stage(make_stage("dpo", file.parent, name, init_from=file, trainer={"max_steps": 1}))
    first = kept()
    assert 1 <= len(first) <= 2
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # the sign or a low bit of a weight
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    run_stage(make_stage("dpo", file.parent, "three", init_from=file, trainer={"max_steps": 1}))
    assert len(kept()) == 2 * len(first)


def test_a_folder_and_a_smaller_file_are_made_of_a_file(file: Path) -> None:
    exported = export(ExportConfig(str(file), str(file.with_name("out"))))
    assert exported.kind == "model folder"
    one, other = (load_model_folder(path)[0].state_dict() for path in (file, file.with_name("out")))
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    small = file.with_name("q8.gguf")
    export(ExportConfig(str(file), str(small), format="gguf", dtype="q8_0"))
    again = load_model_folder(small)[0].state_dict()
    assert 0 < float((again["embedding.weight"] - one["embedding.weight"]).abs().max()) < 0.01


def test_shards_with_the_tokenizer_of_a_file(file: Path) -> None:
    texts = file.with_name("texts.txt")
    texts.write_text("one letter\n\n" * 200)
    manifests = []
    for tokenizer in (file, file.with_name("folder")):
        output = file.with_name(f"shards-{tokenizer.name}")
        corpus = CorpusConfig(path=str(texts))
        manifests.append(prepare_data(PrepareConfig(corpus, tokenizer=str(tokenizer), output=str(output))))
        assert (output / "tokenizer" / "tokenizer.json").is_file()
    assert manifests[0]["train"].tokens == manifests[1]["train"].tokens > 0


def test_the_license_of_a_file(file: Path) -> None:
    from gguf_files import write_gguf

    assert gguf_license(file) is None
    assert gguf_license(file.with_name("none.gguf")) is None
    assert gguf_license(write_gguf(file.with_name("a.gguf"), "llama", {"general.license": "mit"}, {})) == "mit"


def test_a_file_is_under_the_license_that_is_given_or_else_that_of_its_model(file: Path) -> None:
    given, again, of_run = (file.with_name(name) for name in ("given.gguf", "again.gguf", "of_run.gguf"))
    export(ExportConfig(str(file.with_name("folder")), str(given), format="gguf", license="apache-2.0"))
    export(ExportConfig(str(given), str(again), format="gguf"))
    assert gguf_license(given) == gguf_license(again) == "apache-2.0"
    trainer = {"max_steps": 1, "val_every_n_steps": None}
    run = make_stage("sft", file.parent, init_from=str(given), trainer=trainer)
    run_stage(run)
    export(ExportConfig(str(run.folder), str(of_run), format="gguf"))
    assert gguf_license(of_run) == "apache-2.0"
