"""Baselines by hand."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.shards import ShardedTokens, ShardWriter
from lit_llm.evaluation import baselines
from lit_llm.evaluation.baselines import compressor_bits_per_byte, token_counts, unigram_loss


def test_compressors() -> None:
    noise = random.Random(0).randbytes(20_000)
    for bits in compressor_bits_per_byte(noise).values():
        assert 8.0 < bits < 8.1
    for bits in compressor_bits_per_byte(b"ab" * 20_000).values():
        assert 0.0 < bits < 0.1


@pytest.mark.skipif(shutil.which("xz") is None, reason="the program xz is not installed")
def test_xz_is_the_program_of_that_name() -> None:
    text = Path(baselines.__file__).read_bytes()
    packed = subprocess.run(["xz", "-9e", "-c"], input=text, capture_output=True, check=True).stdout
    assert compressor_bits_per_byte(text)["xz -9e"] == 8 * len(packed) / len(text)


def write_split(folder: Path, *shards: list[int]) -> ShardedTokens:
    folder.mkdir()
    infos = []
    for number, tokens in enumerate(shards):
        writer = ShardWriter(folder / f"shard_{number:05d}.npy", "uint16")
        writer.append(np.array(tokens), 1, len(tokens))
        infos.append(writer.close())
    Manifest("digest", 4, "uint16", 0, None, shards=infos).save(folder)
    return ShardedTokens(folder)


@pytest.mark.parametrize("block", [1, 3, 1 << 24])
def test_unigram_loss(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_BLOCK", block)
    train = write_split(tmp_path / "train", [0, 0, 1], [2])
    validation = write_split(tmp_path / "validation", [0, 3])
    assert token_counts(train, 4).tolist() == [2, 1, 1, 0]
    # counts raised by one: 3, 2, 2, 1 of 8; the token that train has never seen costs ln 8
    assert unigram_loss(train, validation, 4) == pytest.approx((math.log(8 / 3) + math.log(8)) / 2, abs=1e-12)
