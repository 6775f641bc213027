"""What is wrong with an input is said in one line, and nothing that was already written is lost."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import MakeRun
from run_files import assert_identical
from test_resume import final_state

from lit_llm.cli import main
from lit_llm.cli.stages import generate, prepare_data, pretrain, train_tokenizer
from lit_llm.config import (
    CorpusConfig,
    GenerateConfig,
    PrepareConfig,
    PretrainConfig,
    SamplingConfig,
    TokenizerTrainingConfig,
    UserError,
    to_plain,
)
from lit_llm.data.corpus import Corpus
from lit_llm.data.shards import ShardedTokens
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint import saved_checkpoints


def refused(run: Callable[[], Any], *parts: str) -> str:
    """The message of the UserError that `run` must end in: one line that has all `parts`."""
    with pytest.raises(UserError) as error:
        run()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """Shards that may be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


# the corpus


def test_an_empty_corpus(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("")
    corpus = CorpusConfig(path=str(tmp_path / "texts"))
    output = tmp_path / "shards"
    refused(
        lambda: prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(output))),
        "no document has text (2 empty, 0 binary)",
        "corpus.path",
    )
    refused(
        lambda: train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=300, output=str(tmp_path / "tok"))),
        "no document has text",
    )
    assert not (tmp_path / "tok").exists() and not list(output.rglob("*.npy"))


def test_a_corpus_smaller_than_a_window(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    (tmp_path / "text.txt").write_text("three little words")
    corpus = CorpusConfig(path=str(tmp_path / "text.txt"), validation_fraction=0.0)
    output = tmp_path / "shards"
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(output)))
    config = make_run(data={"paths": [str(output)]})
    refused(lambda: pretrain(config), "one window needs 33", "lower data.sequence_length or use more text")
    assert not config.folder.exists()


def test_a_vocabulary_that_the_corpus_cannot_fill(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abab abab abab\n" * 3)
    corpus = CorpusConfig(path=str(tmp_path / "text.txt"), validation_fraction=0.0)
    config = TokenizerTrainingConfig(corpus, vocab_size=5000, output=str(tmp_path / "tok"))
    message = refused(lambda: train_tokenizer(config), "the corpus supports only", "set vocab_size to")
    size = int(re.search(r"only (\d+) tokens", message).group(1))  # type: ignore[union-attr]
    train_tokenizer(replace(config, vocab_size=size))
    assert Tokenizer.load(tmp_path / "tok").vocab_size == size


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"one \xff two \xc3( three \xe2\x82 end\n")
    corpus = Corpus(CorpusConfig(path=str(tmp_path / "text.txt"), validation_fraction=0.0))
    text = "".join(document.text for document in corpus.documents())
    # a lone byte, a lead byte without its second, and two bytes of a character of three
    assert corpus.counts.replaced_bytes == 4
    assert text.startswith("one \ufffd two \ufffd( three \ufffd")
    output = tmp_path / "shards"
    prepare_data(PrepareConfig(corpus.config, tokenizer=str(shards / "tokenizer"), output=str(output)))
    tokens = ShardedTokens(output / "train")
    tokenizer = Tokenizer.load(output / "tokenizer")
    assert tokenizer.decode(tokens.read(0, len(tokens)).tolist(), skip_special=True) == text
    assert tokens.manifest.bytes == len(text.encode()) == corpus.counts.bytes


# the shards


def test_no_shards(tmp_path: Path, make_run: MakeRun) -> None:
    config = make_run(data={"paths": [str(tmp_path / "nowhere")]})
    refused(lambda: pretrain(config), str(tmp_path / "nowhere"))
    config = make_run(data={"paths": []})
    refused(lambda: pretrain(config), "data.paths is empty", "prepare_data.py")
    assert not config.folder.exists()


def test_a_tokenizer_that_is_not_the_shards_own(copied: Path, corpus_folder: Path, make_run: MakeRun) -> None:
    corpus = CorpusConfig(path=str(corpus_folder))
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=300, output=str(copied / "tokenizer"), overwrite=True))
    config = make_run(data={"paths": [str(copied)]})
    refused(lambda: pretrain(config), "was encoded with another tokenizer", str(copied / "train"))
    assert not config.folder.exists()


def test_a_truncated_shard(copied: Path, make_run: MakeRun) -> None:
    shard = copied / "train" / "shard_00000.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    config = make_run(data={"paths": [str(copied)]})
    refused(lambda: pretrain(config), str(shard), "truncated")
    assert not config.folder.exists()


def test_a_flipped_bit(copied: Path, make_run: MakeRun) -> None:
    shard = copied / "validation" / "shard_00000.npy"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    config = make_run(data={"paths": [str(copied)]})
    refused(lambda: pretrain(config), str(shard), "does not match the sha256")
    # once it is repaired the same command starts the run
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    pretrain(config)


def test_a_vocabulary_smaller_than_the_tokenizer(make_run: MakeRun) -> None:
    config = make_run(model={"vocab_size": 399})
    refused(lambda: pretrain(config), "model.vocab_size 399 is smaller than the tokenizer's 400")
    assert not config.folder.exists()


def test_windows_longer_than_the_context(make_run: MakeRun) -> None:
    refused(lambda: make_run(data={"sequence_length": 33}), "data.sequence_length 33", "max_position_embeddings 32")
    first = make_run("first", trainer={"max_steps": 2})
    pretrain(first)
    # the options of the model are not those of the folder, which alone count
    longer = make_run(
        "longer",
        init_from=str(first.folder / "model"),
        data={"sequence_length": 64},
        model={"max_position_embeddings": 128},
    )
    refused(lambda: pretrain(longer), "64", "32")


def test_a_batch_that_does_not_divide(make_run: MakeRun) -> None:
    refused(lambda: make_run(data={"micro_batch_size": 3}), "data.batch_size 4", "data.micro_batch_size 3")
    config = make_run(trainer={"devices": 3})
    refused(lambda: pretrain(config), "data.batch_size 4 does not divide by 3 devices; use a multiple of 3")


# run folders


def test_a_used_run_folder(make_run: MakeRun) -> None:
    finished = make_run("finished", trainer={"max_steps": 2})
    pretrain(finished)
    before = contents(finished.folder)
    ways = ("--ckpt_path last", "--overwrite true", "--run_name")
    refused(lambda: pretrain(make_run("finished")), "already holds a finished run at step 2", *ways)
    half = make_run("half")
    with pytest.raises(ZeroDivisionError):
        pretrain(half, callbacks=[At(5, divide)])
    refused(lambda: pretrain(make_run("half")), "already holds a half-finished run at step 4", *ways)
    empty = make_run("empty")
    with pytest.raises(ZeroDivisionError):
        pretrain(empty, callbacks=[At(1, divide)])
    refused(lambda: pretrain(make_run("empty")), "already holds a half-finished run without a checkpoint", *ways)
    assert contents(finished.folder) == before


def test_overwrite_replaces_the_run_and_nothing_else(make_run: MakeRun) -> None:
    first = make_run(trainer={"max_steps": 6})
    pretrain(first)
    (first.folder / "notes.txt").write_text("mine")
    (first.folder / "plots").mkdir()
    (first.folder / "plots" / "a.png").write_bytes(b"picture")
    second = make_run(trainer={"max_steps": 3, "save_every_n_steps": None}, overwrite=True)
    pretrain(second)
    assert (first.folder / "notes.txt").read_text() == "mine"
    assert (first.folder / "plots" / "a.png").read_bytes() == b"picture"
    assert list(saved_checkpoints(second.folder / "checkpoints")) == [3]
    saved = yaml.safe_load((second.folder / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 3 and saved["overwrite"] is False


def test_last_without_a_run_starts_one(make_run: MakeRun) -> None:
    config = make_run(ckpt_path="last", trainer={"max_steps": 2})
    pretrain(config)
    assert final_state(config)["global_step"] == 2


# checkpoints


class At(L.Callback):
    """Does something at the start of the n-th micro-batch of this process."""

    def __init__(self, number: int, what: Callable[[L.LightningModule], Any]) -> None:
        self.number, self.what, self.seen = number, what, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen += 1
        if self.seen == self.number:
            self.what(pl_module)


def divide(module: L.LightningModule) -> None:
    """A bug."""
    raise ZeroDivisionError


def test_a_missing_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(ckpt_path=str(tmp_path / "step_00000009.ckpt"))
    refused(lambda: pretrain(config), "there is no checkpoint", "step_00000009.ckpt", "--ckpt_path last")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    damage: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = make_run("straight")
    pretrain(straight)
    config = make_run("damaged")
    with pytest.raises(ZeroDivisionError):
        pretrain(config, callbacks=[At(5, divide)])
    older, newest = (config.folder / "checkpoints" / f"step_0000000{step}.ckpt" for step in (2, 4))
    go_on = "last"
    if damage == "other":
        torch.save({"weights": torch.ones(3)}, newest)
        refused(lambda: pretrain(make_run("damaged", ckpt_path="last")), str(newest))
        go_on = str(older)
    else:
        whole = newest.read_bytes()
        newest.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not a checkpoint", "empty": b""}[damage])
        refused(lambda: pretrain(make_run("damaged", ckpt_path=str(newest))), str(newest))
    resumed = make_run("damaged", ckpt_path=go_on)
    pretrain(resumed)
    assert (f"warning: {newest} is damaged (" in capsys.readouterr().err) == (damage != "other")
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])


def test_a_checkpoint_of_another_model(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 2})
    pretrain(config)
    before = {name: content for name, content in contents(config.folder).items() if "tensorboard" not in name}
    wider = make_run(model={"intermediate_size": 96, "qk_norm": True}, ckpt_path="last")
    refused(
        lambda: pretrain(wider),
        "the checkpoint is of another model",
        "intermediate_size 64 (this run: 96)",
        "qk_norm False (this run: True)",
    )
    # config.yaml is still that of the run
    after = contents(config.folder)
    assert len(before) > 5 and {name: after[name] for name in before} == before


def test_a_checkpoint_of_other_data(make_run: MakeRun) -> None:
    pretrain(make_run(trainer={"max_steps": 2}))
    refused(
        lambda: pretrain(make_run(data={"sequence_length": 16}, ckpt_path="last")),
        "data.sequence_length (from 32 to 16) changed",
        "init_from",
    )


@contextmanager
def largest_file(size: int) -> Iterator[Callable[[], None]]:
    """Gives a function after which no file grows beyond `size` bytes, as on a full disk, and takes that back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_a_checkpoint_is_written(make_run: MakeRun) -> None:
    straight = make_run("straight")
    pretrain(straight)
    config = make_run("full")
    with largest_file(100_000) as limit:
        message = refused(lambda: pretrain(config, callbacks=[At(3, lambda module: limit())]), "cannot write")
    folder = config.folder / "checkpoints"
    assert str(folder / "step_00000004.ckpt") in message and "earlier checkpoints are intact" in message
    assert [path.name for path in folder.iterdir()] == ["step_00000002.ckpt"]
    assert (folder / "step_00000002.ckpt").stat().st_size > 100_000
    resumed = make_run("full", ckpt_path="last")
    pretrain(resumed)
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("micro", [None, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float, micro: int | None, make_run: MakeRun) -> None:
    """One number of a norm goes bad before step 4; the others must stay what they were."""
    kept: dict[str, torch.Tensor] = {}
    modules = []

    def spoil(module: L.LightningModule) -> None:
        kept.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
        modules.append(module)
        with torch.no_grad():
            module.model.final_norm.weight[0] = value

    data = {"micro_batch_size": micro}
    config = make_run(data=data, trainer={"save_every_n_steps": 1, "keep_last_checkpoints": 9})
    first_of_step_4 = 3 * (4 // (micro or 4)) + 1
    refused(
        lambda: pretrain(config, callbacks=[At(first_of_step_4, spoil)]),
        "of step 4 is not finite",
        "optimizer.learning_rate",
    )
    now = modules[0].state_dict()
    changed = [name for name in kept if not torch.equal(now[name], kept[name])]
    assert changed == ["model.final_norm.weight"]
    assert list(saved_checkpoints(config.folder / "checkpoints")) == [1, 2, 3]
    weights = final_state(config)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    # and the run goes on from there as if nothing had been
    straight = make_run("straight", data=data)
    pretrain(straight)
    resumed = make_run(data=data, ckpt_path="last")
    pretrain(resumed)
    assert_identical(final_state(resumed)["state_dict"], final_state(straight)["state_dict"])


# model folders


def test_a_prompt_longer_than_the_context(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 2})
    pretrain(config)
    asked = GenerateConfig(str(config.folder), ["word " * 100], sampling=SamplingConfig(max_new_tokens=3))
    refused(lambda: generate(asked), "leaves no room in the context of 32 tokens")


def test_what_is_not_a_model_folder(make_run: MakeRun, tmp_path: Path) -> None:
    for given in (tmp_path / "nowhere", tmp_path):
        refused(lambda given=given: generate(GenerateConfig(str(given))), f"{given} is not a model folder")
        config = make_run("fresh", init_from=str(given))
        refused(lambda config=config: pretrain(config), "is not a model folder")
        assert not config.folder.exists()
    source = make_run("source", trainer={"max_steps": 2})
    pretrain(source)
    folder = source.folder / "model"
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(lambda: pretrain(make_run("fresh", init_from=str(folder))), "model_type 'bert'")


# through the scripts' entrance


def test_scripts_print_one_line_and_exit_with_1(
    make_run: MakeRun, tmp_path: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = copied / "train" / "shard_00000.npy"
    shard.write_bytes(shard.read_bytes()[:-2])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(make_run(data={"paths": [str(copied)]}))))
    missing = str(tmp_path / "missing")
    cases: list[tuple[type, Callable[[Any], Any], list[str], str]] = [
        (PretrainConfig, pretrain, ["--config", str(recipe)], str(shard)),
        (PretrainConfig, pretrain, [], "data.paths is empty"),
        (GenerateConfig, generate, ["--model", missing], missing),
        (PrepareConfig, prepare_data, ["--corpus.path", missing, "--tokenizer", str(copied / "tokenizer")], missing),
        (PrepareConfig, prepare_data, ["--tokenizer", missing], missing),
        (TokenizerTrainingConfig, train_tokenizer, ["--corpus.path", missing], missing),
    ]
    for kind, run, arguments, part in cases:
        with pytest.raises(SystemExit) as stopped:
            main(kind, run, arguments)
        printed = capsys.readouterr()
        assert stopped.value.code == 1
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and part in printed.err
