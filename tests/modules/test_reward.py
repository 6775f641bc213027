"""The reward model's module: where it reads the score, its loss, and all that it says of a validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_rows import letter_tokenizer, make_reward, pair, save_policy, some_pairs
from run_files import all_curves, tensorboard_events

from lit_llm.config import RewardConfig, UserError
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.interop import load_model_folder
from lit_llm.model import Decoder
from lit_llm.modules.reward import RewardModule, calibration_picture
from lit_llm.objectives import Calibration
from lit_llm.stages.reward import build_reward, reward
from lit_llm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer)


@torch.no_grad()
def alone(model: Decoder, data: PreferenceDataModule, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and lengths [pairs, 2], each text read by itself without padding."""
    model.eval()
    items = data.items(split)
    texts = [[ids for _, ids, _ in items.texts(row)] for row in range(len(items))]
    scores = [[float(model(torch.tensor([ids]))[0, -1]) for ids in both] for both in texts]
    return np.array(scores), np.array([[len(ids) for ids in both] for both in texts])


def trained(folder: Path, policy: Path, **groups: Any) -> tuple[RewardConfig, Any]:
    config = make_reward(
        folder,
        policy,
        some_pairs(120),
        data={"validation_fraction": 0.5, "batch_size": 16, "validation_batch_size": 7},
        trainer={"max_steps": 3, "val_every_n_steps": None},
        optimizer={"learning_rate": 2e-3},
        **groups,
    )
    return config, reward(config)


def test_a_validation_by_hand(tmp_path: Path, policy: Path) -> None:
    config, result = trained(tmp_path, policy)
    model, tokenizer = load_model_folder(result.model_folder)
    data = PreferenceDataModule(config.data, tokenizer, config.seed)
    scores, lengths = alone(model, data, "validation")
    margins = scores[:, 0] - scores[:, 1]
    count, right = len(margins), int((margins > 0).sum())
    assert count > 40 and 0.55 < right / count < 1.0
    found = {name.removeprefix("val/"): value for name, value in result.metrics.items() if name.startswith("val/")}
    # Wilson's interval from its defining equation: the shares p whose z-score of the observed share is 1.96
    for bound in (found["accuracy_low"], found["accuracy_high"]):
        z_score = (right / count - bound) / np.sqrt(bound * (1 - bound) / count)
        assert abs(z_score) == pytest.approx(1.959964, abs=1e-3)
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    bins = np.minimum((sure - 0.5) * 20, 9).astype(int)
    error = sum(abs((sure - (margins > 0))[bins == n].sum()) for n in range(10)) / count
    expected = {
        "loss": np.log1p(np.exp(-margins)).mean(),
        "accuracy": right / count,
        "margin": margins.mean(),
        "mean_reward": scores.mean(),
        "min_reward": scores.min(),
        "max_reward": scores.max(),
        "calibration_error": error,
        "reward_length_correlation": np.corrcoef(scores.ravel(), lengths.ravel())[0, 1],
    }
    intervals = {"accuracy_low", "accuracy_high"}
    assert {name: found[name] for name in found if name not in intervals} == {
        name: pytest.approx(float(value), abs=2e-5) for name, value in expected.items()
    }


def test_what_tensorboard_shows(tmp_path: Path, policy: Path) -> None:
    config, _ = trained(tmp_path, policy)
    names = all_curves(config).keys()
    assert {"train/loss", "train/accuracy", "train/margin", "train/mean_reward", "train/gradient_norm"} <= names
    validation = "loss accuracy accuracy_low accuracy_high margin mean_reward min_reward max_reward"
    assert {f"val/{name}" for name in validation.split()} <= names
    assert {"val/calibration_error", "val/reward_length_correlation"} <= names
    assert not {"val/perplexity", "val/bits_per_byte"} & names
    events = tensorboard_events(config)
    assert "val/calibration" in events.Tags()["images"]
    (event,) = events.Tensors("val/calibration/text_summary")
    rows = event.tensor_proto.string_val[0].decode().splitlines()[2:]
    assert sum(int(row.split("|")[3]) for row in rows) > 40


def test_the_loss_of_pairs_with_margins(tmp_path: Path, policy: Path) -> None:
    rows = some_pairs(12)
    for row, margin in zip(rows[::2], (0.0, 0.5, 1.0, 2.0, 3.0, 4.0), strict=True):
        row["margin"] = margin
    rows[1] |= {"score_chosen": 3.5, "score_rejected": 1.5}
    rows[2] |= {"score_chosen": 8.0, "score_rejected": 1.0}  # which has a margin
    for options, centring in (
        ({}, 0.01),
        ({"centring": 0.3}, 0.3),
        ({"use_margins": False}, 0.01),
        ({"score_margin_scale": 0.25}, 0.01),
    ):
        config = make_reward(tmp_path, policy, rows, data={"validation_fraction": 0.0}, **options)
        module, data, _ = build_reward(config)
        with torch.no_grad():
            module.model.head.weight.mul_(10)
        scores, _ = alone(module.model, data, "train")
        margins = np.array([row.get("margin", 0.0) if config.use_margins else 0.0 for row in rows])
        margins[1] = 0.5 if config.score_margin_scale else 0.0
        without, asked = (np.log1p(np.exp(each - scores[:, 0] + scores[:, 1])) for each in (0.0, margins))
        batch = {**data.items("train").batch(range(12)), "sample_ids": torch.arange(12)}
        loss, count = module.token_loss(batch, training=False)
        assert int(count) == 12
        # margins are no part of what chooses checkpoints
        assert loss.item() == pytest.approx(without.sum(), rel=1e-5)
        loss, _ = module.token_loss(batch, training=True)
        assert loss.item() == pytest.approx(asked.sum() + centring * (scores.sum(1) ** 2).sum(), rel=1e-5)
        named = [line for line in data.statistics_lines() if "not read" in line]
        columns = {"margin (6)": not config.use_margins, "score_chosen (2)": config.score_margin_scale is None}
        assert {name: any(name in line for line in named) for name in columns} == (
            columns if config.score_margin_scale is None else {"margin (6)": False, "score_chosen (2)": False}
        )
        assert (scores.sum(1) ** 2).sum() > 0.1


def test_the_score_is_read_at_the_last_token_whatever_pads(tmp_path: Path, policy: Path) -> None:
    """With padding that is the end of a turn, the first such token of a text is the prompt's."""
    module, data, tokenizer = build_reward(make_reward(tmp_path, policy, some_pairs(12)))
    scores, lengths = alone(module.model, data, "train")
    assert len(set(lengths.ravel())) > 3
    for pad_id in (tokenizer.pad_id, tokenizer.im_end_id, tokenizer.eot_id):
        items = data.items("train")
        items.pad_id = pad_id
        module.validation_pairs.reset()
        batch = {**items.batch(range(len(items))), "sample_ids": torch.arange(len(items))}
        module.token_loss(batch, training=False)
        chosen, rejected, *_ = module.validation_pairs.compute()
        np.testing.assert_allclose(torch.stack([chosen, rejected], 1).numpy(), scores, atol=1e-5)


def test_ties_are_half_right(tmp_path: Path, policy: Path) -> None:
    """A head of zeros cannot tell answers apart."""
    module, data, _ = build_reward(make_reward(tmp_path, policy, some_pairs(12)))
    torch.nn.init.zeros_(module.model.head.weight)
    batch = {**data.items("train").batch(range(4)), "sample_ids": torch.arange(4)}
    module.token_loss(batch, training=True)
    assert module.training_means.compute() == {"accuracy": 0.5, "margin": 0.0, "mean_reward": 0.0}


def test_filler_counts_nothing(tmp_path: Path, policy: Path) -> None:
    module, data, _ = build_reward(make_reward(tmp_path, policy, some_pairs(12)))
    items = data.items("train")
    found = []
    for pairs in ([0, 1, 2], [0, -1, 1, 2, -1]):
        module.validation_pairs.reset()
        module.validation_means.reset()
        batch = {**items.batch(pairs), "sample_ids": torch.tensor(pairs)}
        loss, count = module.token_loss(batch, training=False)
        found.append((loss.item(), int(count), module.validation_means.compute(), module.validation_pairs.compute()))
    (loss, count, means, pairs_of), (other_loss, other_count, other_means, other_pairs) = found
    assert count == other_count == 3
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert other_means == pytest.approx(means, abs=1e-6)
    for one, other in zip(pairs_of, other_pairs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_new_head_is_small_and_the_trunk_is_the_language_model(tmp_path: Path, policy: Path) -> None:
    module, _, _ = build_reward(make_reward(tmp_path, policy, some_pairs(12)))
    assert isinstance(module, RewardModule)
    language_model, _ = load_model_folder(policy)
    weights = module.model.state_dict()
    assert weights["head.weight"].shape == (1, 32)
    assert 0.5 / 33**0.5 < float(weights["head.weight"].std()) < 1.5 / 33**0.5
    for name, weight in language_model.state_dict().items():
        if name != "head.weight":
            assert torch.equal(weight, weights[name]), name


def test_the_calibration_picture() -> None:
    picture = calibration_picture(Calibration([0.55, 0.0, 0.75], [0.5, 0.0, 1.0], [3, 0, 2], 0.1), size=101)
    assert picture.shape == (101, 101, 3)
    blue = (picture == (31, 119, 180)).all(-1)
    assert blue[100, 10] and blue[0, 50]  # 10% and 50% along, at the bottom and at the top
    assert not blue[100, 0] and blue.sum() < 120  # nothing of the empty bin
    assert (picture[np.arange(20, 80), 100 - np.arange(20, 80)] == 200).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"centring": -0.1}, "centring is -0.1"),
        ({"score_margin_scale": -1.0}, "score_margin_scale is -1.0"),
        ({"score_margin_scale": 1.0, "use_margins": False}, "score_margin_scale has no effect without use_margins"),
        ({"sample_prompts": 2}, "a reward model writes no text"),
        ({"loss_chunk_tokens": 64}, "loss_chunk_tokens has no effect"),
    ],
)
def test_options_without_effect(tmp_path: Path, policy: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_reward(tmp_path, policy, some_pairs(4), **option)


def test_answers_that_are_equal_or_empty_are_left_out(tmp_path: Path, policy: Path) -> None:
    rows = [*some_pairs(40), pair("ghj", "bb", "bb"), pair("ghj", "", "bb")]
    _, data, _ = build_reward(make_reward(tmp_path, policy, rows))
    assert len(data.items("train")) + len(data.items("validation")) == 40
    (line,) = [line for line in data.statistics_lines() if "left out" in line]
    assert line.startswith("data.paths: 2 of 42 rows left out (4.8%): ")
