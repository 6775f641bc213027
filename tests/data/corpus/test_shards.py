"""Shards: round trip, boundaries, open files, damage."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from shard_files import write_split

from lit_llm.config import UserError
from lit_llm.data.corpus import shards as module
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.shards import ShardedTokens, ShardWriter


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, 1000)


@pytest.fixture
def folder(tmp_path: Path, tokens: np.ndarray) -> Path:
    write_split(tmp_path / "train", np.split(tokens, [300, 307, 650]))
    return tmp_path / "train"


def test_files_are_plain_npy_and_sha256(folder: Path, tokens: np.ndarray) -> None:
    manifest = Manifest.load(folder)
    assert [shard.tokens for shard in manifest.shards] == [300, 7, 343, 350]
    assert (manifest.tokens, manifest.documents, manifest.bytes) == (1000, 12, 2000)
    for shard, part in zip(manifest.shards, np.split(tokens, [300, 307, 650]), strict=True):
        array = np.load(folder / shard.file)
        assert array.dtype == np.uint16
        assert np.array_equal(array, part)
        assert hashlib.sha256((folder / shard.file).read_bytes()).hexdigest() == shard.sha256
    assert Manifest.load(folder) == manifest
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_largest_token_survives(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    write_split(tmp_path, [np.array([0, vocab_size - 1, 5])], vocab_size)
    source = ShardedTokens(tmp_path)
    assert source.read(0, 3).dtype == dtype
    assert source.read(0, 3).tolist() == [0, vocab_size - 1, 5]


def test_reads_across_boundaries(folder: Path, tokens: np.ndarray) -> None:
    source = ShardedTokens(folder)
    assert len(source) == 1000
    for start, length in [(0, 1000), (299, 2), (290, 30), (306, 1), (307, 343), (999, 1), (1000, 0), (5, 0)]:
        assert np.array_equal(source.read(start, length), tokens[start : start + length])
    starts = np.array([0, 295, 305, 648, 980])
    windows = source.read_windows(starts, 20)
    assert windows.dtype == np.uint16
    assert np.array_equal(windows, np.stack([tokens[s : s + 20] for s in starts]))
    # Windows go on from the beginning after the end.
    assert np.array_equal(source.read_windows(np.array([990, 999]), 1000), [np.roll(tokens, 10), np.roll(tokens, 1)])
    for start, length in [(-1, 5), (990, 11)]:
        with pytest.raises(IndexError):
            source.read(start, length)
    for start, length in [(-1, 5), (1000, 1), (0, 1001)]:
        with pytest.raises(IndexError):
            source.read_windows(np.array([0, start]), length)


def test_pickles_without_its_open_files(folder: Path, tokens: np.ndarray) -> None:
    source = ShardedTokens(folder)
    source.read(0, 1000)
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert np.array_equal(pickle.loads(data).read(0, 1000), tokens)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_few_files_are_open_at_once_and_none_afterwards(
    folder: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_shards() -> int:
        return sum(folder in file.resolve().parents for file in Path("/proc/self/fd").iterdir())

    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    source = ShardedTokens(folder)
    for _ in range(3):
        assert np.array_equal(source.read(0, 1000), tokens)
        assert 0 < open_shards() <= 2
    del source
    assert open_shards() == 0


@pytest.mark.parametrize("cut", [3, 200])
def test_a_shard_that_is_cut_while_it_is_read_is_named(folder: Path, cut: int) -> None:
    source = ShardedTokens(folder)
    source.read(0, 1)
    os.truncate(folder / "shard_00000.npy", 128 + 2 * 300 - cut)
    with pytest.raises(UserError, match=r"shard_00000.npy has \d+ bytes and its manifest says 728"):
        source.read_windows(np.array([0, 250]), 100)


def resident_bytes() -> int:
    """Resident memory of this process, parts of files that are mapped included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_resident_memory_stays_flat_while_everything_is_read(tmp_path: Path) -> None:
    size = 1 << 25
    write_split(tmp_path, [np.zeros(size, dtype=np.uint16)])
    source = ShardedTokens(tmp_path)
    source.read(0, 1)
    before = resident_bytes()
    peak = 0
    for start in range(0, size, 1 << 16):
        source.read(start, 1 << 16)
        peak = max(peak, resident_bytes() - before)
    assert peak < 24 << 20  # the file has 64 MiB


def test_disk_full_leaves_finished_shards_and_no_rest(folder: Path, tokens: np.ndarray) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = ShardWriter(folder / "shard_00004.npy", "uint16")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(UserError, match=r"cannot write .*shard_00004.npy: File too large"):
            for _ in range(100):
                writer.append(np.zeros(1000), documents=0, num_bytes=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        *(f"shard_0000{i}.npy" for i in range(4)),
    ]
    source = ShardedTokens(folder)
    source.verify()
    assert np.array_equal(source.read(0, 1000), tokens)


def test_a_shard_has_no_name_before_it_is_complete(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "shard_00000.npy", "uint16")
    writer.append(np.arange(10), documents=1, num_bytes=10)
    assert not (tmp_path / "shard_00000.npy").exists()
    writer.close()
    assert np.load(tmp_path / "shard_00000.npy").tolist() == list(range(10))


def test_writing_where_one_may_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        ShardWriter(tmp_path / "missing" / "shard_00000.npy", "uint16")


def change_manifest(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_missing_folder_and_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards at .*run experiments/prepare_data.py"):
        ShardedTokens(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no manifest.json; run experiments/prepare_data.py"):
        ShardedTokens(tmp_path)


def test_unknown_version(folder: Path) -> None:
    change_manifest(folder, format_version=99)
    with pytest.raises(UserError, match=r"format version 99 and this code reads 1"):
        ShardedTokens(folder)


@pytest.mark.parametrize("version", [True, 1.0, "1", None])
def test_a_version_is_a_number(folder: Path, version: object) -> None:
    change_manifest(folder, format_version=version)
    with pytest.raises(UserError, match=rf"format version {version} and this code reads 1"):
        ShardedTokens(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "shards": [{}]}'])
def test_damaged_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        ShardedTokens(folder)


def test_unknown_dtype(folder: Path) -> None:
    change_manifest(folder, dtype="float32")
    with pytest.raises(UserError, match=r"dtype 'float32'"):
        ShardedTokens(folder)


def change_shard(**values: object) -> dict[str, object]:
    info = {"file": "shard_00000.npy", "tokens": 300, "documents": 3, "bytes": 600, "sha256": "0" * 64}
    return {"shards": [{**info, **values}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 2**40}, r"vocab_size is 1099511627776; with dtype uint16 it must be 1 to 65536"),
        ({"vocab_size": True}, r"vocab_size is True"),
        ({"dtype": None}, r"dtype None is neither uint16 nor uint32"),
        ({"vocab_size": 0}, r"vocab_size is 0"),
        (
            {"vocab_size": 5, "special_ids": {"<|eot|>": 400}},
            r"<\|eot\|> is 400, which is no token of a vocabulary of 5",
        ),
        ({"eot_id": 99999}, r"eot_id is 99999, which is no token of a vocabulary of 1000"),
        ({"eot_id": None}, r"eot_id is None"),
        ({"pad_id": -1}, r"pad_id is -1"),
        (change_shard(tokens=-300), r"tokens of shard_00000.npy is -300; it must be a number from 0"),
        (change_shard(tokens=2**70), r"tokens of shard_00000.npy is 1180"),
        (change_shard(documents=301), r"documents of shard_00000.npy is 301, and it has 300 tokens"),
        (change_shard(bytes=300 * 2**16 + 1), r"bytes of shard_00000.npy is 19660801, which its 300 tokens cannot"),
        (change_shard(documents=2.5), r"documents of shard_00000.npy is 2.5"),
        (change_shard(bytes="many"), r"bytes of shard_00000.npy is 'many'"),
        (change_shard(file="../train/shard_00000.npy"), r"'../train/shard_00000.npy' is not the name of a file in the"),
        (change_shard(file="/etc/passwd"), r"'/etc/passwd' is not the name of a file in the same folder"),
        (change_shard(file=".."), r"'..' is not the name"),
        (change_shard(file=""), r"'' is not the name"),
        (change_shard(file=3), r"3 is not the name"),
        ({"shards": 2 * change_shard()["shards"]}, r"shard_00000.npy is listed twice"),
        ({"shards": 3}, r"is damaged"),
        ({"shards": [3]}, r"is damaged"),
        ({"special_ids": [1]}, r"is damaged"),
        ({"unknown": 1}, r"has no option unknown"),
    ],
)
def test_a_manifest_that_cannot_be_true(folder: Path, values: dict[str, object], message: str) -> None:
    change_manifest(folder, **values)
    with pytest.raises(UserError, match=rf"manifest\.json.*{message}") as error:
        ShardedTokens(folder)
    assert "\n" not in str(error.value)


def test_tokens_beyond_the_vocabulary_are_refused_where_they_are_read_and_checked(folder: Path) -> None:
    change_manifest(folder, vocab_size=950)
    source = ShardedTokens(folder)
    message = r"shard_0000\d\.npy holds token 9\d\d, and its manifest says a vocabulary of 950"
    for refused in (
        source.verify,
        lambda: source.read(0, 1000),
        lambda: source.read_windows(np.array([0, 500]), 500),
    ):
        with pytest.raises(UserError, match=message):
            refused()


def test_missing_shard(folder: Path) -> None:
    (folder / "shard_00002.npy").unlink()
    with pytest.raises(UserError, match=r"shard_00002.npy is missing"):
        ShardedTokens(folder)


def test_truncated_shard(folder: Path) -> None:
    path = folder / "shard_00001.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"shard_00001.npy has 139 bytes and its manifest says 142"):
        ShardedTokens(folder)


def test_a_flipped_bit_is_named(folder: Path) -> None:
    source = ShardedTokens(folder)
    source.verify()
    path = folder / "shard_00003.npy"
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"shard_00003.npy does not match the sha256"):
        source.verify()


def test_another_tokenizer(folder: Path) -> None:
    source = ShardedTokens(folder)
    lengths = np.array([0, 0, 1, 7])
    tokenizer = SimpleNamespace(digest="digest", vocab_size=1000, eot_id=0, pad_id=1, byte_lengths=lambda: lengths)
    source.check_tokenizer(tokenizer)
    kept = (folder / "manifest.json").read_text()
    change_manifest(folder, **change_shard(bytes=4 * 7 * 300 + 1))
    with pytest.raises(
        UserError, match=r"json says that the 300 tokens of shard_00000.npy are 8401 bytes of text, and"
    ):
        ShardedTokens(folder).check_tokenizer(tokenizer)
    (folder / "manifest.json").write_text(kept)
    change_manifest(folder, eot_id=7)
    with pytest.raises(UserError, match=r"manifest\.json says eot_id 7, and the tokenizer with the same digest has 0"):
        ShardedTokens(folder).check_tokenizer(tokenizer)
    with pytest.raises(UserError, match=r"encoded with another tokenizer"):
        source.check_tokenizer(SimpleNamespace(digest="other"))
