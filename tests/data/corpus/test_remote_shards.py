"""Shards behind a URL: the same tokens as those of a folder here, through a bounded cache, whatever the line does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from flaky_server import FlakyServer, serving
from shard_files import write_split

from lit_llm.config import DataConfig, RemoteConfig, UserError, from_plain, to_plain
from lit_llm.data.corpus.manifest import BLOCK_BYTES, Manifest
from lit_llm.data.corpus.remote_shards import load_tokenizer, open_split
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.pretraining.data_module import TokenDataModule

SMALLEST = 16 * BLOCK_BYTES / 2**30
"""GiB of the smallest cache: less than half of the corpus."""
TOKENS = np.random.default_rng(0).integers(0, 1000, 4_500_000)
NUM_BLOCKS = 37
"""Blocks of the training shards: 6, 1, 12 and 18."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_split(folder / "train", np.split(TOKENS, [700_001, 700_005, 2_200_000]))
    write_split(folder / "validation", [TOKENS[:30_000]])
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    with serving(folder) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return RemoteConfig(cache=str(tmp_path / "cache"), retries=3, retry_seconds=0.01, timeout=10.0)


def opened(url: str, config: RemoteConfig, **options: Any) -> ShardedTokens:
    tokens = open_split(url, "train", from_plain(RemoteConfig, {**to_plain(config), **options}))
    assert tokens is not None
    return tokens


def kept(config: RemoteConfig) -> list[Path]:
    """The blocks in the cache."""
    return [path for path in Path(str(config.cache)).glob("[!.]*/*") if not path.name.startswith(".")]


def in_memory(folder: Path, name: str) -> str:
    """A copy of a folder in fsspec's own memory."""
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}"


def test_any_range_is_that_of_the_folder_and_each_block_comes_once(server: FlakyServer, config: RemoteConfig) -> None:
    tokens = opened(server.url, config)
    assert len(tokens) == len(TOKENS) and server.asked == []
    edges = [(0, 5), (700_000, 10), (131_008 - 1, 2), (2_199_999, 300_000), (len(TOKENS) - 1, 1), (7, 0)]
    for start, length in edges:
        read = tokens.read(start, length)
        assert read.dtype == np.uint16 and np.array_equal(read, TOKENS[start : start + length])
    starts = np.array([len(TOKENS) - 3, 699_990, 5])
    windows = tokens.read_windows(starts, 20)
    assert np.array_equal(windows, TOKENS[(starts[:, None] + np.arange(20)) % len(TOKENS)])
    place, offset = tokens.locate(700_003)
    assert (str(place), offset) == (f"{server.url}/train/shard_00001.npy", 2)
    assert tokens.count(5, 0, 10_000) == np.count_nonzero(TOKENS[:10_000] == 5)
    tokens.read(0, len(TOKENS))
    assert len(server.asked) == len(set(server.asked)) == NUM_BLOCKS
    again = opened(server.url, config)
    server.always = "503"  # what is kept is not asked for again
    assert np.array_equal(again.read(0, len(TOKENS)), TOKENS)


def module(path: str, config: RemoteConfig, samples: int = 0, batch_size: int = 8, workers: int = 0) -> TokenDataModule:
    options = DataConfig(paths=[path], sequence_length=64, batch_size=batch_size, num_workers=workers, remote=config)
    data = TokenDataModule(options, None, 3)
    data.prepare_data()
    data.setup("fit")
    data.samples_consumed = samples
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder: Path, config: RemoteConfig, workers: int) -> None:
    """Through a cache of less than half of the corpus; and from the middle on, with two ranks, as with one."""
    small = from_plain(RemoteConfig, {**to_plain(config), "cache_gib": SMALLEST})
    url = in_memory(folder, f"batches{workers}")
    here, there = module(str(folder), small, 0, 2), module(url, small, 0, 2, workers)
    assert here.fingerprint == there.fingerprint
    expected = list(here.make_train_loader(here.train_sampler(0, 1, 40)))
    loader = there.make_train_loader(there.train_sampler(0, 1, 40))
    assert (loader.batch_sampler.ahead, len(loader)) == (2, 40)  # a quarter of the cache, in windows
    for mine, theirs in zip(expected, loader, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert 8 * BLOCK_BYTES < sum(path.stat().st_size for path in kept(small)) <= 16 * BLOCK_BYTES
    mine, theirs = (list(each.make_evaluation_loader("validation", 0, 1)) for each in (here, there))
    assert len(mine) > 200 and all(torch.equal(a["targets"], b["targets"]) for a, b in zip(mine, theirs, strict=True))
    assert not there.has_split("test")
    ranks = [module(url, small, 40, 2) for _ in range(2)]
    loaders = [each.make_train_loader(each.train_sampler(rank, 2, 20)) for rank, each in enumerate(ranks)]
    for whole, *parts in zip(expected[20:], *loaders, strict=True):
        rows = [part["tokens"] for part in parts]
        assert torch.equal(whole["tokens"], torch.stack(rows, dim=1).flatten(0, 1))


def test_training_begins_before_the_corpus_is_here(server: FlakyServer, config: RemoteConfig) -> None:
    """The first batch waits for its own blocks alone; with blocks fetched ahead, a later one waits for none."""
    config.ahead, config.connections = 0, 1
    data = module(server.url, config)
    batches = iter(data.make_train_loader(data.train_sampler(0, 1, 30)))
    next(batches)
    assert 1 <= len(server.asked) <= 8 < NUM_BLOCKS
    config.ahead = 3
    data = module(server.url, from_plain(RemoteConfig, {**to_plain(config), "cache": f"{config.cache}2"}))
    sampler = data.make_train_loader(data.train_sampler(0, 1, 30)).batch_sampler
    server.asked.clear()
    batches = iter(sampler)
    first = next(batches)
    source = data.splits["train"][0]
    starts = [data.train_dataset.starts(np.array(first) + 8 * batch)[1] for batch in range(4)]
    source._fetch(source._of_windows(np.concatenate(starts), 65))  # waits for what was asked for meanwhile
    wanted = len(server.asked)
    assert wanted == len(set(server.asked))
    server.always = "503"
    source.read_windows(np.concatenate(starts), 65)
    assert len(server.asked) == wanted


@pytest.mark.parametrize("fault", ["reset", "503", "truncated", "stall"])
def test_what_fails_is_tried_again_and_then_told_in_a_line(
    fault: str, server: FlakyServer, config: RemoteConfig, capfd: pytest.CaptureFixture
) -> None:
    timeout = 0.2 if fault == "stall" else 20.0
    tokens = opened(server.url, config, timeout=timeout)
    server.faults = [fault, fault, fault]
    assert np.array_equal(tokens.read(100, 50), TOKENS[100:150])
    assert server.faults == []
    assert "/train: reading failed (" in capfd.readouterr().err
    if fault == "stall":
        return  # the same line, after 4 time-outs
    server.always = fault
    with pytest.raises(UserError) as caught:
        tokens.read(2_000_000, 50)
    line = str(caught.value)
    assert line.startswith(f"{server.url}/train/shard_00002.npy cannot be read, in 4 tries (") and "\n" not in line
    assert line.endswith(
        "once it can be, the same command works, and a run that was under way goes on with --ckpt_path last"
    )
    server.always = "ok"
    assert np.array_equal(tokens.read(2_000_000, 50), TOKENS[2_000_000:2_000_050])


def test_a_loader_process_tells_the_same_line(server: FlakyServer, config: RemoteConfig) -> None:
    config.retries, config.ahead, server.always = 1, 0, "503"
    data = module(server.url, config, workers=1)
    with pytest.raises(UserError) as caught:
        next(iter(data.make_train_loader(data.train_sampler(0, 1, 2))))
    assert str(caught.value).startswith(f"{server.url}/train/shard_0000") and "\n" not in str(caught.value)


def test_a_damaged_block_of_the_cache_is_fetched_again(
    server: FlakyServer, config: RemoteConfig, capfd: pytest.CaptureFixture
) -> None:
    opened(server.url, config).read(0, 10)
    (block,) = [path for path in kept(config) if path.name == "000000"]
    data = block.read_bytes()
    for damaged in (data[:-1], data[:200] + b"\xff" + data[201:], b""):
        block.write_bytes(damaged)
        server.asked.clear()
        assert np.array_equal(opened(server.url, config).read(0, 100_000), TOKENS[:100_000])
        assert len(server.asked) == 1 and block.read_bytes() == data
    assert "block 0 of" in capfd.readouterr().err


def test_a_damaged_shard_is_refused_by_name_and_not_kept(folder: Path, config: RemoteConfig) -> None:
    url = in_memory(folder, "damaged")
    system, path = fsspec.filesystem("memory"), "/damaged/train/shard_00002.npy"
    data = bytearray(system.cat_file(path))
    data[3 * BLOCK_BYTES + 9] ^= 1
    system.pipe_file(path, bytes(data))
    tokens = opened(url, config)
    at = 700_005 + (3 * BLOCK_BYTES - 128) // 2
    assert np.array_equal(tokens.read(at - 10, 10), TOKENS[at - 10 : at])
    line = rf"^memory://damaged/train/shard_00002.npy does not match its manifest in bytes {3 * BLOCK_BYTES} to "
    with pytest.raises(UserError, match=line):
        tokens.read(at - 10, 11)
    assert all(
        block.name != "000003" or Manifest.load(folder / "train").shards[3].sha256 == block.parent.name
        for block in kept(config)
    )
    system.pipe_file(path, bytes(data[: 5 * BLOCK_BYTES + 7]))
    with pytest.raises(UserError, match=r"shard_00002.npy cannot be read, in 4 tries \(7 of 262144 bytes came\)"):
        tokens.read(at + BLOCK_BYTES, 10)
    system.rm_file(path)
    with pytest.raises(UserError, match=r"^memory://damaged/train/shard_00002.npy is missing"):
        tokens.read(at + BLOCK_BYTES, 10)


def read_all(url: str, config: RemoteConfig, start: int) -> None:
    """Reads every block, from one on, and ends with an error where a token is not what it should be."""
    tokens = opened(url, config)
    for at in [*range(start, len(TOKENS), 131_072), *range(0, start, 131_072)]:
        assert np.array_equal(tokens.read(at, 20), TOKENS[at : at + 20])


def test_processes_share_the_cache(server: FlakyServer, config: RemoteConfig) -> None:
    """Two that want the same blocks at once fetch each one time; in a small cache both go on and stay in its bound."""
    for gib, most in ((1.0, NUM_BLOCKS), (SMALLEST, 4 * NUM_BLOCKS)):
        config.cache, config.cache_gib = f"{config.cache}.", gib
        server.asked.clear()
        processes = [
            multiprocessing.get_context("fork").Process(target=read_all, args=(server.url, config, start))
            for start in (0, 5 * 131_072)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert NUM_BLOCKS <= len(server.asked) <= most
        assert sum(path.stat().st_size for path in kept(config)) <= gib * 2**30


def test_what_was_used_last_is_kept(server: FlakyServer, config: RemoteConfig) -> None:
    config.cache_gib, config.connections = SMALLEST, 1
    tokens = opened(server.url, config)
    for block in range(5, 30):
        tokens.read_windows(np.array([block * 131_072]), 5)
        tokens.read_windows(np.array([0]), 5)
    first = "/train/shard_00000.npy", f"bytes=0-{BLOCK_BYTES - 1}"
    assert server.asked.count(first) == 1


def test_what_cannot_be_read_says_why(folder: Path, server: FlakyServer, config: RemoteConfig, tmp_path: Path) -> None:
    fsspec.register_implementation("lacking", "no_such_package.System", errtxt="Install no_such_package", clobber=True)
    cases = {
        "lacking://bucket/shards": r"cannot be read here: Install no_such_package; install that package",
        "unheard://bucket/shards": r"cannot be read: Protocol not known: unheard",
        f"{server.url}/nothing": r"there are no shards at http://.*/nothing, which has no train/manifest.json",
    }
    for url, line in cases.items():
        with pytest.raises(UserError, match=line):
            opened(url, config)
    server.always = "403"
    with pytest.raises(UserError, match=r"shard_00000.npy may not be read \(403"):
        opened(server.url, config).read(0, 1)
    server.always, server.reads_ranges = "ok", False
    with pytest.raises(UserError, match=r"shard_00000.npy: the server gives the whole file where a part is asked for"):
        opened(server.url, config).read(0, 1)
    with pytest.raises(UserError, match=r"data.remote.cache_gib 0.003 holds fewer than 16 blocks"):
        opened(server.url, config, cache_gib=0.003)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the cache .*; lower data.remote.cache_gib"):
        opened(server.url, config, cache=str(tmp_path / "file" / "cache"))
    old = Manifest.load(folder / "train")
    for shard in old.shards:
        shard.block_crc32 = ""
    (tmp_path / "old" / "train").mkdir(parents=True)
    old.save(tmp_path / "old" / "train")
    with pytest.raises(UserError, match=r"has no checksums of the blocks of shard_00000.npy"):
        opened(f"file://{tmp_path}/old", config)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cache_gib": 0.0}, "data.remote.cache_gib is 0.0; it must be above 0"),
        ({"timeout": -1.0}, "data.remote.timeout is -1.0; it must be above 0"),
        ({"connections": 0}, "data.remote.connections is 0; it must be at least 1"),
        ({"retries": -1}, "data.remote.retries is -1; it must be at least 0"),
    ],
)
def test_impossible_options(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        RemoteConfig(**options)


def test_the_tokenizer_beside_the_shards(shards: Path, config: RemoteConfig) -> None:
    url = in_memory(shards, "with_tokenizer")
    assert load_tokenizer(url, config).digest == load_tokenizer(str(shards), config).digest
    with pytest.raises(UserError, match=r"^memory://without/tokenizer/tokenizer.json: no such file"):
        load_tokenizer("memory://without", config)
