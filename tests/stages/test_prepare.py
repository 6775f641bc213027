"""Corpus to shards: what they hold, what an interruption leaves, what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from lit_llm.config import CorpusConfig, PrepareConfig, RemoteConfig, TokenizerTrainingConfig, UserError
from lit_llm.data.corpus.documents import Corpus, Document
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.remote_shards import open_split
from lit_llm.data.corpus.shards import ShardedTokens, ShardWriter
from lit_llm.evaluation.token_windows import TextSource, WindowOptions
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer, train_bpe, train_character
from lit_llm.tokenizer.alphabet import BYTE_TO_CHARACTER
from lit_llm.tokenizer.tokenizer import byte_level

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 short documents, some not ASCII."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rng = random.Random(0)
    words = ["the", "naïve", "cat", "sat", "on", "日本", "mat", "and", "\n"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 80))) + f" {number}" for number in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    train_character(texts).save(folder)
    return folder


def options(corpus: Path, tokenizer: Path, output: Path, **values: Any) -> PrepareConfig:
    source = CorpusConfig(path=str(corpus), validation_fraction=0.2, test_fraction=values.pop("test_fraction", 0.1))
    return PrepareConfig(source, str(tokenizer), str(output), **{"shard_tokens": 10_000, **values})


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_shards_hold_the_documents_of_each_split_in_order(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = options(corpus, tokenizer, tmp_path)
    manifests = prepare_data(config)
    reader = Tokenizer.load(tmp_path / "tokenizer")
    documents = list(Corpus(config.corpus).documents())
    assert set(manifests) == set(SPLITS)
    for split, manifest in manifests.items():
        texts = [document.text for document in documents if document.split == split]
        source = ShardedTokens(tmp_path / split)
        source.verify()
        source.check_tokenizer(reader)
        expected = [token for text in texts for token in [*reader.encode(text), reader.eot_id]]
        assert source.read(0, len(source)).tolist() == expected
        assert Manifest.load(tmp_path / split) == manifest
        assert manifest.documents == len(texts) > 0
        assert manifest.bytes == sum(len(text.encode()) for text in texts)
        assert (manifest.dtype, manifest.eot_id, manifest.pad_id) == ("uint16", reader.eot_id, reader.pad_id)
        assert manifest.corpus["path"] == str(corpus)
    # Shards are closed together, each time about shard_tokens tokens have come in all.
    total = sum(manifest.tokens for manifest in manifests.values())
    assert len(manifests["train"].shards) == -(-total // 10_000) >= 5
    assert not (tmp_path / "progress.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_do_not_change_the_bytes(corpus: Path, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    train_bpe(texts, 300, show_progress=False).save(tmp_path / "bpe")
    for workers in (None, 1, 2):
        prepare_data(options(corpus, tmp_path / "bpe", tmp_path / str(workers), num_workers=workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(tmp_path / "None")


def test_pieces_of_one_document_have_one_end_of_text(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    text = corpus.read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    source = CorpusConfig(path=str(tmp_path / "text.txt"), split="tail", validation_fraction=0.1)
    manifests = prepare_data(PrepareConfig(source, str(tokenizer), str(tmp_path / "out"), shard_tokens=1000))
    reader = Tokenizer.load(tokenizer)
    parts = []
    for split in ("train", "validation"):
        tokens = ShardedTokens(tmp_path / "out" / split).read(0, manifests[split].tokens)
        assert np.flatnonzero(tokens == reader.eot_id).tolist() == [len(tokens) - 1]
        assert manifests[split].documents == 1
        parts.append(reader.decode(tokens[:-1]))
    assert "".join(parts) == text


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_documents_of_one_text_file_are_counted_and_an_interruption_changes_nothing(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    texts = [json.loads(line)["text"] + "\n" for line in corpus.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "several.txt"
    path.write_text("<|endoftext|>\n".join(texts), encoding="utf-16")
    source = CorpusConfig(str(path), split=split, validation_fraction=0.2)
    monkeypatch.setattr("lit_llm.stages.prepare.Corpus", partial(Corpus, piece_bytes=1000))
    monkeypatch.setattr("lit_llm.data.corpus.preparation._BATCH_CHARACTERS", 500)

    def config(name: str) -> PrepareConfig:
        return PrepareConfig(source, str(tokenizer), str(tmp_path / name), shard_tokens=5000)

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", interrupted_at(200))
        with pytest.raises(Interruption):
            prepare_data(config("parts"))
    prepare_data(config("parts"))
    manifests = prepare_data(config("whole"))
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    found = {}
    for name, manifest in manifests.items():
        tokens = ShardedTokens(tmp_path / "whole" / name).read(0, manifest.tokens)
        parts = np.split(tokens, np.flatnonzero(tokens == manifest.eot_id) + 1)[:-1]
        found[name] = [Tokenizer.load(tokenizer).decode(part[:-1]) for part in parts]
        assert manifest.documents == len(parts) > 10
    if split == "hash":
        assert sorted(found["train"] + found["validation"]) == sorted(texts)
        assert manifests["train"].documents + manifests["validation"].documents == 400
    else:
        assert "".join(found["train"] + found["validation"]) == "".join(texts)
        assert manifests["train"].documents + manifests["validation"].documents in (400, 401)


def test_documents_end_at_the_marker_of_a_foreign_tokenizer(tmp_path: Path) -> None:
    """In shards and in what is evaluated: </s> where that is the tokenizer's end of a text."""
    bytes_only = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(BYTE_TO_CHARACTER)}, merges=[])
    tokenizer = Tokenizer(byte_level(bytes_only, ["</s>"]), {"eos_token": "</s>"})
    tokenizer.save(tmp_path / "tokenizer")
    path = tmp_path / "a.txt"
    path.write_text("one</s>\ntwo</s>three")
    source = CorpusConfig(str(path), validation_fraction=0.0)
    manifest = prepare_data(PrepareConfig(source, str(tmp_path / "tokenizer"), str(tmp_path / "out")))["train"]
    ids = ShardedTokens(tmp_path / "out/train").read(0, manifest.tokens).tolist()
    assert manifest.documents == 3 and ids == [
        *tokenizer.encode("one"),
        256,
        *tokenizer.encode("two"),
        256,
        *tokenizer.encode("three"),
        256,
    ]
    windows = list(TextSource(str(path)).windows(tokenizer, WindowOptions(100, 100)))
    assert [tokenizer.decode(window.targets) for window in windows] == ["one</s>", "two</s>", "three</s>"]


class Interruption(Exception):
    """Stands for whatever ends a run from outside."""


def interrupted_at(end: int) -> Callable[[Corpus, int], Iterator[Document]]:
    """`Corpus.documents` that is interrupted after so many documents."""
    original = Corpus.documents

    def documents(self: Corpus, skip: int = 0) -> Iterator[Document]:
        for number, document in enumerate(original(self, skip)):
            if number == end:
                raise Interruption
            yield document

    return documents


@pytest.mark.parametrize("after", [0, 1, 150, 399])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    prepare_data(options(corpus, tokenizer, tmp_path / "whole"))
    config = options(corpus, tokenizer, tmp_path / "parts")
    original = Corpus.documents
    read = []

    def counted(self: Corpus, skip: int = 0) -> Iterator[Document]:
        for document in original(self, skip):
            read.append(document)
            yield document

    monkeypatch.setattr("lit_llm.data.corpus.preparation._BATCH_CHARACTERS", 500)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", interrupted_at(after))
        with pytest.raises(Interruption):
            prepare_data(config)
    assert (tmp_path / "parts" / "progress.json").exists()
    assert not list((tmp_path / "parts").rglob("*.tmp"))
    monkeypatch.setattr(Corpus, "documents", counted)
    prepare_data(config)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    committed = 400 - len(read)
    assert committed <= after
    assert committed > 0 or after < 150


def test_a_killed_process_goes_on_to_the_same_bytes(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    prepare_data(options(corpus, tokenizer, tmp_path / "whole", shard_tokens=2000))
    config = options(corpus, tokenizer, tmp_path / "killed", shard_tokens=2000)
    # The documents come slowly, so that there is a middle in which to kill it.
    code = f"""
import time
from lit_llm.config import CorpusConfig, PrepareConfig
from lit_llm.data.corpus import preparation
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.data.corpus.documents import Corpus
original = Corpus.documents
def slowly(self, skip=0):
    for document in original(self, skip):
        time.sleep(0.01)
        yield document
Corpus.documents = slowly
preparation._BATCH_CHARACTERS = 500
prepare_data({config!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    third, temporary = tmp_path / "killed/train/shard_00002.npy", tmp_path / "killed/train/shard_00003.npy.tmp"
    while process.poll() is None and not (third.exists() and temporary.exists()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/train/manifest.json").exists()
    prepare_data(config)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_shards_that_were_closed_but_not_recorded_are_written_again(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data(options(corpus, tokenizer, tmp_path / "whole"))
    config = options(corpus, tokenizer, tmp_path / "parts")
    original = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if Path(target).name == "progress.json" and (tmp_path / "parts/train/shard_00001.npy").exists():
            raise Interruption
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Interruption):
            prepare_data(config)
    progress = json.loads((tmp_path / "parts/progress.json").read_text())
    assert [shard["file"] for shard in progress["shards"]["train"]] == ["shard_00000.npy"]
    assert (tmp_path / "parts/train/shard_00001.npy").exists()
    prepare_data(config)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.jsonl"])
def test_a_run_begun_with_other_files_is_not_gone_on_with(
    name: str, corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that are there already are skipped by their number."""
    folder, out = tmp_path / "texts", tmp_path / "out"
    folder.mkdir()
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]

    def write() -> None:
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
        else:
            data = "\n".join(map(json.dumps, rows)).encode()
            (folder / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)

    write()
    monkeypatch.setattr("lit_llm.data.corpus.preparation._BATCH_CHARACTERS", 500)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", interrupted_at(200))
        with pytest.raises(Interruption):
            prepare_data(options(folder, tokenizer, out, shard_tokens=1000))
    before = (folder / name).stat()
    rows[0], rows[1] = rows[1], rows[0]  # as many bytes
    write()
    refused = r"begun with other files of corpus.path \(their names, sizes or times differ\).*--overwrite true"
    with pytest.raises(UserError, match=refused):
        prepare_data(options(folder, tokenizer, out, shard_tokens=1000))
    rows[0], rows[1] = rows[1], rows[0]
    write()
    os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    manifests = prepare_data(options(folder, tokenizer, out, shard_tokens=1000))
    assert sum(manifest.documents for manifest in manifests.values()) == 400


def test_a_run_begun_with_other_options_is_not_gone_on_with(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Corpus, skip: int = 0) -> Iterator[Document]:
        raise Interruption
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", interrupted)
        with pytest.raises(Interruption):
            prepare_data(options(corpus, tokenizer, tmp_path / "out"))
    with pytest.raises(UserError, match=r"begun with other options \(shard_tokens differ\).*--overwrite true"):
        prepare_data(options(corpus, tokenizer, tmp_path / "out", shard_tokens=999))
    with pytest.raises(UserError, match=r"\(corpus differ\)"):
        prepare_data(options(corpus, tokenizer, tmp_path / "out", test_fraction=0.0))
    train_character(["abc"]).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"\(tokenizer differ\)"):
        prepare_data(options(corpus, tmp_path / "other", tmp_path / "out"))
    prepare_data(options(corpus, tokenizer, tmp_path / "out", shard_tokens=999, overwrite=True))
    assert ShardedTokens(tmp_path / "out" / "train").manifest.shards[0].tokens < 2000


def test_a_complete_folder_is_replaced_only_when_asked(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    prepare_data(options(corpus, tokenizer, tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(UserError, match=r"already holds finished shards.*--overwrite true"):
        prepare_data(options(corpus, tokenizer, tmp_path))
    # That is said before the corpus is read.
    with pytest.raises(UserError, match=r"already holds finished shards"):
        prepare_data(options(Path("nowhere"), tokenizer, tmp_path))
    assert digests(tmp_path) == before
    # The tokenizer of the folder itself may encode it again; without a test share its old test split goes.
    prepare_data(
        options(corpus, tmp_path / "tokenizer", tmp_path, overwrite=True, shard_tokens=10**9, test_fraction=0.0)
    )
    assert len(Manifest.load(tmp_path / "train").shards) == 1
    assert not (tmp_path / "test").exists()
    (tmp_path / "test").mkdir()  # as where something else has emptied it
    assert open_split(str(tmp_path), "test", RemoteConfig()) is None
    (tmp_path / "test" / "shard_00000.npy").touch()
    with pytest.raises(UserError, match=r"test has no manifest\.json"):
        open_split(str(tmp_path), "test", RemoteConfig())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_too_few_documents_for_a_split_are_refused_before_anything_is_made(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    for fraction, split in [(0.0001, "validation"), (0.9999, "train")]:
        corpus = CorpusConfig(path=str(path), split="hash", validation_fraction=fraction)
        with pytest.raises(UserError, match=rf"the {split} split of .*two.jsonl is empty \(2 documents in all\)"):
            prepare_data(PrepareConfig(corpus, str(tokenizer), str(tmp_path / "shards")))
        with pytest.raises(UserError, match=rf"the {split} split of .*two.jsonl is empty"):
            train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=260, output=str(tmp_path / "trained")))
    assert [file.name for file in tmp_path.iterdir()] == ["two.jsonl"]


LEAKS = "may have been trained on text that is held out here"


@pytest.mark.parametrize(
    ("trained", "prepared", "told"),
    [
        ({}, {}, None),
        ({"split": "tail"}, {}, None),  # which auto comes to, with two files
        ({"validation_fraction": 0.4}, {}, None),
        ({"validation_fraction": 0.2, "test_fraction": 0.1}, {"validation_fraction": 0.3}, None),
        (
            {"validation_fraction": 0.0},
            {},
            "corpus.validation_fraction 0.0 there, 0.2 here",
        ),
        (
            {"split": "hash", "validation_fraction": 0.6},
            {},
            "corpus.split hash there, tail here",
        ),
        (
            {"validation_fraction": 0.1},
            {},
            "corpus.validation_fraction 0.1 there, 0.2 here",
        ),
        (
            {"test_fraction": 0.1},
            {"test_fraction": 0.2},
            "corpus.test_fraction 0.1 there, 0.2 here",
        ),
        ({"validation_fraction": 0.1}, {"validation_fraction": 0.0}, None),
        ({"path": "{texts}/*.txt"}, {}, None),
        ({"path": "{texts}/a.txt", "split": "tail"}, {"split": "tail"}, None),
        ({"path": "{other}"}, {"validation_fraction": 0.5}, None),
        ({"document_separator": "w", "split": "tail"}, {}, "corpus.document_separator w there, auto here"),
        (
            {"path": "{texts}/..", "split": "hash", "validation_fraction": 0.6},
            {"split": "hash", "validation_fraction": 0.55},
            "corpus.path {texts}/.. there, {texts} here",
        ),
    ],
)
def test_what_lets_held_out_text_into_the_tokenizer_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: dict[str, Any],
    prepared: dict[str, Any],
    told: str | None,
) -> None:
    places = {"texts": tmp_path / "all" / "texts", "other": tmp_path / "other"}
    for folder in places.values():
        folder.mkdir(parents=True)
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text("twelve words " * 20)

    def corpus(options: dict[str, Any]) -> CorpusConfig:
        path = options.get("path", "{texts}").format(**places)
        return CorpusConfig(**{"validation_fraction": 0.2, **options, "path": path})

    output = tmp_path / "tokenizer"
    train_tokenizer(TokenizerTrainingConfig(corpus(trained), kind="character", output=str(output)))
    capsys.readouterr()
    prepare_data(PrepareConfig(corpus(prepared), str(output), str(tmp_path / "shards")))
    lines = [line for line in capsys.readouterr().err.splitlines() if LEAKS in line]
    expected = told and (
        f"the tokenizer in {output} {LEAKS} ({told.format(**places)}); train it again with the corpus options of this "
        "command"
    )
    assert lines == ([expected] if told else [])
    # The record goes along with the tokenizer, whose copy may be used as the first was.
    assert (tmp_path / "shards/tokenizer/training.json").read_bytes() == (output / "training.json").read_bytes()
    assert Manifest.load(tmp_path / "shards/train").corpus["split"] != "auto"


def test_a_damaged_progress_file_and_a_lost_shard(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(corpus, tokenizer, tmp_path, shard_tokens=1000)
    monkeypatch.setattr("lit_llm.data.corpus.preparation._BATCH_CHARACTERS", 500)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", interrupted_at(300))
        with pytest.raises(Interruption):
            prepare_data(config)
    (tmp_path / "train" / "shard_00001.npy").unlink()
    with pytest.raises(UserError, match=r"shard_00001.npy is gone; start again with --overwrite true"):
        prepare_data(config)
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(UserError, match=r"progress.json is damaged"):
        prepare_data(config)


def test_a_full_disk_loses_nothing_that_was_finished(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a umask of its own, which every file obeys, those written before and after it was full."""
    config = options(corpus, tokenizer, tmp_path / "parts", shard_tokens=2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = ShardWriter.append

    def filling(self: ShardWriter, *arguments: Any) -> None:
        if self.path.name == "shard_00003.npy":
            resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
        original(self, *arguments)

    umask = os.umask(0o027)
    try:
        prepare_data(options(corpus, tokenizer, tmp_path / "whole", shard_tokens=2000))
        with monkeypatch.context() as patch:
            patch.setattr(ShardWriter, "append", filling)
            with pytest.raises(UserError, match=r"cannot write .*shard_00003\.npy: File too large; finished"):
                prepare_data(config)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "parts/train/shard_00002.npy").exists()
        assert not list((tmp_path / "parts").rglob("*.tmp"))
        prepare_data(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.umask(umask)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "parts").rglob("*.*")} == {0o640}


def test_what_cannot_be_written_or_read(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        prepare_data(options(corpus, tokenizer, tmp_path / "file"))
    with pytest.raises(UserError, match=r"no such tokenizer folder"):
        prepare_data(options(corpus, tmp_path / "nowhere", tmp_path / "out"))
