"""Invariants 3, 4 and 7 for the stages after pretraining: batches, padding, packing, references, adapters."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from chat_rows import letter_tokenizer, make_dpo, make_reward, make_sft, save_policy, some_pairs, some_talks
from closeness import assert_same_gradients
from conftest import tiny_model
from ranks import start_ranks, tell_rank
from run_files import all_curves, assert_identical, last_state
from test_resume import Crash, curves

from lit_llm.config import PostTrainingConfig
from lit_llm.interop import load_model_folder
from lit_llm.model.lora import merged_state
from lit_llm.modules import DPOModule, LanguageModule
from lit_llm.stages.dpo import build_dpo, dpo
from lit_llm.stages.reward import build_reward, reward
from lit_llm.stages.sft import build_sft, sft
from lit_llm.tokenizer import Tokenizer

ROWS = 8
Gradient = dict[str, torch.Tensor]


class Stage:
    """A stage, and rows of different lengths for it."""

    def __init__(self, make: Callable[..., Any], build: Callable[..., Any], run: Callable[..., Any], rows: Any) -> None:
        self.make, self.build, self.run, self.rows = make, build, run, rows


STAGES = {
    "sft": Stage(make_sft, build_sft, sft, some_talks),
    "reward": Stage(make_reward, build_reward, reward, some_pairs),
    "dpo": Stage(make_dpo, build_dpo, dpo, some_pairs),
}
UNPACKED = {"sft": {"packing": False}, "reward": {}, "dpo": {}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer)


class KeepGradient(L.Callback):
    """The gradient of the last step, as it is before clipping where that is off."""

    gradient: Gradient

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self.gradient = {
            name: parameter.grad.clone()
            for name, parameter in pl_module.model.named_parameters()
            if parameter.grad is not None
        }


def one_step(name: str, folder: Path, policy: Path, **data: Any) -> PostTrainingConfig:
    """A run of one step over all eight rows, which differ in length."""
    stage = STAGES[name]
    own = {} if name == "reward" else {"sample_prompts": 0}
    return stage.make(
        folder,
        policy,
        stage.rows(ROWS),
        data={"batch_size": ROWS, "validation_fraction": 0.0, **UNPACKED[name], **data},
        trainer={"max_steps": 1, "save_every_n_steps": None, "gradient_clip_val": None},
        **own,
    )


def gradient_of(name: str, config: PostTrainingConfig) -> Gradient:
    keep = KeepGradient()
    STAGES[name].run(config, callbacks=[keep])
    return keep.gradient


@pytest.fixture(scope="module", params=STAGES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Any:
    """A stage, and the gradient and loss of its eight rows in one piece."""
    name = request.param
    config = one_step(name, tmp_path_factory.mktemp(name), policy)
    return name, gradient_of(name, config), all_curves(config)["train/loss"]


def test_accumulation_changes_neither_gradient_nor_loss(whole: Any, tmp_path: Path, policy: Path) -> None:
    name, gradient, loss = whole
    for micro in (4, 1):
        config = one_step(name, tmp_path / str(micro), policy, micro_batch_size=micro)
        assert_same_gradients(gradient_of(name, config), gradient)
        assert all_curves(config)["train/loss"] == [(1, pytest.approx(loss[0][1], abs=1e-6))]


def _rank(rank: int, port: int, folder: str, policy: str) -> None:
    tell_rank(rank, 2, port)
    torch.distributed.init_process_group("gloo")
    for name in STAGES:
        config = two_rank_run(name, Path(folder) / name, Path(policy))
        config.trainer.devices = 2
        gradient = gradient_of(name, config)
        if rank == 0:
            torch.save(gradient, Path(folder) / f"{name}.pt")
    torch.distributed.destroy_process_group()


def two_rank_run(name: str, folder: Path, policy: Path) -> PostTrainingConfig:
    """One step and a validation; an odd number of validation rows leaves filler for one of the ranks."""
    stage = STAGES[name]
    own = {} if name == "reward" else {"sample_prompts": 0}
    config = stage.make(
        folder,
        policy,
        stage.rows(40),
        data={"validation_rows": 7, **UNPACKED[name]},
        trainer={"max_steps": 1, "save_every_n_steps": None, "gradient_clip_val": None},
        **own,
    )
    assert len(stage.build(config)[1].items("validation")) == 7
    return config


def test_two_ranks_change_neither_gradient_nor_validation(tmp_path: Path, policy: Path, free_port: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    start_ranks(_rank, 2, free_port, str(two), str(policy))
    for name in STAGES:
        config = two_rank_run(name, one / name, policy)
        assert_same_gradients(torch.load(two / f"{name}.pt"), gradient_of(name, config))
        ours, theirs = all_curves(config), all_curves(two_rank_run(name, two / name, policy))
        compared = [curve for curve in ours if not curve.startswith("throughput/")]
        assert {"train/loss", "val/loss"} <= set(compared)
        for curve in compared:
            # the run's one step has been made before its validation; differences of log-probabilities nearly cancel
            assert theirs[curve] == [(1, pytest.approx(ours[curve][0][1], rel=1e-5, abs=1e-4))], curve


def test_packed_conversations_give_the_gradient_of_each_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """With learned positions, which would notice if those of a conversation did not begin at 0."""
    folder = save_policy(
        tmp_path / "gpt2", tokenizer, tiny_model("gpt2", vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    )
    gradients, losses = [], []
    for packing in (False, True):
        config = one_step("sft", tmp_path / f"packing_{packing}", folder, packing=packing)
        _, data, _ = build_sft(config)
        config.data.batch_size = len(data.items("train"))
        gradients.append(gradient_of("sft", config))
        losses.append(all_curves(config)["train/loss"][0][1])
        assert (len(data.items("train")) < ROWS) == packing
    assert_same_gradients(*gradients)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama-10m", "gpt2", "modern-1m"])
@pytest.mark.parametrize("name", STAGES)
def test_a_loss_does_not_depend_on_neighbours(
    name: str, architecture: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}
    folder = save_policy(tmp_path / "model", tokenizer, tiny_model(architecture, **sizes))
    module, data, _ = STAGES[name].build(one_step(name, tmp_path, folder))
    prepare(module)
    items = data.items("train")
    together = loss_of(module, items, range(ROWS))
    apart = [loss_of(module, items, [row]) for row in range(ROWS)]
    widths = {items.batch([row])["tokens"].size(1) for row in range(ROWS)}
    assert len(widths) > 1
    assert together == pytest.approx(sum(apart), rel=1e-5)
    # filler counts nothing
    assert loss_of(module, items, [0, -1, 1, -1]) == pytest.approx(apart[0] + apart[1], rel=1e-5)


def prepare(module: LanguageModule) -> None:
    """Dropout off; a reference at hand, which is another one than the policy."""
    module.eval()
    if isinstance(module, DPOModule):
        module.on_fit_start()
        with torch.no_grad():
            module.model.head.weight.mul_(1.5)


@torch.no_grad()
def loss_of(module: LanguageModule, items: Any, rows: Any) -> float:
    rows = list(rows)
    loss, count = module.token_loss({**items.batch(rows), "sample_ids": torch.tensor(rows)}, training=True)
    if not module.counts_tokens:
        assert int(count) == sum(row >= 0 for row in rows)
    return loss.item()


def test_a_tokenizer_whose_padding_ends_turns(whole: Any, tmp_path: Path, policy: Path) -> None:
    """The end of a turn is learned, and scores are read there, though it is the padding, too."""
    name, gradient, _ = whole
    folder = tmp_path / "padded_by_end"
    shutil.copytree(policy, folder)
    for file, old, new in (
        ("tokenizer.json", "<|pad|>", "<|reserved|>"),
        ("tokenizer_config.json", '"pad_token": "<|pad|>"', '"pad_token": "<|im_end|>"'),
    ):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new).replace("<|pad|>", "<|reserved|>"))
    config = one_step(name, tmp_path, folder)
    _, data, tokenizer = STAGES[name].build(config)
    assert data.pad_id == tokenizer.pad_id == tokenizer.im_end_id
    batch = data.items("train").batch(range(ROWS))
    assert int((batch["targets"] == tokenizer.im_end_id).sum()) == (11 if name == "sft" else 2 * ROWS)
    assert_same_gradients(gradient_of(name, config), gradient)


# The reference of DPO.

REFERENCES, LOSSES = ("live", "precomputed", "base"), ("sigmoid", "sigmoid_norm", "ipo", "hinge")


@pytest.mark.parametrize(
    ("reference", "loss", "lora"),
    [
        *((reference, loss, {"rank": 2} if reference == "base" else {}) for reference in REFERENCES for loss in LOSSES),
        ("live", "sigmoid", {"rank": 2, "quantize_base": "int4"}),
        ("precomputed", "sigmoid", {"rank": 2, "quantize_base": "int8"}),
    ],
)
def test_step_0_of_dpo(reference: str, loss: str, lora: dict[str, Any], tmp_path: Path, policy: Path) -> None:
    """Policy and reference are the same, so that the loss is that of two equal answers."""
    groups = {"lora": lora} if lora else {}
    config = make_dpo(
        tmp_path, policy, some_pairs(16), reference=reference, loss=loss, trainer={"max_steps": 1}, **groups
    )
    module, data, _ = build_dpo(config)
    module.on_fit_start()
    expected = {"sigmoid": math.log(2), "sigmoid_norm": math.log(2), "ipo": 25.0, "hinge": 1.0}[loss]
    for split, training in (("train", True), ("validation", False)):
        means = module.training_means if training else module.validation_means
        for grad in (False, True):
            numbers = list(range(len(data.items(split))))
            batch = {**data.items(split).batch(numbers), "sample_ids": torch.tensor(numbers)}
            means.reset()
            with torch.set_grad_enabled(grad):
                total, count = module.train(grad).token_loss(batch, training)
            value = float(total.detach() / count)
            # products that prepare a gradient, and other neighbours, round their last bit otherwise
            exact = reference != "precomputed" and not grad and "quantize_base" not in lora
            assert value == pytest.approx(expected, rel=1.3e-7 if exact else 2e-6)
            found = means.compute()
            for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen_drift"):
                assert abs(found[name]) <= (0.0 if exact else 1e-5), name
            assert found["rewards/accuracies"] == 0.5 or not exact


class Watch(L.Callback):
    """Notes the weights of the live reference, and whether they are the policy's own tensors."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *arguments: Any) -> None:
        (reference,) = pl_module._frozen
        ours = {parameter.data_ptr() for parameter in pl_module.parameters()}
        assert not ours & {parameter.data_ptr() for parameter in reference.parameters()}
        assert not any(parameter.requires_grad for parameter in reference.parameters()) and not reference.training
        self.seen.append({name: weight.clone() for name, weight in reference.state_dict().items()})


def test_the_live_reference_is_no_part_of_what_is_trained(tmp_path: Path, policy: Path) -> None:
    watch = Watch()
    config = make_dpo(tmp_path, policy, some_pairs(40), reference="live", dropout=0.1)
    result = dpo(config, callbacks=[watch])
    expected = load_model_folder(policy)[0].state_dict()
    trained = load_model_folder(result.model_folder)[0].state_dict()
    assert len(watch.seen) == 6
    assert_identical(watch.seen[0], dict(expected))
    assert_identical(watch.seen[-1], dict(expected))
    assert all(not torch.equal(trained[name], expected[name]) for name in expected)
    names = last_state(config)["state_dict"]
    assert set(names) == {f"model.{name}" for name in expected}


def test_a_resumed_run_has_the_same_reference(tmp_path: Path, policy: Path) -> None:
    """Whether its table is still there, or has to be computed again when the policy has moved on."""
    straight = make_dpo(tmp_path, policy, some_pairs(40), run_name="straight")
    dpo(straight)
    kept = tmp_path / "reference_log_probs"
    times = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(times) == 2
    for name in ("kept", "lost"):
        with pytest.raises(RuntimeError, match="power"):
            dpo(make_dpo(tmp_path, policy, some_pairs(40), run_name=name), callbacks=[Crash(4)])
        if name == "lost":
            shutil.rmtree(kept)
        resumed = make_dpo(tmp_path, policy, some_pairs(40), run_name=name, ckpt_path="last")
        dpo(resumed)
        assert_same_end(straight, resumed)
        if name == "kept":
            assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == times
    assert {path.name for path in kept.iterdir()} == times.keys()


def assert_same_end(straight: PostTrainingConfig, resumed: PostTrainingConfig) -> None:
    one, other = last_state(straight), last_state(resumed)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_identical(one[key], other[key], key)
    assert_identical(curves(straight), curves(resumed), "curves")


# Adapters.


@pytest.mark.parametrize("name", STAGES)
def test_only_the_adapter_is_trained_and_saved(name: str, tmp_path: Path, policy: Path) -> None:
    stage = STAGES[name]
    config = stage.make(tmp_path, policy, stage.rows(40), lora={"rank": 2, "targets": ["q_proj", "down_proj"]})
    before = load_model_folder(policy)[0].state_dict()
    result = stage.run(config)
    saved = last_state(config)["state_dict"]
    adapter = {key for key in saved if "lora" in key}
    assert len(adapter) == 2 * 2 * 2  # two matrices, two targets, two layers
    assert saved.keys() - adapter == ({"model.head.weight"} if name == "reward" else set())
    module, _, _ = stage.build(config)
    trained = {f"model.{key}" for key, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert trained == saved.keys()
    assert all(float((saved[key] - module.state_dict()[key]).abs().max()) > 1e-4 for key in saved)
    # the run's model folder is the base with the adapter merged into it, and nothing else of it has changed
    module.load_state_dict(saved, strict=False)
    model, _ = load_model_folder(result.model_folder)
    merged = merged_state(module.model.state_dict(), config.lora)
    assert merged.keys() == model.state_dict().keys()
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged[key], atol=1e-6, rtol=0)
        changed = any(target in key for target in ("q_proj", "down_proj")) or (name == "reward" and "head" in key)
        assert changed or torch.equal(weight, before[key]), key
    tokens = torch.randint(0, 260, (2, 20))
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens), module.model(tokens), atol=1e-5, rtol=1e-5)
