"""Losses of windows against one token at a time, and the intervals around them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from random_decoder import random_decoder

from lit_llm.config import CorpusConfig, UserError
from lit_llm.data.corpus.documents import Corpus
from lit_llm.evaluation import perplexity
from lit_llm.evaluation import token_windows as sources
from lit_llm.evaluation.perplexity import Scores, Sums, bootstrap_interval, difference, score, summary
from lit_llm.evaluation.token_windows import ShardSource, TextSource, WindowOptions, sliding_windows
from lit_llm.model import Decoder
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.tokenizer import Tokenizer

CONTEXT = 8
TEXTS = [
    "x",
    "é",
    "import os\n",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "a b c d",
    "12345678" * 5,
]


def write(folder: Path, texts: list[str] = TEXTS) -> str:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_decoder(tiny_model(max_position_embeddings=32, tie_word_embeddings=False, logits_softcap=5.0))


def each_token(model: Decoder, ids: list[int], context: int, stride: int) -> list[tuple[float, bool]]:
    """Nats of every token but the first, each read by itself, and whether it was the likeliest."""
    found = []
    for place in range(1, len(ids)):
        start = max(0, -(-(place - context) // stride)) * stride
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]]))[0, -1].double()
        found.append((-float(logits.log_softmax(0)[ids[place]]), int(logits.argmax()) == ids[place]))
    return found


def test_texts_of_the_hub_whose_split_is_not_named_are_said_to_be_the_training_split(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    for path, split, told in (("", "train", True), ("::test", "test", False), (":default:train", "train", False)):
        source = TextSource(f"hf:{tmp_path}{path}", end_of_text=False)
        (window,) = source.windows(tokenizer, WindowOptions(32, 32))
        assert tokenizer.decode(window.targets) == split
        assert ("its split train is read; write hf:NAME::test" in capsys.readouterr().err) == told


def one_at_a_time(model: Decoder, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """The sums of `each_token`."""
    found = each_token(model, ids, context, stride)
    return sum(loss for loss, _ in found), sum(correct for _, correct in found)


@pytest.mark.parametrize("stride", [1, 3, CONTEXT // 2, CONTEXT])
def test_texts_one_token_at_a_time(
    stride: int, model: Decoder, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "_SORTED_TOKENS", 40)  # windows are sorted several times over
    documents = [[tokenizer.begin_id, *tokenizer.encode(text), tokenizer.eot_id] for text in TEXTS]
    assert min(map(len, documents)) == 3 and max(map(len, documents)) > 3 * CONTEXT
    expected = [one_at_a_time(model, ids, CONTEXT, stride) for ids in documents]
    for batch_size in (1, 5):
        found = score(model, tokenizer, TextSource(write(tmp_path)), WindowOptions(CONTEXT, stride), batch_size)
        assert len(found.documents) == len(TEXTS)
        assert found.documents.tokens[: len(TEXTS)].tolist() == [len(ids) - 1 for ids in documents]
        assert found.documents.losses[: len(TEXTS)] == pytest.approx([loss for loss, _ in expected], abs=1e-4)
        assert found.correct == sum(correct for _, correct in expected)
        assert found.num_bytes == sum(len(text.encode()) for text in TEXTS)
        assert found.windows.tokens.sum() == found.tokens
        assert found.windows.losses.sum() == pytest.approx(found.documents.losses.sum())


@pytest.mark.parametrize("stride", [1, CONTEXT // 2, CONTEXT])
def test_shards_one_token_at_a_time(
    stride: int, model: Decoder, tokenizer: Tokenizer, short_documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream goes on from one document into the next, whose losses are told apart all the same."""
    monkeypatch.setattr(sources, "_READ_TOKENS", 13)
    source = ShardSource(str(short_documents), "test")
    ids = source.tokens.read(0, len(source.tokens)).astype(int).tolist()
    ends = [place for place, token in enumerate(ids) if token == tokenizer.eot_id]
    count = ends[19] + 1
    found = score(model, tokenizer, source, WindowOptions(CONTEXT, stride, max_documents=20), 5)
    assert (len(found.documents), found.tokens) == (20, count - 1)
    losses = [loss for loss, _ in each_token(model, ids[:count], CONTEXT, stride)]
    totals = [sum(losses[:end]) for end in ends[:20]]
    assert np.cumsum(found.documents.losses[:20]) == pytest.approx(totals, abs=1e-4)
    assert found.num_bytes == len(tokenizer.decode(ids[1:count], skip_special=True).encode())
    limited = score(model, tokenizer, source, WindowOptions(CONTEXT, stride, max_tokens=ends[6] - 1), 5)
    assert limited.tokens == ends[6] - 1 and len(limited.documents) == 7
    assert limited.documents.losses.sum() == pytest.approx(sum(losses[: ends[6] - 1]), abs=1e-4)


def test_masked_documents_of_shards_are_read_alone(model: Decoder, tokenizer: Tokenizer, short_documents: Path) -> None:
    source = ShardSource(str(short_documents), "test", mask_documents=True)
    ids = source.tokens.read(0, 20).astype(int).tolist()
    found = score(model, tokenizer, source, WindowOptions(20, 20, max_tokens=19), 2)
    documents: list[list[int]] = [[]]
    for token in ids:
        documents[-1].append(token)
        if token == tokenizer.eot_id:
            documents.append([])
    losses = [one_at_a_time(model, document, 20, 20)[0] for document in documents]
    assert found.tokens == sum(max(0, len(document) - 1) for document in documents)
    assert found.documents.losses.sum() == pytest.approx(sum(losses), abs=1e-4)
    assert len(documents) > 3


@pytest.mark.parametrize("context", [1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 23])
def test_every_token_is_a_target_once(length: int, context: int) -> None:
    ids = np.arange(100, 100 + length)
    for stride in range(1, context + 1):
        for cuts in ([], [1], [3, 4, 11]):
            seen = []
            for start, tokens, targets in sliding_windows(np.split(ids, cuts), context, stride):
                assert 0 < len(tokens) == len(targets) <= context
                assert tokens.tolist() == ids[start : start + len(tokens)].tolist() and start % stride == 0
                scored = np.flatnonzero(targets != IGNORE_INDEX)
                seen += targets[scored].tolist()
                for place in scored:
                    assert place + 1 >= min(start + place + 1, context - stride + 1)
            assert seen == ids[1:].tolist()


def test_uniform_predictions_by_hand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    uniform = Decoder(tiny_model(tie_word_embeddings=False)).eval()
    torch.nn.init.zeros_(uniform.head.weight)
    texts = ["é è", "hello\n"]
    lengths = [len(tokenizer.encode(text)) for text in texts]
    for end_of_text in (True, False):
        source = TextSource(write(tmp_path, texts), end_of_text=end_of_text)
        row = summary([score(uniform, tokenizer, source, WindowOptions(8, 4), 2)], 0)
        tokens = sum(lengths) + 2 * end_of_text
        assert row["tokens"] == tokens and row["bytes"] == 11 and row["documents"] == 2
        assert row["loss"] == pytest.approx(math.log(400), abs=1e-5)
        assert row["perplexity"] == pytest.approx(400, rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(tokens * math.log2(400) / 11, rel=1e-5)
        assert source.sample == "".join(texts).encode()
    # the likeliest of equals is the first token, which none of these is
    assert row["token_accuracy"] == 0.0


def test_a_document_read_in_pieces(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"def f{number}(x):\n    return {number} * x\n" for number in range(12)))
    whole, cut = TextSource(str(path)), TextSource(str(path))
    cut._corpus = Corpus(CorpusConfig(str(path), validation_fraction=0.0), piece_bytes=64)
    assert len(list(cut._corpus.documents())) > 4
    first, second = (score(model, tokenizer, source, WindowOptions(16, 8), 3) for source in (whole, cut))
    assert first.tokens == second.tokens == len(tokenizer.encode(path.read_text())) + 1
    assert first.documents.losses.sum() == pytest.approx(second.documents.losses.sum(), abs=1e-4)
    assert first.num_bytes == second.num_bytes == path.stat().st_size
    assert whole.sample == cut.sample == path.read_bytes()
    over, losses, _ = first.units()  # a single document
    assert over == "windows" and len(losses) == math.ceil((first.tokens - 16) / 8) + 1


def test_documents_of_one_text_file_are_read_alone(
    model: Decoder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["def f(x):\n    return x\n", "naïve é = 3\n", "import os\n"]
    apart = score(model, tokenizer, TextSource(write(tmp_path, texts)), WindowOptions(16, 8), 3)
    (tmp_path / "together.txt").write_text("<|endoftext|>\n".join(texts), encoding="utf-16")
    source = TextSource(str(tmp_path / "together.txt"))
    together = score(model, tokenizer, source, WindowOptions(16, 8), 3)
    assert together.documents.losses.tolist() == apart.documents.losses.tolist() and len(together.documents) == 3
    assert (together.tokens, together.num_bytes) == (apart.tokens, apart.num_bytes)
    source.say_what_was_met()
    assert capsys.readouterr().err == "3 documents were found in text files that hold several: together.txt\n"


def test_limits_of_texts(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = TextSource(write(tmp_path))
    ids = [tokenizer.encode(text) for text in TEXTS]
    two = score(model, tokenizer, source, WindowOptions(8, 8, max_documents=2), 4)
    assert (len(two.documents), two.tokens, two.num_bytes) == (2, len(ids[0]) + len(ids[1]) + 2, 3)
    # up to the second token of the third document
    room = len(ids[0]) + len(ids[1]) + 2 + 2
    cut = score(model, tokenizer, source, WindowOptions(8, 8, max_tokens=room), 4)
    assert (len(cut.documents), cut.tokens) == (3, room)
    assert cut.num_bytes == 3 + len(tokenizer.decode(ids[2][:2]).encode())
    assert source.sample == ("xé" + tokenizer.decode(ids[2][:2])).encode()
    exact = score(model, tokenizer, source, WindowOptions(8, 8, max_tokens=room - 2), 4)
    assert (len(exact.documents), exact.tokens) == (2, room - 2)


def test_without_a_token_before_a_text(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The first token of each document is then predicted by nothing; its bytes do not count either."""
    bare = copy.copy(tokenizer)
    bare.begin_id = None
    ids = [tokenizer.encode(text) for text in TEXTS]
    asked_for = score(
        model, tokenizer, TextSource(write(tmp_path), end_of_text=False, begin_token=False), WindowOptions(8, 4), 4
    )
    found = score(model, bare, TextSource(write(tmp_path), end_of_text=False), WindowOptions(8, 4), 4)
    assert found.documents.losses.sum() == asked_for.documents.losses.sum() and found.tokens == asked_for.tokens
    assert found.tokens == sum(len(each) - 1 for each in ids)
    assert found.documents.losses.sum() == pytest.approx(
        sum(one_at_a_time(model, each, 8, 4)[0] for each in ids), abs=1e-4
    )
    assert found.num_bytes == sum(int(tokenizer.byte_lengths()[each[1:]].sum()) for each in ids)
    with pytest.raises(UserError, match="no token to predict"):
        score(model, bare, TextSource(write(tmp_path, ["x"]), end_of_text=False), WindowOptions(8, 4), 4)


def test_predictions_that_are_not_finite(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.head.weight, math.nan)
    with pytest.raises(UserError, match=r"texts.jsonl: the loss is nan"):
        score(broken, tokenizer, TextSource(write(tmp_path)), WindowOptions(8, 4), 4)


def scores_of(losses: Any, tokens: Any) -> Scores:
    return Scores(Sums(np.asarray(losses, dtype=float), np.asarray(tokens)))


@pytest.mark.parametrize(("paired", "documents"), [(False, 5), (False, 10), (True, 20)])
def test_interval_covers_the_truth(paired: bool, documents: int) -> None:
    """Documents of uneven lengths, the longer ones easier: of 95% intervals of their ratio, about 95% hold it.

    So of a difference: a second model is better by a share of the loss and worse by a constant. The percentiles of
    the draws would hold it in 86% of cases with 10 documents.
    """
    draws, truth, runs = np.random.default_rng(0), 2.0 * (20 + 10) / 20, 300
    held = 0
    for seed in range(runs):
        tokens = draws.integers(1, 40, documents)
        losses = tokens * draws.exponential(2.0, documents) * (1 + 10 / tokens)
        if paired:
            better = losses * 0.9 + 0.05 * tokens
            low, high = difference([scores_of(losses, tokens)], [scores_of(better, tokens)], seed)["interval"]
            held += low < 0.05 - 0.1 * truth < high
        else:
            low, high = bootstrap_interval([(losses, tokens)], seed) or (0.0, 0.0)
            held += low < truth < high
    assert 0.91 < held / runs < 0.98


def test_interval_is_reproducible_and_of_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "_MOST_UNITS", 500)
    draws = np.random.default_rng(1)
    losses, ones = draws.exponential(1.0, 20_000), np.ones(20_000, dtype=int)
    low, high = bootstrap_interval([(losses, ones)], 3) or (0.0, 0.0)
    assert bootstrap_interval([(losses, ones)], 3) == (low, high) != bootstrap_interval([(losses, ones)], 4)
    assert high - low == pytest.approx(2 * 1.96 * losses.std() / math.sqrt(20_000), rel=0.15)
    assert low < losses.mean() < high
    assert bootstrap_interval([(losses[:1], ones[:1])] * 2, 0) is None


def test_sources_are_drawn_from_apart() -> None:
    """Each keeps its share: two sources that differ, but not in themselves, leave nothing to chance."""
    ones = np.ones(30, dtype=int)
    low, high = bootstrap_interval([(1.0 * ones, ones), (5.0 * ones, ones)], 0) or (0.0, 0.0)
    assert low == pytest.approx(3.0) == high
    mixed, apart = np.concatenate([ones, 5 * ones]), np.ones(60, dtype=int)
    low, high = bootstrap_interval([(mixed, apart)], 0) or (0.0, 0.0)
    assert high - low > 0.5
    # a source of one unit stays as it is
    low, high = bootstrap_interval([(mixed, apart), (np.array([600.0]), np.array([60]))], 0) or (0.0, 0.0)
    assert 6.0 < low < 6.5 < high < 7.0


@pytest.mark.parametrize(
    ("values", "student"),
    [
        ([1.0] * 28 + [0.0] * 2, 2.228),
        ([3.3] * 56 + [1.1] * 4, 2.228),  # 1.6% of the draws are of the first alone
        ([2.9, 3.1, 3.4], 4.303),  # of three units every ninth draw is of one alone
        # one pair that stands out: the draws without it have next to no error of their own
        ([-1700.0, -0.5, -0.9, 0.2, 0.1, -1.1, -0.8, -0.2, -0.9, -1.4, -1.2, -0.7, -1.1], 2.228),
    ],
)
def test_interval_where_draws_have_next_to_no_error_is_students(values: list[float], student: float) -> None:
    units = np.array(values)
    low, high = bootstrap_interval([(units, np.ones(len(units), dtype=int))], 0) or (0.0, 0.0)
    reach = student * units.std(ddof=1) / math.sqrt(len(units))
    assert [low, high] == pytest.approx([units.mean() - reach, units.mean() + reach])


@pytest.mark.parametrize("documents", [2, 3, 4])
def test_interval_of_a_few_documents_of_uneven_lengths_is_of_the_size_of_their_losses(documents: int) -> None:
    draws = np.random.default_rng(1)
    for seed in range(20):
        tokens = draws.integers(50, 5000, documents)
        losses = tokens * (3 + draws.normal(0, 0.4, documents))
        low, high = bootstrap_interval([(losses, tokens)], seed) or (0.0, 0.0)
        assert 0 < high - low < 40


def test_paired_difference_is_narrower() -> None:
    draws = np.random.default_rng(2)
    tokens = draws.integers(5, 50, 80)
    losses = tokens * draws.exponential(3.0, 80)
    worse = losses + tokens * draws.normal(0.01, 0.02, 80)
    row = difference([scores_of(losses, tokens)], [scores_of(worse, tokens)], 0)
    low, high = row["interval"]
    assert row["from"] == pytest.approx(losses.sum() / tokens.sum())
    assert row["difference"] == pytest.approx((worse - losses).sum() / tokens.sum()) and low < row["difference"] < high
    alone_low, alone_high = summary([scores_of(losses, tokens)], 0)["interval"]
    assert high - low < (alone_high - alone_low) / 20 and row["interval_over"] == "documents"


def test_sources_together() -> None:
    one, other = scores_of([2.0, 6.0, 0.0], [1, 2, 0]), scores_of([9.0], [3])
    one.correct, one.num_bytes, other.correct, other.num_bytes = 2, 10, 1, 7
    other.windows.add(np.array([1, 3, 3]), np.array([4.0, 2.0, 3.0]))
    row = summary([one, other], 0)
    assert row["loss"] == pytest.approx(17 / 6) and row["tokens"] == 6 and row["documents"] == 3
    assert row["token_accuracy"] == 0.5 and row["bytes"] == 17
    assert row["bits_per_byte"] == pytest.approx(17 / math.log(2) / 17)
    assert row["interval_over"] == "documents and windows"
