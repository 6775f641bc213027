"""Training windows and evaluation windows against the token array they are cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import write_split

from lit_llm.config import UserError
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.pretraining.windows import ArrayTokens, EvaluationWindows, WindowDataset, WindowGrid

EOT = 0
PAD = 1


def source_of(folder: Path, tokens: np.ndarray) -> ShardedTokens:
    """Shards of `tokens`, cut at an awkward place."""
    write_split(folder, np.split(tokens, [len(tokens) // 3]), vocab_size=100_000)
    return ShardedTokens(folder)


def counting(folder: Path, num_tokens: int) -> ShardedTokens:
    """Token i is i + 10, so that a token says where it was read."""
    return source_of(folder, np.arange(num_tokens) + 10)


# Corpora of exactly 1, 2 and 3 windows of 8 targets, one token more or less than those, and larger ones.
SIZES = [9, 10, 11, 16, 17, 18, 24, 25, 26, 100, 1001]


@pytest.mark.parametrize("mask_documents", [False, True])
@pytest.mark.parametrize("num_tokens", SIZES)
def test_every_token_but_the_first_is_a_target_once_in_each_epoch(
    tmp_path: Path, num_tokens: int, mask_documents: bool
) -> None:
    """By an end-of-text token that stands nowhere, in the middle, and everywhere that documents are told apart."""
    eot = 10 + num_tokens // 2
    data = WindowDataset([counting(tmp_path, num_tokens)], [1.0], 8, 3, eot, mask_documents)
    per_epoch = data.order.num_windows[0]
    assert per_epoch == -(-(num_tokens - 1) // 8)
    expected = [token for token in range(11, num_tokens + 10) if not (mask_documents and token == eot + 1)]
    beginnings = set()
    for epoch in range(6):
        ids = list(range(epoch * per_epoch, (epoch + 1) * per_epoch))
        batch = data.__getitems__(ids)
        tokens, targets = batch["tokens"], batch["targets"]
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        assert tokens.shape == targets.shape == (per_epoch, 8)
        assert batch["sample_ids"].tolist() == ids
        supervised = targets != -100
        assert sorted(targets[supervised].tolist()) == expected
        assert torch.equal(targets[supervised], tokens[supervised] + 1)
        # No step is left without a target, nor one window with much less to learn than another.
        counts = supervised.sum(dim=1)
        assert counts.min() >= 1 and counts.max() - counts.min() <= 3
        # A window is what follows its first token, and after the end the beginning of the corpus.
        following = (tokens[:, :1] - 10 + torch.arange(8)) % num_tokens + 10
        assert torch.equal(tokens, following)
        if mask_documents:
            ends = (tokens == eot) | (tokens == num_tokens + 9)
            assert torch.equal(batch["document_ids"], ends.cumsum(1) - ends.long())
        beginnings.add(int(tokens[data.order.lookup(np.array(ids))[2] == 0][0, 0]))
    # Whole windows and no more are cut at the same places; all else at others in each epoch.
    assert len(beginnings) == 1 if (num_tokens - 1) % 8 == 0 else len(beginnings) > 2


def test_a_grid_of_a_trillion_tokens_does_not_wrap(num_tokens: int = 10**15 + 3) -> None:
    grid = WindowGrid(num_tokens, 2048)
    windows = np.array([0, grid.num_windows - 1])
    assert grid.start(windows, num_tokens - 1).tolist() == [num_tokens - 1, num_tokens - 1 - grid.targets(windows)[1]]
    assert (grid.targets(windows) <= 2048).all() and (grid.targets(windows) >= 2047).all()


def test_one_sample_is_its_row_of_any_batch(tmp_path: Path) -> None:
    data = WindowDataset(
        [counting(tmp_path / "a", 300), counting(tmp_path / "b", 700)], [0.3, 0.7], 16, 5, EOT, mask_documents=True
    )
    batch = data.__getitems__([4, 900, 17])
    for row, index in enumerate([4, 900, 17]):
        sample = data[index]
        assert all(torch.equal(sample[name], batch[name][row]) for name in batch)


def test_mixture_reads_each_source_by_its_weight(tmp_path: Path) -> None:
    low = source_of(tmp_path / "low", np.full(90_000, 7))
    high = source_of(tmp_path / "high", np.full(30_000, 8))
    data = WindowDataset([low, high], [3, 1], 4, seed=0, eot_id=EOT)
    rows = data.__getitems__(range(65_536))["tokens"][:, 0]
    assert (rows == 7).sum() == 49_152
    assert (rows == 8).sum() == 16_384


def test_documents_are_told_apart(tmp_path: Path) -> None:
    tokens = np.array([5, 6, EOT, 7, EOT, EOT, 8, 9, 9])
    data = WindowDataset([source_of(tmp_path, tokens)], [1.0], 8, 0, EOT, mask_documents=True)
    sample = data[0]
    assert sample["tokens"].tolist() == tokens[:8].tolist()
    assert sample["document_ids"].tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert sample["targets"].tolist() == [6, EOT, -100, EOT, -100, -100, 9, 9]
    plain = WindowDataset([source_of(tmp_path, tokens)], [1.0], 8, 0, EOT)[0]
    assert plain["targets"].tolist() == tokens[1:].tolist()


def test_a_corpus_below_one_window_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    WindowDataset([counting(tmp_path / "a", 17)], [1.0], 16, 0, EOT)
    with pytest.raises(UserError, match=r"b: the corpus has 16 tokens and one window needs 17"):
        WindowDataset([counting(tmp_path / "b", 16)], [1.0], 16, 0, EOT)


@pytest.mark.parametrize("num_tokens", [2, 8, 9, 10, 17, 100])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_covers_every_target_once(tmp_path: Path, num_tokens: int, world_size: int) -> None:
    source = counting(tmp_path, num_tokens)
    ranks = [EvaluationWindows([source], 8, EOT, PAD, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    targets, windows = [], []
    for rank in ranks:
        batch = rank.__getitems__(range(len(rank)))
        supervised = batch["targets"] != -100
        assert torch.equal(batch["targets"][supervised], batch["tokens"][supervised] + 1)
        assert (batch["tokens"][~supervised] == PAD).all()
        targets += batch["targets"][supervised].tolist()
        windows += batch["sample_ids"].tolist()
        assert not supervised[batch["sample_ids"] == -1].any()
    assert sorted(targets) == list(range(11, num_tokens + 10))
    real = [window for window in windows if window >= 0]
    assert sorted(real) == list(range(-(-(num_tokens - 1) // 8)))


def test_evaluation_of_several_sources_never_crosses_them(tmp_path: Path) -> None:
    first, second = counting(tmp_path / "a", 20), source_of(tmp_path / "b", np.arange(30) + 500)
    data = EvaluationWindows([first, second], 8, EOT, PAD)
    batch = data.__getitems__(range(len(data)))
    targets = batch["targets"][batch["targets"] != -100].tolist()
    assert sorted(targets) == [*range(11, 30), *range(501, 530)]
    assert len(data) == 3 + 4


def test_evaluation_subset_is_evenly_spread(tmp_path: Path) -> None:
    source = counting(tmp_path, 801)
    data = EvaluationWindows([source], 8, EOT, PAD, num_windows=4)
    assert data.__getitems__(range(len(data)))["sample_ids"].tolist() == [0, 25, 50, 75]
    assert len(EvaluationWindows([source], 8, EOT, PAD, num_windows=1000)) == 100
    for rank in (0, 3):
        assert len(EvaluationWindows([source], 8, EOT, PAD, num_windows=5, rank=rank, world_size=4)) == 2


def test_evaluation_with_documents_masked(tmp_path: Path) -> None:
    source = source_of(tmp_path, np.array([5, EOT, 6, 7, 8, EOT, 9]))
    batch = EvaluationWindows([source], 4, EOT, PAD, mask_documents=True).__getitems__([0, 1])
    assert batch["targets"].tolist() == [[EOT, -100, 7, 8], [EOT, -100, -100, -100]]
    assert batch["document_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert batch["tokens"].tolist() == [[5, EOT, 6, 7], [8, EOT, PAD, PAD]]


def test_evaluation_needs_a_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than 2 tokens"):
        EvaluationWindows([counting(tmp_path, 1)], 8, EOT, PAD)


@pytest.mark.parametrize("mask_documents", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_windows_of_a_plain_array_are_those_of_shards(tmp_path: Path, mapped: bool, mask_documents: bool) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 101).astype(np.uint16)
    shards, array = source_of(tmp_path, tokens), tokens
    if mapped:
        tokens.tofile(tmp_path / "tokens.bin")
        array = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    plain = ArrayTokens(array, "tokens.bin")
    train = [WindowDataset([source], [1.0], 8, 3, EOT, mask_documents) for source in (shards, plain)]
    ids = list(range(3 * train[0].order.num_windows[0]))
    ends = [EvaluationWindows([source], 8, EOT, PAD, mask_documents) for source in (shards, plain)]
    for one, other in (
        (data.__getitems__(ids) for data in train),
        (data.__getitems__(range(len(data))) for data in ends),
    ):
        assert one.keys() == other.keys() and ("document_ids" in one) == mask_documents
        assert all(torch.equal(one[name], other[name]) for name in one)

    class Spelled:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    place, text = train[1].describe(ids[4], Spelled())
    start = int(train[1].starts(np.array([ids[4]]))[1][0])
    assert place == f"tokens.bin, token {start}, in document {(tokens[:start] == EOT).sum()} of that file (both from 0)"
    assert text.split() == [str(tokens[(start + i) % 101]) for i in range(8)]


def test_a_plain_array_without_documents() -> None:
    data = WindowDataset([ArrayTokens(np.arange(40))], [1.0], sequence_length=8, seed=0)
    batch = data.__getitems__(range(5))
    assert sorted(batch["targets"][batch["targets"] >= 0].tolist()) == list(range(1, 40))
    assert data.describe(0, type("Nothing", (), {"decode": lambda self, ids: ""})())[0].endswith("(from 0)")
    for make in (
        lambda **more: WindowDataset([ArrayTokens(np.arange(40))], [1.0], 8, 0, None, **more),
        lambda **more: EvaluationWindows([ArrayTokens(np.arange(40))], 8, None, PAD, **more),
    ):
        with pytest.raises(UserError, match="give eot_id"):
            make(mask_documents=True)
    for wrong in (np.zeros((2, 3), dtype=int), np.zeros(5)):
        with pytest.raises(UserError, match="one dimension of integers"):
            ArrayTokens(wrong)
    with pytest.raises(UserError, match=r"the array: the corpus has 5 tokens"):
        WindowDataset([ArrayTokens(np.arange(5))], [1.0], 8, 0)
