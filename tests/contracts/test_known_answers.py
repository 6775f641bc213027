"""Invariant 10: on data made by a known rule, each stage after pretraining comes to the answer that is known.

Prompts and answers are words of random letters. The better of two answers is the one with more b's over its c's.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_rows import (
    letter_tokenizer,
    letters,
    make_dpo,
    make_ppo,
    make_reward,
    make_sft,
    pair,
    save_policy,
    talk,
    write_rows,
)
from run_files import all_curves

from lit_llm.config import RewardConfig, SamplingConfig
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.generation import complete
from lit_llm.interop import load_model_folder
from lit_llm.model import Decoder, last_scores
from lit_llm.stages.dpo import dpo
from lit_llm.stages.ppo import ppo
from lit_llm.stages.reward import reward
from lit_llm.stages.sft import sft
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

ALPHABET, SHORTEST, LONGEST = "bcdfgh", 6, 8
HELD_OUT = 2500
"""Pairs; the standard error of an accuracy of 80% is 0.8 points."""
ONCE = {"val_every_n_steps": None, "save_every_n_steps": None, "log_every_n_steps": 1}


def true_reward(answer: str) -> int:
    return answer.count("b") - answer.count("c")


def rule(prompts: list[str], completions: list[str], **fields: Any) -> list[float]:
    """The rule as a reward function."""
    return [float(true_reward(answer)) for answer in completions]


def an_answer(chance: random.Random) -> str:
    return letters(chance, SHORTEST, LONGEST, ALPHABET)


def a_prompt(chance: random.Random) -> str:
    return letters(chance, 4, 4)


def preferences(count: int, seed: int, flipped: float = 0.0) -> list[dict[str, Any]]:
    """Pairs, of which exactly the share `flipped` has the better answer as the rejected one."""
    chance, rows = random.Random(seed), []
    while len(rows) < count:
        better, worse = an_answer(chance), an_answer(chance)
        if true_reward(better) == true_reward(worse):
            continue
        if (true_reward(better) < true_reward(worse)) != (len(rows) < flipped * count):
            better, worse = worse, better
        rows.append(pair(a_prompt(chance), better, worse))
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model of 19,000 untrained weights."""
    sizes = {"num_layers": 1, "max_position_embeddings": 32}
    folder = save_policy(tmp_path_factory.mktemp("beginning"), tokenizer, **sizes)
    assert sum(weight.numel() for weight in load_model_folder(folder)[0].parameters()) < 20_000
    return folder


def settings(folder: Path, held_out: list[dict[str, Any]], **trainer: Any) -> dict[str, Any]:
    data = {"batch_size": 64, "sequence_length": 32, "validation_batch_size": 500}
    paths = [write_rows(folder / "held_out.jsonl", held_out)]
    return {"data": {**data, "validation_paths": paths}, "trainer": {**ONCE, **trainer}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, beginning: Path) -> Path:
    """A model that has learned to write random answers, and nothing of the rule."""
    folder = tmp_path_factory.mktemp("policy")
    chance = random.Random(3)
    talks = [talk(a_prompt(chance), an_answer(chance)) for _ in range(3500)]
    config = make_sft(
        folder,
        beginning,
        talks[:3000],
        run_name="sft",
        optimizer={"learning_rate": 1e-2},
        **settings(folder, talks[3000:], max_steps=100),
    )
    result = sft(config)
    # a letter tells nothing of the next; when the answer ends is one of three equally likely places
    length = (SHORTEST + LONGEST) / 2
    entropy = (length * math.log(len(ALPHABET)) + math.log(LONGEST - SHORTEST + 1)) / (length + 1)
    assert entropy - 0.02 < result.metrics["val/loss"] < 1.02 * entropy
    return result.model_folder


def generations(folder: Path, count: int = 300) -> list[str]:
    """Answers of a model to prompts that no stage has seen."""
    model, tokenizer = load_model_folder(folder)
    chat, chance = ChatFormat(tokenizer), random.Random(17)
    prompts = [chat.render_prompt([Message("user", a_prompt(chance))]) for _ in range(count)]
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0, seed=5)
    return [each.text for each in complete(model, prompts, sampling, tokenizer=tokenizer, stop_tokens=chat.stop_ids)]


def share_by_the_rule(answers: list[str]) -> float:
    """Share of the answers with more b's than c's."""
    return sum(true_reward(answer) > 0 for answer in answers) / len(answers)


def test_sft_reaches_the_entropy_and_writes_such_answers(policy: Path) -> None:
    answers = generations(policy)
    well_formed = [SHORTEST <= len(answer) <= LONGEST and set(answer) <= set(ALPHABET) for answer in answers]
    assert sum(well_formed) > 0.95 * len(answers)
    assert 0.25 < share_by_the_rule(answers) < 0.55  # of random answers it is 0.40


def train_reward_model(folder: Path, beginning: Path, flipped: float) -> tuple[RewardConfig, Any]:
    config = make_reward(
        folder,
        beginning,
        preferences(3000, seed=1, flipped=flipped),
        optimizer={"learning_rate": 3e-3},
        **settings(folder, preferences(HELD_OUT, seed=2, flipped=flipped), max_steps=64),
    )
    return config, reward(config)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, beginning: Path) -> tuple[RewardConfig, Any]:
    """A reward model of clean preferences: its run and what came of it."""
    return train_reward_model(tmp_path_factory.mktemp("judge"), beginning, flipped=0.0)


@torch.no_grad()
def scores_of(model: Decoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[chosen and then rejected]"""
    found: torch.Tensor = model.eval()(batch["tokens"], head=lambda h, head: last_scores(h, head, batch["lengths"]))
    return found


def test_a_reward_model_learns_the_rule_and_keeps_its_scores(judge: tuple[RewardConfig, Any]) -> None:
    from transformers import AutoModelForSequenceClassification

    config, result = judge
    assert result.metrics["val/accuracy"] >= 0.95
    model, tokenizer = load_model_folder(result.model_folder)
    data = PreferenceDataModule(config.data, tokenizer, config.seed)
    batch = data.items("validation").batch(list(range(HELD_OUT)))
    scores = scores_of(model, batch)
    chosen, rejected = scores.chunk(2)
    # the folder gives the scores that the run has judged itself by
    assert float((chosen > rejected).float().mean()) == pytest.approx(result.metrics["val/accuracy"], abs=1e-6)
    assert float((chosen - rejected).mean()) == pytest.approx(result.metrics["val/margin"], abs=1e-5)
    theirs = AutoModelForSequenceClassification.from_pretrained(result.model_folder).eval()
    first = torch.cat([torch.arange(100), HELD_OUT + torch.arange(100)])
    attended = torch.arange(batch["tokens"].size(1)) < batch["lengths"][first].unsqueeze(1)
    with torch.no_grad():
        logits = theirs(batch["tokens"][first], attention_mask=attended.long()).logits
    torch.testing.assert_close(logits[:, 0].float(), scores[first], atol=1e-5, rtol=1e-5)


def test_a_reward_model_reaches_the_bayes_rate_of_noisy_labels(tmp_path: Path, beginning: Path) -> None:
    """20% of the training labels are flipped, and exactly 20% of the held-out ones it is judged by."""
    _, result = train_reward_model(tmp_path, beginning, flipped=0.2)
    assert abs(result.metrics["val/accuracy"] - 0.8) <= 0.02
    assert result.metrics["val/accuracy_low"] <= 0.8 <= result.metrics["val/accuracy_high"]


def test_dpo_makes_the_policy_follow_the_rule(tmp_path: Path, policy: Path) -> None:
    config = make_dpo(
        tmp_path,
        policy,
        preferences(2000, seed=4),
        optimizer={"learning_rate": 3e-3},
        **settings(tmp_path, preferences(500, seed=5), max_steps=50),
    )
    result = dpo(config)
    curves = all_curves(config)
    assert curves["train/loss"][0] == (1, pytest.approx(math.log(2), abs=1e-6))
    assert curves["rewards/margins"][0] == (1, pytest.approx(0.0, abs=1e-5))
    assert result.metrics["val/rewards/accuracies"] >= 0.95
    before, after = (share_by_the_rule(generations(folder)) for folder in (policy, result.model_folder))
    assert before < 0.55 and after >= 0.9


@torch.no_grad()
def distance(folder: Path, reference_folder: Path, count: int = 200) -> float:
    """Nats of the policy's answers from the reference: the exact divergence at each token, summed over an answer."""
    model, tokenizer = load_model_folder(folder)
    reference, _ = load_model_folder(reference_folder)
    chat, chance, total = ChatFormat(tokenizer), random.Random(23), 0.0
    prompts = [chat.render_prompt([Message("user", a_prompt(chance))]) for _ in range(count)]
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0, seed=6)
    for prompt, each in zip(prompts, complete(model, prompts, sampling, stop_tokens=chat.stop_ids), strict=True):
        ids = torch.tensor([[*prompt, *each.ids]])
        ours, theirs = (
            torch.log_softmax(decoder.eval()(ids)[0, len(prompt) - 1 :], -1) for decoder in (model, reference)
        )
        total += float((ours.exp() * (ours - theirs)).sum())
    return total / count


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_true_reward_rises_while_the_policy_stays_near(
    algorithm: str, tmp_path: Path, policy: Path, judge: tuple[RewardConfig, Any]
) -> None:
    """PPO learns from the reward model, which never saw the rule itself; GRPO from the rule as a function."""
    chance = random.Random(31)
    options: dict[str, dict[str, Any]] = {
        "ppo": {"rewards": [str(judge[1].model_folder)], "data": {"batch_size": 64}, "kl_coefficient": 0.1},
        "grpo": {
            "algorithm": "grpo",
            "rewards": ["test_known_answers:rule"],
            "data": {"batch_size": 16},
            "group_size": 4,
            "kl_coefficient": 0.2,
        },
    }
    own = options[algorithm]
    own["data"] |= {"sequence_length": 32, "validation_rows": 8}
    config = make_ppo(
        tmp_path,
        policy,
        [{"prompt": a_prompt(chance)} for _ in range(500)],
        trainer={**ONCE, "max_steps": 16 if algorithm == "ppo" else 12},
        max_new_tokens=LONGEST + 1,
        temperature=1.0,
        **own,
    )
    result = ppo(config)
    before, after = (
        sum(rule([], answers)) / len(answers) for answers in map(generations, (policy, result.model_folder))
    )
    assert abs(before) < 0.5
    assert after - before >= 0.5 * (LONGEST - before)
    # to write nothing but b's would be more than 12 nats away
    assert 1.0 < distance(result.model_folder, policy) < 8.0
