"""Bad input of the stages after pretraining: one line that names it and the fix, and nothing written is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_rows import pair, save_policy, some_pairs, talk
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from ranks import STAGES
from safetensors.torch import load_file
from stage_runs import chat_tokenizer, make_stage, rows_of, run_stage
from test_bad_input import contents

from lit_llm.cli import main
from lit_llm.config import ExportConfig, PostTrainingConfig, SampleConfig, UserError, to_plain
from lit_llm.interop import load_model_folder
from lit_llm.model import Decoder
from lit_llm.stages.export import export
from lit_llm.tokenizer import Tokenizer

ONE_STEP = {"max_steps": 1, "val_every_n_steps": None, "save_every_n_steps": None}
ALL = ("sft", "reward", "dpo")


@pytest.fixture
def ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a stage as its script does, which must end with one line on stderr that has all parts, and write nothing.

    The command line is read where there are `arguments`; a recipe has the rest of the options.
    """

    def run(config: PostTrainingConfig, *parts: str, status: int = 1, arguments: tuple[str, ...] = ()) -> str:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(to_plain(config)))
        before = contents(tmp_path)
        capsys.readouterr()
        kind, run = type(config), STAGES[type(config)]
        with pytest.raises(SystemExit) as stopped:
            if arguments:
                main(kind, run, ["--config", str(recipe), *arguments])
            else:
                main(SampleConfig, lambda _: run(config), [])
        printed = capsys.readouterr()
        assert stopped.value.code == status
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        for part in parts:
            assert part in printed.err
        assert contents(tmp_path) == before
        return printed.err

    return run


def one_step(stage: str, folder: Path, name: str = "run", **groups: Any) -> Any:
    groups.setdefault("sample_prompts", 0)
    return make_stage(stage, folder, name, trainer={**ONE_STEP, **groups.pop("trainer", {})}, **groups)


# the model to start from


@pytest.mark.parametrize("stage", ALL)
def test_init_from(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    config = one_step(stage, tmp_path)
    config.init_from = None
    ends(config, "init_from is missing; give the model folder")
    for given in (tmp_path / "nowhere", tmp_path / "rows"):
        config.init_from = str(given)
        ends(config, f"{given} is not a model folder")
    scores = save_policy(
        tmp_path / "scores",
        chat_tokenizer(),
        Decoder(tiny_model(vocab_size=chat_tokenizer().vocab_size, max_position_embeddings=64).as_score(), seed=1),
    )
    config.init_from = str(scores)
    ends(config, f"{scores} is a reward model; give init_from a language model")
    (tmp_path / "policy" / "model.safetensors").unlink()
    config.init_from = str(tmp_path / "policy")
    ends(config, str(tmp_path / "policy"), "safetensors")


@pytest.mark.parametrize("stage", ALL)
def test_a_context_that_is_too_short(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    config = one_step(stage, tmp_path, data={"sequence_length": 65})
    ends(config, "data.sequence_length 65 is more than the 64 positions", str(tmp_path / "policy"))


def test_references(tmp_path: Path, ends: Callable[..., str]) -> None:
    sizes = {"vocab_size": chat_tokenizer().vocab_size, "max_position_embeddings": 64}
    scores = Decoder(tiny_model(**sizes).as_score(), seed=1)
    save_policy(tmp_path / "scores", chat_tokenizer(), scores)
    save_policy(tmp_path / "larger", chat_tokenizer(), vocab_size=sizes["vocab_size"] + 9)
    for reference in ("precomputed", "live"):
        for name, part in (("scores", "is not a language model"), ("larger", f"of {sizes['vocab_size']} tokens")):
            folder = str(tmp_path / name)
            ends(one_step("dpo", tmp_path, reference_model=folder, reference=reference), f"reference {folder}", part)
        missing = str(tmp_path / "missing")
        ends(
            one_step("dpo", tmp_path, reference_model=missing, reference=reference), f"{missing} is not a model folder"
        )
    # with positions for shorter texts than there are
    save_policy(tmp_path / "shorter", chat_tokenizer(), max_position_embeddings=16)
    ends(one_step("dpo", tmp_path, reference_model=str(tmp_path / "shorter")), "16", "data.sequence_length 48")


# the tokenizer


def without_chat_tokens(folder: Path, **fields: Any) -> Path:
    save_foreign_tokenizer("gpt2", folder / "gpt2")
    (folder / "gpt2" / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.load(folder / "gpt2")
    assert tokenizer.im_start_id is None and tokenizer.pad_id is None
    return save_policy(folder / "bare", tokenizer, **fields)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", ALL)
def test_a_tokenizer_without_chat_tokens(stage: str, tied: bool, tmp_path: Path, ends: Callable[..., str]) -> None:
    """The error offers to add them; then they are trained and exported, with the model's new rows."""
    folder = without_chat_tokens(tmp_path, tie_word_embeddings=tied)
    size = Tokenizer.load(folder).vocab_size
    lengths = {"sequence_length": 64, "max_dropped_share": 0.5}
    config = one_step(stage, tmp_path, init_from=folder, data=lengths)
    ends(config, "neither a chat template nor <|im_start|>", "data.add_chat_tokens true")
    config = one_step(stage, tmp_path, init_from=folder, data={**lengths, "add_chat_tokens": True})
    run_stage(config)
    model, tokenizer = load_model_folder(config.folder / "model")
    assert tokenizer.vocab_size == model.config.vocab_size == size + 3
    assert {tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.pad_id} == {size, size + 1, size + 2}
    assert (model.config.tie_word_embeddings, model.config.output) == (
        (tied, "tokens") if stage != "reward" else (False, "score")
    )
    rows = model.embedding.weight[size:]
    assert rows.isfinite().all()
    mean = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float().mean(0)
    assert not torch.equal(rows[tokenizer.im_start_id - size], mean)  # it has been trained
    torch.testing.assert_close(rows, mean.expand(3, -1), atol=0.02, rtol=0)  # from there, for one step
    export(ExportConfig(str(config.folder), output=str(tmp_path / "exported")))
    exported, _ = load_model_folder(tmp_path / "exported")
    assert torch.equal(exported.embedding.weight, model.embedding.weight)
    # a second stage finds them there
    if stage != "reward":
        again = one_step(stage, tmp_path, "again", init_from=config.folder, data=lengths)
        run_stage(again)
        assert again.model.vocab_size == size + 3


@pytest.mark.parametrize("stage", ALL)
def test_padding_that_ends_texts(stage: str, tmp_path: Path) -> None:
    """The end of a text and padding are one token, as in many published tokenizers; neither is told by its id."""
    folder = save_policy(tmp_path / "policy", chat_tokenizer())
    losses = []
    for pad in (False, True):
        if pad:
            path = folder / "tokenizer_config.json"
            values = json.loads(path.read_text())
            path.write_text(json.dumps({**values, "pad_token": values["eos_token"]}))
            path = folder / "tokenizer.json"
            path.write_text(path.read_text().replace("<|pad|>", "<|reserved|>"))
            tokenizer = Tokenizer.load(folder)
            assert tokenizer.pad_id == tokenizer.special_ids[values["eos_token"]]
        data = {"packing": False} if stage == "sft" else {}
        losses.append(run_stage(one_step(stage, tmp_path, f"pad_{pad}", data=data)).metrics)
    assert losses[0]["train/loss"] == losses[1]["train/loss"] and losses[0]["val/loss"] == losses[1]["val/loss"]


# rows


@pytest.mark.parametrize("stage", ALL)
def test_files_of_rows(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    def given(*paths: Path | str, **data: Any) -> Any:
        config = one_step(stage, tmp_path, data=data)
        config.data.paths = [str(path) for path in paths]
        return config

    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    good = "".join(json.dumps(row) + "\n" for row in rows_of(stage, 3))
    ends(given(), "data.paths is empty; give it files")
    ends(given(tmp_path / "nowhere.jsonl"), "data.paths", "nowhere.jsonl", "no such file")
    ends(given(written("a.txt", good)), "data.paths", "a.txt", ".jsonl")
    ends(given(written("empty.jsonl", "")), "empty.jsonl: no row there")
    ends(given(written("broken.jsonl", good + '{"prompt": ')), "broken.jsonl:4: broken JSON")
    ends(given(written("list.jsonl", good + "[1]\n")), "list.jsonl, row 4: the row is a list")
    ends(given(written("object.json", "{}")), "object.json: an object, not a list of rows")
    ends(given(written("other.jsonl", good + '{"question": "x"}\n')), "other.jsonl, row 4: ")
    ends(given(written("unknown.jsonl", '{"body": "x", "title": "y"}\n')), "unknown.jsonl, row 1: ")
    config = one_step(stage, tmp_path, data={"validation_paths": [str(tmp_path / "nothing.jsonl")]})
    ends(config, "data.validation_paths", "nothing.jsonl")


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_preferences_without_prompts(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    rows = [{"chosen": "b", "rejected": "c"}, *some_pairs(4)]
    ends(one_step(stage, tmp_path, rows=rows), "run.jsonl, row 1: no prompt", "add a field 'prompt'")
    for name in ("chosen", "rejected"):
        rows = [*some_pairs(4), {key: value for key, value in pair("f", "b", "c").items() if key != name}]
        ends(one_step(stage, tmp_path, rows=rows), f"run.jsonl, row 5: no field '{name}'")


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_pairs_that_teach_nothing(
    stage: str, tmp_path: Path, ends: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal answers, empty ones and those that a cut makes equal are left out and counted; too many are an error."""
    long = "b" * 60
    bad = [pair("ddd", "b", "b"), pair("ddd", "", "c"), pair("ddd", "b", "  "), pair("ddd", long + "d", long + "f")]
    rows = [*some_pairs(30), *bad]
    data = {"too_long": "truncate", "max_dropped_share": 0.2, "validation_fraction": 0.0}
    seen = one_step(stage, tmp_path, rows=rows, data=data)
    run_stage(seen)
    shown = " ".join(capsys.readouterr().err.split())
    assert "data.paths: 4 of 34 rows left out (11.8%)" in shown
    for reason in (
        "2 with an empty answer",
        "1 whose two answers are the same",
        "1 whose two answers are the same once",
    ):
        assert reason in shown
    assert "train: 30 rows" in shown
    assert "4 of 34 rows left out" in (seen.folder / "report.md").read_text()
    few = one_step(stage, tmp_path, "few", rows=rows, data={**data, "max_dropped_share": 0.1})
    ends(few, "data.paths: 11.8% of 34 rows are left out", "2 with an empty answer", "data.max_dropped_share 0.1")
    ends(
        one_step(stage, tmp_path, "none", rows=bad[:3]), "none.jsonl: all 3 rows are left out", "2 with an empty answer"
    )


def test_answers_that_teach_nothing(
    tmp_path: Path, ends: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty answers are left out, and those of which a cut leaves nothing; one that is cut off is counted."""
    bad = [talk("ddd", ""), talk("d" * 60, "b")]
    rows = [*(talk("ddd", letter * 3) for letter in "bcfghjk"), *bad, talk("ddd", "b" * 60)]
    data = {"too_long": "truncate", "max_dropped_share": 0.3, "validation_fraction": 0.0, "batch_size": 2}
    seen = one_step("sft", tmp_path, rows=rows, data=data)
    run_stage(seen)
    shown = " ".join(capsys.readouterr().err.split())
    assert "2 of 10 rows left out (20.0%): 1 with an empty answer, 1 without a token to learn once truncated" in shown
    assert "1 of 10 rows truncated (10.0%)" in shown and "train: 8 rows" in shown
    ends(one_step("sft", tmp_path, "few", rows=rows, data={**data, "max_dropped_share": 0.1}), "20.0% of 10 rows")
    longest = one_step("sft", tmp_path, "long", rows=rows, data={**data, "too_long": "drop", "max_dropped_share": 0.2})
    ends(longest, "30.0% of 10 rows", "longer than data.sequence_length 48", "row 9 with", "row 10 with")


@pytest.mark.parametrize("stage", ALL)
def test_rows_that_are_all_too_long(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    config = one_step(stage, tmp_path, data={"sequence_length": 5})
    ends(config, "data.paths: 100.0% of 60 rows are left out", "longer than data.sequence_length 5", "row ")
    config = one_step(stage, tmp_path, data={"sequence_length": 5, "max_dropped_share": 1.0})
    ends(config, "all 60 rows are left out: 60 longer than data.sequence_length 5; give other files")


# the run


@pytest.mark.parametrize("stage", ALL)
def test_options(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    config = one_step(stage, tmp_path, schedule={"warmup_steps": 1})
    ends(
        config, "there is no option data.packng; the nearest is data.pa", status=2, arguments=("--data.packng", "true")
    )
    ends(config, "schedule.warmup_steps 9 is more than", arguments=("--schedule.warmup_steps", "9"), status=2)
    long = one_step(stage, tmp_path, schedule={"warmup_steps": 9}, trainer={"max_steps": 20}, epochs=0.1)
    ends(long, "schedule.warmup_steps 9 is more than trainer.max_steps 1")
    ends(config, "model.num_layers has no effect", arguments=("--model.num_layers", "7"))


@pytest.mark.parametrize("stage", ALL)
def test_a_used_run_folder_and_another_model(stage: str, tmp_path: Path, ends: Callable[..., str]) -> None:
    first = one_step(stage, tmp_path, lora={"rank": 2})
    run_stage(first)
    ends(one_step(stage, tmp_path, lora={"rank": 2}), "already holds a finished run at step 1", "--overwrite true")
    more = {"trainer": {"max_steps": 2}, "ckpt_path": "last"}
    for name, lora in {
        "targets": {"rank": 2, "targets": ["q_proj"]},
        "rank": {"rank": 3},
        "alpha": {"rank": 2, "alpha": 1.0},
    }.items():
        refuses_to_resume(one_step(stage, tmp_path, lora=lora, **more), f"another adapter: its lora.{name} is ")
    refuses_to_resume(one_step(stage, tmp_path, **more), "another adapter: its lora.rank is 2 (this run: 0)")
    # what an earlier run with an adapter left goes, too
    run_stage(one_step(stage, tmp_path, overwrite=True))
    assert not (first.folder / "adapter").exists()


def refuses_to_resume(config: Any, part: str) -> None:
    """A resume is refused once the data has been shown; the run's files stay."""
    before = {name: text for name, text in contents(config.folder).items() if "tensorboard" not in name}
    with pytest.raises(UserError) as error:
        run_stage(config)
    assert part in str(error.value) and "\n" not in str(error.value)
    after = contents(config.folder)
    assert {name: after[name] for name in before} == before
