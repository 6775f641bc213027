"""What a model folder says about tokens that end texts and about sampling outlives training and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer, make_dpo, make_sft, save_policy, some_pairs, some_talks
from conftest import MakeRun, tiny_model
from random_decoder import random_decoder

from lit_llm.config import ExportConfig, LoadConfig, SamplingConfig, UserError
from lit_llm.generation import complete
from lit_llm.interop import generation_settings, save_model_folder, stop_token_ids
from lit_llm.stages.dpo import dpo
from lit_llm.stages.export import export
from lit_llm.stages.loading import LoadedModel, load, tell_speed
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.sft import sft
from lit_llm.tokenizer import Tokenizer

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
LAST = {"max_steps": 1, "val_every_n_steps": None, "save_every_n_steps": 1}
BOS, OTHER_END, PAD = 40, 77, 12
"""Tokens of ordinary bytes: nothing would give them but the source folder."""


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def settings_of(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids of config.json, and generation_config.json."""
    config = json.loads((folder / "config.json").read_text())
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    return ids, json.loads((folder / "generation_config.json").read_text())


@pytest.fixture
def letters() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture
def source(tmp_path: Path, letters: Tokenizer) -> Path:
    """A folder with ids and sampling of its own, whose list of ends lacks the end of a turn."""
    folder = save_policy(tmp_path / "source", letters)
    rewrite(folder / "config.json", bos_token_id=BOS, eos_token_id=letters.eot_id, pad_token_id=PAD)
    generation = {"bos_token_id": BOS, "eos_token_id": [letters.eot_id, OTHER_END], "pad_token_id": PAD}
    (folder / "generation_config.json").write_text(json.dumps({**generation, **SAMPLING, "suppress_tokens": [9]}))
    return folder


def learned(letters: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a folder after training on conversations must say: the source's, and the end of a turn."""
    end = letters.im_end_id
    ids = {"bos_token_id": BOS, "eos_token_id": [letters.eot_id, end], "pad_token_id": PAD}
    return ids, {**ids, "eos_token_id": [letters.eot_id, OTHER_END, end], **SAMPLING, "suppress_tokens": [9]}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_fine_tuning_keeps_them(lora: dict[str, Any] | None, source: Path, tmp_path: Path, letters: Tokenizer) -> None:
    groups = {} if lora is None else {"lora": lora}
    result = sft(make_sft(tmp_path, source, some_talks(20), trainer=LAST, **groups))
    assert result is not None
    assert settings_of(result.model_folder) == learned(letters)
    # and so does the export of its checkpoint, quantized or not
    export(ExportConfig(str(result.folder), str(tmp_path / "again")))
    assert settings_of(tmp_path / "again") == learned(letters)
    export(ExportConfig(str(result.folder), str(tmp_path / "small"), quantize="int8"))
    assert settings_of(tmp_path / "small") == ({}, learned(letters)[1])
    ends = [letters.eot_id, OTHER_END, letters.im_end_id]
    for folder in (result.model_folder, tmp_path / "small"):
        assert load(LoadConfig(str(folder))).stop_tokens == ends
    if lora is not None:  # the adapter's folder is read with its base, and exports as it
        assert stop_token_ids(result.folder / "adapter", letters) == [letters.eot_id, OTHER_END]
        export(ExportConfig(str(result.folder / "adapter"), str(tmp_path / "merged")))
        assert settings_of(tmp_path / "merged") == settings_of(source)


def test_preferences_and_export_keep_them(source: Path, tmp_path: Path, letters: Tokenizer) -> None:
    result = dpo(make_dpo(tmp_path, source, some_pairs(20), trainer=LAST))
    assert result is not None
    assert settings_of(result.model_folder) == learned(letters)
    export(ExportConfig(str(source), str(tmp_path / "same"), dtype="bfloat16"))
    assert settings_of(tmp_path / "same") == settings_of(source)


def test_a_checkpoint_whose_source_is_gone_says_so(
    source: Path, tmp_path: Path, letters: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    result = sft(make_sft(tmp_path, source, some_talks(20), trainer=LAST))
    assert result is not None
    source.rename(tmp_path / "elsewhere")
    export(ExportConfig(str(result.folder), str(tmp_path / "out"), tokenizer=str(tmp_path / "elsewhere")))
    assert f"{source}, which had others, is not there" in capsys.readouterr().err
    assert settings_of(tmp_path / "out")[1]["eos_token_id"] == [letters.eot_id, letters.im_end_id]


def test_with_another_tokenizer_only_what_means_the_same_is_kept(
    source: Path, make_run: MakeRun, tokenizer: Tokenizer, letters: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids of bytes are those of the other tokenizer, too; the end of text is another token there."""
    assert letters.eot_id is not None
    assert tokenizer.token_bytes(letters.eot_id) != letters.token_bytes(letters.eot_id)
    save_policy(source, letters, vocab_size=tokenizer.vocab_size)
    generation = {"bos_token_id": letters.eot_id, "eos_token_id": [letters.eot_id, OTHER_END], "pad_token_id": PAD}
    (source / "generation_config.json").write_text(
        json.dumps({**generation, **SAMPLING, "suppress_tokens": [letters.im_start_id]})
    )
    result = pretrain(make_run(init_from=str(source), trainer=LAST, schedule={"warmup_steps": 0}))
    assert result is not None
    _, after = settings_of(result.model_folder)
    assert after == {
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": [OTHER_END, tokenizer.eot_id],
        "pad_token_id": PAD,
        **SAMPLING,
    }
    said = capsys.readouterr().err
    assert f"{source}: left out, as the tokenizer is another: bos_token_id {letters.eot_id}" in said
    assert "suppress_tokens" in said


def test_added_tokens_change_no_meaning(tmp_path: Path, letters: Tokenizer) -> None:
    folder = save_policy(tmp_path / "plain", letters)
    rewrite(folder / "generation_config.json", bos_token_id=BOS, eos_token_id=[OTHER_END], **SAMPLING)
    grown = letters.extended(["<|more|>"])
    settings = generation_settings(grown, folder)
    assert settings.generation["eos_token_id"] == [OTHER_END]
    assert settings.generation["bos_token_id"] == BOS
    assert settings.generation["temperature"] == 0.6


def test_what_old_folders_say_in_config_json_is_kept(tmp_path: Path, letters: Tokenizer) -> None:
    folder = save_policy(tmp_path / "old", letters)
    (folder / "generation_config.json").unlink()
    rewrite(folder / "config.json", eos_token_id=[OTHER_END], temperature=0.6, top_k=None)
    settings = generation_settings(letters, folder)
    assert settings.generation["eos_token_id"] == settings.ids["eos_token_id"] == [OTHER_END]
    assert settings.generation["temperature"] == 0.6
    assert "top_k" not in settings.generation
    # a beginning that the folder does not name is the architecture's, and none of ours
    values = json.loads((folder / "config.json").read_text())
    del values["bos_token_id"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "bos_token_id" not in generation_settings(letters, folder).ids


@pytest.mark.parametrize("value", ["2", True, [1, None], 2**40, {"a": 1}, 1.0])
def test_ids_that_are_none_are_refused(value: Any, source: Path, letters: Tokenizer) -> None:
    rewrite(source / "generation_config.json", eos_token_id=value)
    for read in (lambda: stop_token_ids(source, letters), lambda: generation_settings(letters, source)):
        with pytest.raises(UserError, match=r"eos_token_id is .*; it must be the id of a token") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [9999, -1, [0, 9999]])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_beyond_the_vocabulary_is_refused(value: Any, name: str, source: Path, letters: Tokenizer) -> None:
    (source / "generation_config.json").write_text("{}")
    rewrite(source / name, eos_token_id=value, pad_token_id=-1)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    wrong = value if isinstance(value, int) else 9999
    for read in (lambda: stop_token_ids(source, letters), lambda: generation_settings(letters, source)):
        with pytest.raises(
            UserError, match=rf"eos_token_id {wrong} is none of .* tokens, 0 to {vocabulary - 1}"
        ) as error:
            read()
        assert "\n" not in str(error.value)
    rewrite(source / name, eos_token_id=vocabulary - 1)
    assert stop_token_ids(source, letters) == [vocabulary - 1]


def test_a_reward_model_is_padded_with_the_padding(source: Path, tmp_path: Path, letters: Tokenizer) -> None:
    """transformers scores a text at its last token that is not the padding."""
    model = random_decoder(tiny_model("llama-10m", vocab_size=letters.vocab_size).as_score())
    settings = generation_settings(letters, source)
    save_model_folder(tmp_path / "reward", model.config, model.state_dict(), letters, settings=settings)
    assert [each["pad_token_id"] for each in settings_of(tmp_path / "reward")] == [letters.pad_id] * 2


def test_texts_stop_where_those_of_transformers_stop(source: Path, tmp_path: Path, letters: Tokenizer) -> None:
    """At each token of the list, before and after training."""
    transformers = pytest.importorskip("transformers")
    rewrite(source / "generation_config.json", suppress_tokens=None)
    result = sft(make_sft(tmp_path, source, some_talks(20), trainer=LAST))
    assert result is not None
    prompt = letters.encode("bcd")
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": None}
    for folder in (source, result.model_folder):
        loaded = load(LoadConfig(str(folder)))

        def ours(stops: list[int], loaded: LoadedModel = loaded) -> list[int]:
            sampling = SamplingConfig(max_new_tokens=12, temperature=0.0)
            return complete(loaded.model, [prompt], sampling, stop_tokens=stops)[0].ids

        def theirs(folder: Path = folder) -> list[int]:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder)
            return model.generate(torch.tensor([prompt]), max_new_tokens=12, **greedy)[0, len(prompt) :].tolist()

        free = ours([])
        ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        rewrite(folder / "generation_config.json", eos_token_id=[*ends, free[5]])
        stopped = theirs()
        assert stopped == free[: free.index(free[5]) + 1]
        written = ours(stop_token_ids(folder, letters))
        assert [token for token in written if token != free[5]] == stopped[:-1]


def test_where_quantized_weights_are_not_faster_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tell_speed("int8", "cpu")
    assert capsys.readouterr().err == ""
    tell_speed("int8", "cuda")
    assert capsys.readouterr().err.startswith("int8 on CUDA saves memory, not time: bfloat16 (--dtype bfloat16) ")
