"""Mixes: what a run reads of each corpus, in phases, within limits, and after it has been changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_batches import Recorder, trainer_for
from shard_files import write_split
from test_datamodule import steps_of

from lit_llm.config import DataConfig, UserError, from_plain
from lit_llm.data.pretraining.data_module import TokenDataModule

TOKENS = {"web": 800, "code": 400, "math": 120}
WEIGHTS = {"web": 0.7, "code": 0.2, "math": 0.1}
STEPS = 20


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three corpora; a token says which it is of."""
    folder = tmp_path_factory.mktemp("corpora")
    for number, (name, tokens) in enumerate(TOKENS.items()):
        draw = np.random.default_rng(number).integers(100 * number + 2, 100 * number + 100, tokens)
        write_split(folder / name / "train", np.array_split(draw, 2))
        if name != "math":
            write_split(folder / name / "validation", [draw[:50]])
    return {name: str(folder / name) for name in TOKENS}


def mixed(
    corpora: dict[str, str],
    phases: list[dict[str, Any]] | None = None,
    max_epochs: dict[str, float] | None = None,
    weights: dict[str, float] | None = None,
    **options: Any,
) -> TokenDataModule:
    of_all = {
        name: {"path": path, "weight": (weights or WEIGHTS)[name], "max_epochs": (max_epochs or {}).get(name)}
        for name, path in corpora.items()
    }
    steps = options.pop("max_steps", STEPS)
    values = {"sequence_length": 8, "batch_size": 10, "mix": {"corpora": of_all, "phases": phases or []}, **options}
    return TokenDataModule(from_plain(DataConfig, values), None, 5, steps)


def read(data: TokenDataModule, first: int, steps: int) -> list[list[int]]:
    """Samples of each corpus in each of some steps, from their tokens."""
    counts = []
    size = data.config.batch_size
    for step in range(first, first + steps):
        batch = data.train_dataset.__getitems__(range(step * size, (step + 1) * size))
        counts.append(np.bincount(batch["tokens"][:, 0] // 100, minlength=3).tolist())
    return counts


LATE = [{"start": 0.6, "weights": {"web": 0.1, "math": 0.9}}, {"start": 18, "weights": {"code": 1.0}}]


def test_phases_begin_at_their_steps_and_shares_are_exact_in_each_batch(corpora: dict[str, str]) -> None:
    data = mixed(corpora, LATE)
    assert read(data, 0, STEPS) == [[7, 2, 1]] * 12 + [[1, 0, 9]] * 6 + [[0, 10, 0]] * 2
    assert data.mix_curves(10, 14) == {
        "data/share/web": (14 + 2) / 40,
        "data/share/code": 4 / 40,
        "data/share/math": (2 + 18) / 40,
        "data/epochs/web": (84 + 2) / 100,
        "data/epochs/code": 24 / 50,
        "data/epochs/math": (12 + 18) / 15,
    }
    assert data.mix_lines(STEPS) == [
        "web 70%, code 20%, math 10%; from step 12 on web 10%, math 90%; from step 18 on code 100%",
        "in all, web 0.9 times, code 0.88 times, math 4.4 times",
    ]
    assert data.passes(200) == 66 / 15
    # A share of the steps is that of the run's length, whatever that is.
    assert read(mixed(corpora, LATE[:1], max_steps=5), 0, 5) == [[7, 2, 1]] * 3 + [[1, 0, 9]] * 2


def test_samples_of_a_step_are_the_same_for_any_world_size(corpora: dict[str, str]) -> None:
    expected = steps_of(mixed(corpora, LATE, batch_size=8), 1, STEPS)
    for world_size, micro in ((1, 2), (2, None), (2, 2), (4, 1)):
        assert steps_of(mixed(corpora, LATE, batch_size=8, micro_batch_size=micro), world_size, STEPS) == expected
    assert steps_of(mixed(corpora, LATE, batch_size=8, num_workers=2), 2, STEPS) == expected


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_resume_anywhere_goes_on_as_if_nothing_had_been(corpora: dict[str, str], tmp_path: Path) -> None:
    def fit(ckpt: str | None = None, save_at: tuple[int, ...] = ()) -> Recorder:
        data, module = mixed(corpora, LATE, {"math": 4.2}), Recorder()
        trainer_for(data, tmp_path, STEPS, save_at).fit(module, datamodule=data, ckpt_path=ckpt)
        assert data.reordered is None and data.samples_consumed == 200
        return module

    around = (5, 11, 12, 13, 18)  # before, at and after the borders
    whole = fit(save_at=around)
    for step in around:
        resumed = fit(str(tmp_path / f"{step}.ckpt"))
        assert resumed.seen == whole.seen[step:]
        assert resumed.weight.equal(whole.weight)  # which saw the same tokens


@pytest.mark.parametrize("limit", [{"math": 1.0}, {"math": 1.0, "code": 0.5}, {"web": 0.3}])
def test_no_window_is_read_more_often_than_its_limit(limit: dict[str, float], corpora: dict[str, str]) -> None:
    data = mixed(corpora, [{"start": 0.5, "weights": {"web": 0.4, "code": 0.2, "math": 0.4}}], limit)
    plain = mixed(corpora, [{"start": 0.5, "weights": {"web": 0.4, "code": 0.2, "math": 0.4}}])
    total, without = np.sum(read(data, 0, STEPS), axis=0), np.sum(read(plain, 0, STEPS), axis=0)
    windows = dict(zip(TOKENS, (100, 50, 15), strict=True))
    for number, name in enumerate(TOKENS):
        if name in limit:
            allowed = int(limit[name] * windows[name])
            assert without[number] > allowed >= total[number] > allowed - 3  # as many as may be, but for rounding
        else:
            assert total[number] > without[number]
    assert len(data.mix.lines) == len(limit) and not plain.mix.lines
    # What is left goes to the others in proportion to their weights, and each batch is exact to a sample.
    first = data.mix.stretches[0].shares
    free = [number for number, name in enumerate(TOKENS) if name not in limit]
    asked = [list(WEIGHTS.values())[number] for number in free]
    assert [first[number] / first[free[0]] for number in free] == pytest.approx(
        [each / asked[0] for each in asked], 1e-3
    )
    for counts in read(data, 0, 10):
        assert all(abs(count - 10 * share) < 1 for count, share in zip(counts, first, strict=True))


def test_a_limit_is_said_with_its_remedy(corpora: dict[str, str]) -> None:
    (line,) = mixed(corpora, None, {"math": 1.0}, max_steps=100).mix.lines
    assert line == (
        "math would be read 6.67 times, and its max_epochs is 1: its share of the run is 1.4% instead of 10%, and the "
        "rest goes to the others by their weights (web 76.7%, code 21.9%)"
    )
    with pytest.raises(UserError, match=r"max_epochs leaves too few samples for the run, which needs 1,000 .*raise"):
        _ = mixed(corpora, None, dict.fromkeys(TOKENS, 2.0), max_steps=100).mix
    # A phase of limited corpora alone cannot hand anything on.
    with pytest.raises(UserError, match=r"there are math 15 .*leave a corpus of each phase without a limit"):
        _ = mixed(corpora, [{"start": 0.5, "weights": {"math": 1.0}}], {"math": 1.0}).mix
    with pytest.raises(UserError, match=r"max_epochs needs the length of the run"):
        _ = mixed(corpora, None, {"math": 1.0}, max_steps=None).mix


def test_phases_that_do_not_fit_are_refused(corpora: dict[str, str]) -> None:
    for phases, message in (
        ([{"start": 20, "weights": {"web": 1}}], r"phases\[0\] \(start 20\) begins at step 20, and the run ends at"),
        ([{"start": 0.01, "weights": {"web": 1}}], r"begins at step 0, and the run at step 0; sort them"),
        (
            [*LATE[1:], {"start": 0.5, "weights": {"web": 1}}],
            r"phases\[1\] .* step 10, and the phase before it at step",
        ),
        (
            [{"start": 0.5, "weights": {"web": 1, "code": 1e-9}}],
            r"the weight of code is 1.0e-09 of the whole, too small",
        ),
    ):
        with pytest.raises(UserError, match=message):
            _ = mixed(corpora, phases).mix
    with pytest.raises(UserError, match=r"phases needs the length of the run"):
        _ = mixed(corpora, LATE, max_steps=None).mix


def test_a_corpus_may_be_kept_for_a_phase(corpora: dict[str, str]) -> None:
    weights = {"web": 3, "code": 1, "math": 0}
    data = mixed(corpora, [{"start": 0.5, "weights": {"math": 1}}], weights=weights, batch_size=8, max_steps=4)
    assert read(data, 0, 4) == [[6, 2, 0]] * 2 + [[0, 0, 8]] * 2


@pytest.mark.parametrize(
    ("change", "now"),
    [
        ({"weights": {"web": 0.5, "code": 0.5, "math": 0}, "phases": LATE[:1]}, [1, 0, 9]),
        ({"phases": None}, [7, 2, 1]),
        ({"phases": LATE[:1], "max_steps": 40}, [7, 2, 1]),  # the phase that has begun begins later
        ({"phases": LATE, "batch_size": 20}, [2, 0, 18]),
    ],
)
def test_a_changed_mix_holds_from_where_the_run_stands(
    change: dict[str, Any], now: list[int], corpora: dict[str, str]
) -> None:
    before = mixed(corpora, LATE)
    before.advance(130)  # a step into the first phase
    state = before.state_dict()
    after = mixed(corpora, **change)
    after.load_state_dict(state)
    size = after.config.batch_size
    tokens = after.train_dataset.__getitems__(range(130, 130 + size))["tokens"]
    counts = np.bincount(tokens[:, 0] // 100, minlength=3).tolist()
    assert counts == now
    assert after.reordered is not None and "from step 12 on web 10%, math 90%" in after.reordered[0]
    # What has been read stays as it was, no window of an epoch is lost or read twice, and it can go on once more.
    old, new = (data.train_dataset.order.lookup(np.arange(130)) for data in (before, after))
    assert np.array_equal(old, new)
    order = after.train_dataset.order
    sources, epochs, windows = order.lookup(np.arange(130 + 40 * size))
    for source, number in enumerate(order.num_windows):
        chosen = (sources == source) & (epochs == 0)
        assert len(set(windows[chosen].tolist())) == chosen.sum() == min(number, (sources == source).sum())
    after.advance(3 * size)
    assert after.counts(after.samples_consumed) == np.bincount(sources[: after.samples_consumed], minlength=3).tolist()
    again = mixed(corpora, **change)
    again.load_state_dict(after.state_dict())
    assert np.array_equal(again.train_dataset.order.lookup(np.arange(400)), order.lookup(np.arange(400)))
    assert again.samples_at(13) == 130 and again.samples_at(16) == 130 + 3 * size


def test_a_limit_counts_what_was_read_before_the_change(corpora: dict[str, str]) -> None:
    before = mixed(corpora, None, {"math": 2.0})
    before.advance(150)
    after = mixed(corpora, None, {"math": 1.2}, weights={"web": 1, "code": 1, "math": 2})
    after.load_state_dict(before.state_dict())
    assert after.counts(150)[2] == 15
    assert 17 <= after.counts(200)[2] <= 18  # 1.2 x 15 windows
    used_up = mixed(corpora, None, {"math": 1.0}, weights={"web": 1, "code": 1, "math": 2})
    used_up.load_state_dict(before.state_dict())
    assert used_up.counts(200)[2] == 15


def test_validation_says_of_which_corpus_each_window_is(corpora: dict[str, str]) -> None:
    data = mixed({name: corpora[name] for name in ("math", "web", "code")}, validation_windows=6)
    batches = [batch for rank in range(2) for batch in data.make_evaluation_loader("validation", rank, 2)]
    rows = [row for batch in batches for row in zip(batch["source_ids"].tolist(), batch["tokens"], strict=True)]
    # math has no validation split; web is the second of the mix, and its tokens are below 100
    assert [(source, int(tokens[0]) // 100) for source, tokens in rows] == [
        (1, 0),
        (1, 0),
        (2, 1),
        (1, 0),
        (2, 1),
        (2, 1),
    ]
    assert data.validation_lines() == ["math has no val/loss of its own: it has no validation split"]
    assert mixed(corpora, validation_windows=1).validation_lines() == [
        "code has no val/loss of its own: data.validation_windows reads none of its windows",
        "math has no val/loss of its own: it has no validation split",
    ]
    one = TokenDataModule(DataConfig(paths=[corpora["web"]], sequence_length=8), None, 0)
    assert "source_ids" not in next(iter(one.make_evaluation_loader("validation", 0, 1)))
