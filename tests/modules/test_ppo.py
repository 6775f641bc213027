"""PPO and GRPO on a tiny model: they learn, and what they say of themselves is true."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from ppo_runs import make_ppo, write_policy
from ranks import train_on_ranks
from run_files import TIMED, all_curves, assert_identical, checkpoints, last_state

from lit_llm.config import NonFiniteStep, PPOConfig, SamplingConfig, UserError, derived_seed
from lit_llm.generation import Engine
from lit_llm.interop import load_model_folder, read_model_config
from lit_llm.modules.policy_updates import update_loss
from lit_llm.modules.ppo import PPOModule
from lit_llm.modules.rollout import Answer, Experience, write_answers
from lit_llm.objectives import IGNORE_INDEX
from lit_llm.stages.ppo import build_ppo, ppo
from lit_llm.tokenizer import Tokenizer

MakePPO = Callable[..., PPOConfig]


@pytest.fixture
def make(tokenizer: Tokenizer, tmp_path: Path) -> MakePPO:
    """See `make_ppo`."""
    return lambda name="run", **groups: make_ppo(tmp_path, tokenizer, name, **groups)


class Crash(L.Callback):
    """Dies at the beginning of a round."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batch:
            raise RuntimeError("the power is gone")


def values(config: PPOConfig, name: str) -> list[float]:
    """A curve without its steps."""
    return [value for _, value in all_curves(config)[name]]


def weights(config: PPOConfig) -> dict[str, torch.Tensor]:
    return last_state(config)["state_dict"]


LEARNS: dict[str, dict[str, Any]] = {
    "ppo": {"learns_values_by": "head", "minibatches": 2},
    "grpo": {"algorithm": "grpo"},
}


@pytest.mark.parametrize("case", LEARNS)
def test_the_true_reward_rises_and_the_price_holds_the_policy_near_the_reference(case: str, make: MakePPO) -> None:
    steps = {"max_steps": 9, "val_every_n_steps": None, "save_every_n_steps": None}
    options = {"group_size": 4, **LEARNS[case]}
    free = make("free", kl_coefficient=0.01, trainer=steps, **options)
    ppo(free)
    scores = values(free, "objective/scores")
    assert sum(scores[-3:]) > 2 * sum(scores[:3]), scores
    dear = make("dear", kl_coefficient=2.0, trainer={**steps, "max_steps": 5}, **options)
    ppo(dear)
    assert max(values(dear, "objective/kl")) < 2.0
    assert values(free, "objective/kl")[-1] > 2 * values(dear, "objective/kl")[-1]
    assert values(free, "val/loss")[-1] == -values(free, "val/reward")[-1]


def test_the_first_update_compares_the_policy_with_itself(make: MakePPO) -> None:
    """With one update in a round, the policy is compared with itself alone: every ratio is 1."""
    config = make(update_epochs=1, update_micro_batch_size=3, temperature=0.7, trainer={"max_steps": 2})
    ppo(config)
    assert values(config, "policy/ratio") == pytest.approx([1.0, 1.0], abs=1e-7)
    assert max(values(config, "policy/approxkl")) < 1e-12
    assert values(config, "policy/clipfrac") == [0.0, 0.0]
    kl = values(config, "objective/kl")
    assert kl[0] == 0.0
    assert kl[1] != 0.0
    assert values(config, "objective/non_score_reward")[0] == 0.0


RESUMES: dict[str, dict[str, Any]] = {
    "critic": {"dropout": 0.1, "kl_target": 0.1, "kl_horizon": 20, "minibatches": 2},
    "lora": {"algorithm": "grpo", "group_size": 2, "lora": {"rank": 2, "dropout": 0.1}},
}


@pytest.mark.parametrize("case", RESUMES)
def test_a_crashed_run_goes_on_bit_identically(case: str, make: MakePPO) -> None:
    options = RESUMES[case]
    straight = make("straight", **options)
    ppo(straight)
    with pytest.raises(RuntimeError, match="power"):
        ppo(make("crashed", **options), callbacks=[Crash(4)])
    resumed = make("crashed", **options, ckpt_path="last")
    ppo(resumed)
    one, other = last_state(straight), last_state(resumed)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "PromptDataModule", "adaptive_kl"):
        assert_identical(one[key], other[key], key)
    assert one["global_step"] == 4
    kept = [
        {name: curve for name, curve in all_curves(config).items() if name not in TIMED}
        for config in (straight, resumed)
    ]
    assert_identical(*kept, "curves")
    if case == "critic":
        prices = values(straight, "objective/kl_coefficient")
        assert prices[0] == pytest.approx(0.05)
        # at a distance of 0 the price falls by 20% x 8 answers / 20
        assert prices[1] == pytest.approx(0.05 * (1 - 0.2 * 8 / 20))
        assert len(set(prices)) == 4
    else:
        assert all(".lora_" in name for name in one["state_dict"])


def test_padding_changes_nothing(make: MakePPO) -> None:
    """Rows are as wide as the longest, rounded up to a multiple of 8, but never wider than sequence_length."""
    runs = []
    for width in (34, 40):
        config = make(f"width{width}", data={"sequence_length": width}, trainer={"max_steps": 2})
        ppo(config)
        runs.append({name: curve for name, curve in all_curves(config).items() if name not in TIMED})
    assert runs[0].keys() == runs[1].keys()
    for name in runs[0]:
        assert _close(runs[0][name], runs[1][name]), name


def _close(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    return [step for step, _ in one] == [step for step, _ in other] and [value for _, value in one] == pytest.approx(
        [value for _, value in other], rel=1e-4, abs=1e-5
    )


def test_micro_batches_change_nothing(make: MakePPO) -> None:
    options = {"minibatches": 2, "trainer": {"max_steps": 2}}
    whole, parts = make("whole", **options), make("parts", update_micro_batch_size=3, **options)
    ppo(whole)
    ppo(parts)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-3, atol=2e-4, msg=name)


def test_the_critic_learns_and_stays_out_of_the_model_folder(make: MakePPO) -> None:
    config = make(value_coefficient=1.0, trainer={"max_steps": 6, "val_every_n_steps": None})
    ppo(config)
    losses = values(config, "loss/value")
    # each is of other answers; with six other seeds the right side is 3 to 12 times the left one
    assert sum(losses[3:]) / 3 < sum(losses[:2]) / 4
    state = weights(config)
    assert state["critic.head.weight"].shape == (1, 32)
    start, _ = load_model_folder(Path(str(config.init_from)))
    model, tokenizer = load_model_folder(config.folder / "model")
    assert tokenizer.im_end_id is not None
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state[f"model.{name}"])
    critic, policy = state["critic.embedding.weight"], start.state_dict()["embedding.weight"]
    assert 0 < float((critic - policy).abs().max()) < 0.3  # it began as the policy's trunk


def test_the_dropout_is_the_run_s_own(make: MakePPO) -> None:
    """Of the policy and of the critic, whatever the folder that they begin with was trained with."""
    config = make(dropout=0.1)
    file = Path(str(config.init_from)) / "config.json"
    fields = json.loads(file.read_text())
    fields["lit_llm"]["attention_dropout"] = 0.3
    file.write_text(json.dumps(fields))
    assert read_model_config(file.parent).dropout_of_attention == 0.3
    module = build_ppo(config)[0]
    assert isinstance(module, PPOModule) and module.critic is not None
    assert [model.config.dropout_of_attention for model in (module.model, module.critic)] == [0.1, 0.1]


def test_the_value_head_stays_out_of_the_model_folder(make: MakePPO) -> None:
    config = make(learns_values_by="head", trainer={"max_steps": 2})
    ppo(config)
    assert not any(name.startswith("critic.") for name in weights(config))
    assert weights(config)["model.value_head.weight"].shape == (1, 32)
    assert not read_model_config(config.folder / "model").value_head
    load_model_folder(config.folder / "model")


def test_lora_trains_additions_and_the_critics_head_alone(make: MakePPO, tmp_path: Path) -> None:
    config = make(lora={"rank": 2}, trainer={"max_steps": 2})
    ppo(config)
    names = set(weights(config))
    assert {name for name in names if ".lora_" not in name} == {"critic.head.weight"}
    assert any(name.startswith("critic.blocks") for name in names)
    assert values(config, "objective/kl")[0] == 0.0
    assert values(config, "objective/kl")[1] != 0.0
    # the reference is the policy without its additions: the same run against a frozen copy sees the same distances
    frozen = make("frozen", lora={"rank": 2}, trainer={"max_steps": 2}, reference_model=config.init_from)
    ppo(frozen)
    assert values(frozen, "objective/kl") == pytest.approx(values(config, "objective/kl"), abs=1e-5)


def test_an_answer_that_was_cut_off_is_fined(make: MakePPO) -> None:
    plain, fined = (make(name, missing_eos_penalty=fine, trainer={"max_steps": 1}) for name, fine in FINES)
    ppo(plain)
    ppo(fined)
    cut_off = 8 - values(fined, "objective/num_eos")[0]
    assert cut_off > 0
    assert values(fined, "objective/scores")[0] == pytest.approx(
        values(plain, "objective/scores")[0] - 3.0 * cut_off / 8
    )


FINES = (("plain", None), ("fined", 3.0))


def test_bfloat16_arithmetic_moves_the_weights(make: MakePPO) -> None:
    """Weights that autocast had converted before would get no gradient, and be those from before an update."""
    config = make(trainer={"max_steps": 1, "precision": "bf16-mixed", "activation_checkpointing": "full"})
    ppo(config)
    start, _ = load_model_folder(Path(str(config.init_from)))
    for name, weight in start.state_dict().items():
        assert not torch.equal(weight, weights(config)[f"model.{name}"]), name
    assert values(config, "policy/approxkl")[0] > 1e-3  # of the second update


def test_a_spike_is_told_without_a_replay(make: MakePPO, capsys: pytest.CaptureFixture[str]) -> None:
    """A round is judged once, and what it drew cannot be computed again."""
    steps = {"max_steps": 4, "spike_window": 4, "spike_sigmas": 2.0, "val_every_n_steps": None}
    config = make(rewards=["reward_functions:grows"], value_coefficient=1.0, trainer=steps)
    ppo(config)
    assert all_curves(config)["train/spike_score"]
    errors = capsys.readouterr().err
    assert "is a spike" in errors
    assert "--replay" not in errors


def test_a_reward_folder_scores_and_the_critic_begins_with_it(
    make: MakePPO, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = write_policy(tmp_path / "judge" / "model", tokenizer, output="score", seed=3)
    config = make(
        rewards=[str(tmp_path / "judge"), "reward_functions:letters"],
        reward_weights=[2.0, -1.0],
        optimizer={"learning_rate": 1e-9},
        trainer={"max_steps": 1},
    )
    ppo(config)
    judge, letters = values(config, "rewards/judge"), values(config, "rewards/letters")
    assert values(config, "objective/scores")[0] == pytest.approx(2 * judge[0] - letters[0], rel=1e-5)
    start, _ = load_model_folder(folder)
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(weights(config)[f"critic.{name}"], weight, rtol=0, atol=1e-6)


def test_numbers_that_are_not_finite_after_the_first_update_leave_no_checkpoint(make: MakePPO) -> None:
    """A checkpoint of weights in the middle of a round would pass for one of the step before."""
    config = make(optimizer={"learning_rate": 1e38}, trainer={"gradient_clip_val": None})
    with pytest.raises(UserError, match="update 2 in step 1 is not finite") as caught:
        ppo(config)
    assert not isinstance(caught.value, NonFiniteStep)
    assert checkpoints(config) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": {"sequence_length": 30}}, "longer than data.sequence_length 30 with an answer of 8 tokens"),
        ({"minibatches": 3}, "minibatches 3 does not divide the 8 answers"),
        ({"data": {"micro_batch_size": 2}}, "update_micro_batch_size"),
        ({"algorithm": "grpo", "group_size": 2, "kl_estimator": "k1"}, "use k3"),
        ({"algorithm": "grpo"}, "group_size 1 must be at least 2"),
        ({"rewards": []}, "rewards is empty"),
        ({"kl_coefficient": 0.0, "kl_target": 0.5}, "kl_target has no effect on kl_coefficient 0"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str, make: MakePPO) -> None:
    with pytest.raises(UserError, match=message):
        ppo(make(**options))


# The parts.


def test_answers_are_those_of_the_engine_and_keep_their_end(make: MakePPO) -> None:
    """An answer has what the engine writes and, where that stopped, the token that stopped it."""
    module, data, _ = build_ppo(make())
    batch = data.train_dataset.__getitems__(range(6))
    seeds = [derived_seed(1, sample) for sample in range(6)]
    assert len(set(seeds)) == 6
    ends = list(range(0, 400, 12))  # many, so that some answers end
    options = {"max_new_tokens": 8, "temperature": 0.7}
    answers = write_answers(module.model, batch["prompts"], seeds, ends, **options, max_batch=4)
    alone = write_answers(module.model, batch["prompts"][2:3], seeds[2:3], ends, **options, max_batch=1)
    assert alone == answers[2:3]
    assert {answer.ended for answer in answers} == {True, False}
    for answer, prompt, seed in zip(answers, batch["prompts"], seeds, strict=True):
        engine = Engine(module.model, 1)
        number = engine.submit(prompt, SamplingConfig(seed=seed, **options), stop_tokens=ends)
        ids = engine.run()[number].ids
        assert answer.prompt == prompt
        assert (answer.ids[:-1] if answer.ended else answer.ids) == ids
        assert (answer.ids[-1] in ends) == answer.ended
        assert len(answer.ids) == 8 or answer.ended


def test_answers_are_scored_at_the_temperature_that_they_are_drawn_at(make: MakePPO) -> None:
    """`objective/entropy` of the first round, from the same answers and the model's own logits."""
    config = make(temperature=0.1, trainer={"max_steps": 1})
    ppo(config)
    module, data, _ = build_ppo(make("again", temperature=0.1))
    batch = data.train_dataset.__getitems__(range(8))
    seeds = [derived_seed(config.seed, 1, sample, 0) for sample in range(8)]
    options = {"max_new_tokens": 8, "temperature": 0.1, "max_batch": 8}
    answers = write_answers(module.model, batch["prompts"], seeds, module.stop_ids, **options)
    surprise = 0.0
    for answer in answers:
        logits = module.model(torch.tensor([answer.prompt + answer.ids]))[0, len(answer.prompt) - 1 : -1]
        log_probs = torch.log_softmax(logits / 0.1, -1)
        surprise -= float(log_probs[torch.arange(len(answer.ids)), answer.ids].sum()) / len(answers)
    assert values(config, "objective/entropy")[0] == pytest.approx(surprise, rel=1e-5)
    assert values(config, "objective/response_length")[0] == sum(len(each.ids) for each in answers) / 8


def test_rows_of_answers() -> None:
    answers = [Answer([5, 6, 7], [8, 9], True), Answer([5], [1])]
    experience = Experience.of_answers(answers, 64, torch.device("cpu"))
    _ = IGNORE_INDEX
    assert experience.tokens.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [5, 1, 0, 0, 0, 0, 0, 0]]
    assert experience.targets.tolist() == [[_, _, 8, 9, _, _, _, _], [1, _, _, _, _, _, _, _]]
    assert experience.lengths.tolist() == [5, 2]
    assert experience.ended.tolist() == [True, False]
    assert [len(part) for part in experience.split(1)] == [1, 1]
    assert experience.rows(torch.tensor([1, 0])).lengths.tolist() == [2, 5]


# Several ranks.


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_learn_what_one_device_does(strategy: str, make: MakePPO, free_port: int) -> None:
    options = {"group_size": 2, "update_micro_batch_size": 3, "whiten_rewards": True, "kl_target": 0.1}
    alone = make("alone", **options, trainer={"max_steps": 2})
    spread = {"devices": 2, "strategy": strategy, "sharded_checkpoints": False}  # one file, which `weights` reads
    together = make("together", **options, trainer={"max_steps": 2, **spread})
    ppo(alone)
    train_on_ranks(together, 2, free_port)
    one, two = all_curves(alone), all_curves(together)
    skipped = (*TIMED, "throughput/tokens")  # of the first rank, times the ranks
    assert one.keys() == two.keys()
    for name in one.keys() - set(skipped):
        assert _close(one[name], two[name]), (name, one[name], two[name])
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(together)[name], weight, rtol=1e-3, atol=3e-4, msg=name)


def test_grpos_price_is_k3_of_the_reference_over_the_policy() -> None:
    """exp(r) - 1 - r with r = log(reference / policy) at each token; the other way round the numbers are others."""
    policy = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.5, -4.0]], requires_grad=True)
    reference = torch.tensor([[-2.0, -1.5, -0.5], [-1.0, -1.5, 9.0]])
    answers = [Answer([5], [6, 7, 8]), Answer([5], [6, 7])]
    part = Experience.of_answers(answers, 8, torch.device("cpu"))
    wide = policy.new_zeros(part.tokens.shape)
    log_probs, reference_log_probs = (torch.cat([x, wide[:, 3:]], 1) for x in (policy, reference))
    part.log_probs, part.reference_log_probs = log_probs.detach(), reference_log_probs  # the ratio is 1
    part.advantages = torch.where(part.mask, torch.tensor([[0.5], [-0.25]]), 0.0)
    config = PPOConfig(
        init_from="policy", rewards=["reward_functions:letters"], algorithm="grpo", group_size=2, kl_coefficient=0.3
    )
    loss, _ = update_loss(part, log_probs, wide, None, config)
    logs = [-1.0, 0.5, 0.0, 2.0, 0.0]  # of the five tokens of the answers
    distance = sum(math.exp(log) - 1 - log for log in logs)
    assert loss.item() == pytest.approx(-3 * 0.5 + 2 * 0.25 + 0.3 * distance, rel=1e-5)
    loss.backward()
    slopes = [0.3 * (1 - math.exp(log)) for log in logs]
    wanted = [slope - advantage for slope, advantage in zip(slopes, [0.5] * 3 + [-0.25] * 2, strict=True)]
    assert policy.grad.flatten().tolist() == pytest.approx([*wanted, 0.0], rel=1e-5)
