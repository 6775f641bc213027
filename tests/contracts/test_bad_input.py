"""What is wrong with an input is said in one line, and nothing that was already written is lost."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeRun

from lit_llm.cli import main
from lit_llm.cli.generate import generate
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
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer


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
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"one \xff two \xc3( three \xe2\x82 end\n")
    corpus = Corpus(CorpusConfig(path=str(tmp_path / "texts"), validation_fraction=0.0))
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


def test_what_is_given_where_shards_are_wanted_is_named(copied: Path, tmp_path: Path, make_run: MakeRun) -> None:
    texts = tmp_path / "texts" / "deep"
    texts.mkdir(parents=True)
    (texts / "a.txt").write_text("some text")
    run = tmp_path / "some_run"
    (run / "model").mkdir(parents=True)
    for name in ("config.yaml", "model/config.json", "model/tokenizer.json"):
        (run / name).write_text("{}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "progress.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    command = "experiments/prepare_data.py --corpus.path {} --tokenizer"
    for path, *parts in (
        (texts / "a.txt", "is text: run", command, "give --data.paths '[SHARDS]'"),
        (tmp_path / "texts", "is text: run", command),
        (f"{texts}/*.txt", "is text: run", command),
        ("hf:some/corpus", "is text: run", command),
        (run, "is a run, not shards; go on from its model with --init_from {}"),
        (run / "model", "is a model folder, not shards", "--init_from {}"),
        (copied / "tokenizer", "is a tokenizer, not shards", "--tokenizer {} --output SHARDS"),
        (copied / "validation", f"is one split; give the folder above it, {copied}"),
        (copied / "train" / "shard_00000.npy", f"is one shard; give the folder above its split, {copied}"),
        (tmp_path / "begun", "has the shards of an interrupted preparation; run experiments/prepare_data.py again"),
        (tmp_path / "empty", "there are no shards at {}; run experiments/prepare_data.py --output {}"),
    ):
        # also where it is not the first, whose tokenizer is read
        for paths in ([str(path)], [str(copied), str(path)]):
            config = make_run(data={"paths": paths})
            refused(
                lambda config=config: pretrain(config), *(part.replace("{}", shlex.quote(str(path))) for part in parts)
            )
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
    run = make_run(data={"paths": [str(copied)]}, optimizer={"name": "muon"})
    recipe.write_text(yaml.safe_dump(to_plain(run)))
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
