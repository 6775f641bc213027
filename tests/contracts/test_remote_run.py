"""A run on shards behind a URL: the same losses and weights as on a copy, and exact after a lost connection."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeRun
from flaky_server import serving
from run_files import all_curves, assert_identical
from shard_files import write_split
from test_resume import assert_same_run, kill, launch, wait_for

from lit_llm.config import UserError
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer


def long_shards(shards: Path, folder: Path) -> None:
    """The tokens of `shards` over and over, in shards of several blocks, with the tokenizer beside them."""
    for split, copies in (("train", 20), ("validation", 2)):
        source = ShardedTokens(shards / split)
        tokens = np.tile(source.read(0, len(source)), copies)
        written = write_split(folder / split, np.array_split(tokens, 3), source.manifest.vocab_size)
        replace(source.manifest, shards=written.shards).save(folder / split)
    Tokenizer.load(shards / "tokenizer").save(folder / "tokenizer")


def test_a_lost_connection_costs_nothing_but_time(make_run: MakeRun, shards: Path, tmp_path: Path) -> None:
    long_shards(shards, tmp_path / "long")
    blocks = sum(len(info.block_crc32) // 8 for info in Manifest.load(tmp_path / "long" / "train").shards)
    straight = make_run("straight", data={"paths": [str(tmp_path / "long")]})
    pretrain(straight)
    with serving(tmp_path / "long") as server:
        remote = {"cache": str(tmp_path / "cache"), "retries": 1, "retry_seconds": 0.01, "ahead": 1}
        data = {"paths": [server.url], "remote": remote}
        server.faults, server.always = ["ok"] * (blocks - 3), "503"
        with pytest.raises(UserError, match=r"\.npy cannot be read, in 2 tries \(503.*goes on with --ckpt_path last$"):
            pretrain(make_run("lost", data=data))
        assert 2 <= len(all_curves(make_run("lost", data=data))["train/loss"]) < 6
        server.always = "ok"
        resumed = make_run("lost", data=data, ckpt_path="last")
        pretrain(resumed)
        assert len(server.asked) == len(set(server.asked))
    assert_same_run(straight, resumed)
    assert_identical(all_curves(straight)["train/loss"], all_curves(resumed)["train/loss"], "losses")


@pytest.mark.slow
def test_kills_at_any_moment_with_a_warm_cache(make_run: MakeRun, shards: Path, tmp_path: Path) -> None:
    """The run goes on exactly, also with files of the cache that a kill or a power cut has left half written."""
    long_shards(shards, tmp_path / "long")
    trainer = {"max_steps": 30, "save_every_n_steps": 2}
    straight = make_run("straight", data={"paths": [str(tmp_path / "long")], "num_workers": 2}, trainer=trainer)
    pretrain(straight)
    chance = random.Random(2)
    with serving(tmp_path / "long") as server:
        # The smallest cache, which is full most of the time.
        remote = {"cache": str(tmp_path / "cache"), "cache_gib": 16 * 2**18 / 2**30, "ahead": 2}
        config = make_run("killed", data={"paths": [server.url], "num_workers": 2, "remote": remote}, trainer=trainer)
        checkpoints, arguments = config.folder / "checkpoints", []
        for _ in range(2):
            newest = max(checkpoints.glob("step_*.ckpt"), default=None)
            process = launch(tmp_path, config, *arguments)
            wait_for(lambda newest=newest: max(checkpoints.glob("step_*.ckpt"), default=None) != newest, process)
            time.sleep(chance.uniform(0.0, 0.2))
            kill(process)
            blocks = sorted(path for path in (tmp_path / "cache").glob("[!.]*/[!.]*"))
            assert blocks
            damaged = chance.sample(blocks, min(4, len(blocks)))
            for path, length in zip(damaged, (0, 1, 1000, -1), strict=False):
                path.write_bytes(path.read_bytes()[:length])
            (blocks[0].parent / f".{blocks[0].name}").write_bytes(b"half of a block")
            (tmp_path / "cache" / ".locks" / "sum").write_bytes(chance.choice([b"", b"\0\0\0", b"9"]))
            arguments = ["--ckpt_path", "last"]
        process = launch(tmp_path, config, *arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("[!.]*/[!.]*"))
        assert size <= 16 * 2**18
    assert_same_run(straight, config)
    assert_identical(all_curves(straight)["train/loss"], all_curves(config)["train/loss"], "losses")
