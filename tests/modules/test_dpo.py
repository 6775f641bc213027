"""DPO's module: its log-probabilities, metrics and losses, and where the reference's numbers are from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from chat_rows import letter_tokenizer, make_dpo, make_reward, pair, save_policy, some_pairs
from run_files import all_curves
from safetensors.torch import load_file, save_file

from lit_llm.cli.parsing import parse
from lit_llm.config import DPOConfig, ModelConfig, UserError, from_plain, to_plain
from lit_llm.interop import load_model_folder, save_model_folder
from lit_llm.model import Decoder
from lit_llm.modules import DPOModule
from lit_llm.objectives import PreferenceKind
from lit_llm.stages.dpo import build_dpo, dpo
from lit_llm.stages.reward import build_reward
from lit_llm.tokenizer import Tokenizer

KINDS = get_args(PreferenceKind)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, policy: Path, tokenizer: Tokenizer) -> Path:
    """The policy with its weights shaken, as a reference that differs from it."""
    model, _ = load_model_folder(policy)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return save_policy(tmp_path_factory.mktemp("other"), tokenizer, model)


def make(folder: Path, policy: Path, rows: list[dict[str, Any]] | None = None, **groups: Any) -> DPOConfig:
    return make_dpo(folder, policy, rows or some_pairs(40), **groups)


def ready(config: DPOConfig) -> tuple[DPOModule, Any]:
    """A module with its reference, outside of a run."""
    module, data, _ = build_dpo(config)
    assert isinstance(module, DPOModule)
    module.eval()
    module.on_fit_start()
    return module, data


def batch_of(data: Any, split: str, pairs: list[int] | None = None) -> dict[str, torch.Tensor]:
    pairs = list(range(len(data.items(split)))) if pairs is None else pairs
    return {**data.items(split).batch(pairs), "sample_ids": torch.tensor(pairs)}


@torch.no_grad()
def by_hand(folder: Path, data: Any, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed log-probabilities, entropies and lengths of all answers [pairs, 2], each text read alone."""
    model, tokenizer = load_model_folder(folder)
    items, model = data.items(split), model.eval()
    header = tokenizer.encode("assistant\n")
    found = []
    for row in range(len(items)):
        for _, ids, _ in items.texts(row):
            start = next(n for n in range(len(ids)) if ids[n - 2 : n] == header)  # of the answer
            log_probs = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0, start - 1 :].double(), -1)
            picked = log_probs.gather(1, torch.tensor(ids[start:]).unsqueeze(1))
            entropy = -(log_probs.exp() * log_probs).sum()
            found.append((float(picked.sum()), float(entropy), len(ids) - start))
    return tuple(torch.tensor(column, dtype=torch.float64).view(-1, 2) for column in zip(*found, strict=True))


@torch.no_grad()
def loss_of(module: DPOModule, data: Any, split: str) -> float:
    """Summed loss of a split."""
    return module.token_loss(batch_of(data, split), training=split == "train")[0].item()


def metrics_of(module: DPOModule, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
    """Loss of a validation batch, and the means that it notes."""
    module.validation_means.reset()
    with torch.no_grad():
        loss, count = module.token_loss(batch, training=False)
    return loss.item() / int(count), module.validation_means.compute()


@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_loss_and_metrics_by_hand(tmp_path: Path, policy: Path, other: Path, reference: str) -> None:
    config = make(tmp_path, policy, reference_model=str(other), reference=reference, beta=0.3)
    module, data = ready(config)
    log_probs, entropies, lengths = by_hand(policy, data, "validation")
    c, r = (log_probs - by_hand(other, data, "validation")[0]).unbind(1)
    loss, metrics = metrics_of(module, batch_of(data, "validation"))
    assert loss == pytest.approx(float(F.softplus(-0.3 * (c - r)).mean()), abs=1e-5)
    accuracy = float((c > r).double().mean())
    assert 0.1 < accuracy < 0.9
    expected = {
        "rewards/chosen": 0.3 * float(c.mean()),
        "rewards/rejected": 0.3 * float(r.mean()),
        "rewards/accuracies": accuracy,
        "rewards/margins": 0.3 * float((c - r).mean()),
        "logps/chosen": float(log_probs[:, 0].mean()),
        "logps/rejected": float(log_probs[:, 1].mean()),
        "logps/chosen_drift": float(c.mean()),
        "entropy": float(entropies.sum() / lengths.sum()),
        "completion_length": float(lengths.mean()),
    }
    assert metrics == {name: pytest.approx(value, abs=2e-5) for name, value in expected.items()}


def test_the_names_in_tensorboard(tmp_path: Path, policy: Path) -> None:
    config = make(tmp_path, policy, sample_prompts=2)
    result = dpo(config)
    names = "rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected"
    shown = [*names.split(), "logps/chosen_drift"]
    curves = all_curves(config)
    assert {*shown, "train/entropy", "train/completion_length", "train/loss"} <= curves.keys()
    assert {f"val/{name}" for name in (*shown, "entropy", "completion_length", "loss")} <= curves.keys()
    assert not {"val/perplexity", "val/bits_per_byte"} & curves.keys()
    assert [step for step, _ in curves["rewards/margins"]] == [1, 2, 3, 4, 5, 6]
    assert len(result.samples) == 2


def test_equal_rewards_are_half_accurate(tmp_path: Path, policy: Path) -> None:
    module, data = ready(make(tmp_path, policy, reference="live"))
    assert metrics_of(module, batch_of(data, "validation"))[1]["rewards/accuracies"] == 0.5


def test_the_dropout_is_the_run_s_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A policy that was trained with dropout of attention weights is its reference at the first step."""
    policy = save_policy(tmp_path / "dropped", tokenizer, attention_dropout=0.3)
    module, data = ready(make(tmp_path, policy, reference="live"))
    module.model.train()
    pairs = len(data.items("train"))
    assert loss_of(module, data, "train") == pytest.approx(pairs * math.log(2), abs=1e-6 * pairs)
    assert build_dpo(make(tmp_path, policy, dropout=0.1))[0].config.model.dropout_of_attention == 0.1
    config = make(tmp_path, policy)
    config.model.attention_dropout = 0.2
    with pytest.raises(UserError, match=r"model\.attention_dropout has no effect: .*; give dropout instead"):
        build_dpo(config)


def test_the_cross_entropy_of_chosen_answers_is_added(tmp_path: Path, policy: Path) -> None:
    """RPO: the mean over the tokens of each answer, in training alone."""
    losses = []
    for weight in (0.0, 0.7):
        module, data = ready(make(tmp_path, policy, sft_weight=weight))
        losses.append([loss_of(module, data, split) for split in ("train", "validation")])
    log_probs, _, lengths = by_hand(policy, data, "train")
    added = float((-log_probs / lengths)[:, 0].sum()) * 0.7
    assert losses[1][0] - losses[0][0] == pytest.approx(added, rel=1e-5)
    assert losses[1][1] == losses[0][1]


def test_ld_alpha_discounts_tails(tmp_path: Path, policy: Path, other: Path) -> None:
    """In the policy and in the reference, live or precomputed; what is shown as logps stays whole."""
    rows = [pair("ghj", "bbbb", "dd"), pair("ghk", "b", "cdfgh")]
    options: dict[str, Any] = {"reference_model": str(other), "data": {"validation_fraction": 0.0}}
    per_token: list[torch.Tensor] = []
    for folder in (policy, other):
        model, tokenizer = load_model_folder(folder)
        _, data = ready(make(tmp_path, policy, rows, **options))
        for row in range(2):
            for _, ids, _ in data.items("train").texts(row):
                with torch.no_grad():
                    log_probs = torch.log_softmax(model.eval()(torch.tensor([ids[:-1]]))[0], -1)
                start = len(ids) - 1 - len(tokenizer.decode(ids).split("assistant\n")[1].split("<")[0])
                per_token.append(log_probs.gather(1, torch.tensor(ids[1:]).unsqueeze(1))[start - 1 :, 0])
    shared = [3, 3, 2, 2]
    ours, theirs = (
        torch.stack([tokens[:n].sum() + 0.25 * tokens[n:].sum() for tokens, n in zip(part, shared, strict=True)])
        for part in (per_token[:4], per_token[4:])
    )
    ratio = (ours - theirs).view(2, 2)
    expected = float(F.softplus(-0.1 * (ratio[:, 0] - ratio[:, 1])).mean())
    for reference in ("live", "precomputed"):
        module, data = ready(make(tmp_path, policy, rows, ld_alpha=0.25, reference=reference, **options))
        batch = batch_of(data, "train")
        module.training_means.reset()
        loss, _ = module.token_loss(batch, training=True)
        assert loss.item() / 2 == pytest.approx(expected, abs=1e-6)
        whole = torch.stack([tokens.sum() for tokens in per_token[:4]]).view(2, 2)
        noted = module.training_means.compute()
        assert noted["logps/chosen"] == pytest.approx(float(whole[:, 0].mean()), abs=1e-5)
        assert noted["logps/rejected"] == pytest.approx(float(whole[:, 1].mean()), abs=1e-5)


def fit_one_step(module: DPOModule, data: Any) -> None:
    L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    ).fit(module, datamodule=data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_takes_a_step_that_lowers_it(tmp_path: Path, policy: Path, other: Path, kind: str) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.1} if kind in ("robust", "exo") else {}
    if kind != "simpo":
        options["reference_model"] = str(other)
    # all pairs are one batch, so that the loss before and after are of the same ones
    data_options = {"validation_fraction": 0.0, "batch_size": 16}
    rows = some_pairs(16)
    schedule = {"name": "constant", "warmup_steps": 0}
    config = make(
        tmp_path,
        policy,
        rows,
        loss=kind,
        data=data_options,
        schedule=schedule,
        optimizer={"learning_rate": 1e-4},
        **options,
    )
    module, data = ready(config)
    before = loss_of(module, data, "train")
    weights = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    fit_one_step(module.train(), data)
    assert all(not torch.equal(weight, weights[name]) for name, weight in module.model.state_dict().items())
    assert loss_of(module, data, "train") < before


# The table of the reference's log-probabilities.


def tables(config: DPOConfig) -> dict[str, Path]:
    return {path.name: path for path in (Path(config.output_root) / "reference_log_probs").glob("*.safetensors")}


def test_the_table_is_that_of_the_live_reference(tmp_path: Path, policy: Path, other: Path) -> None:
    options: dict[str, Any] = {"reference_model": str(other), "data": {"batch_size": 3}}
    kept, data = ready(make(tmp_path, policy, **options))
    live, _ = ready(make(tmp_path, policy, reference="live", **options))
    for split in ("train", "validation"):
        log_probs, _, _ = by_hand(other, data, split)
        torch.testing.assert_close(kept._table[split].double(), log_probs, atol=1e-5, rtol=0)
        batch = batch_of(data, split)
        reference = torch.stack(live._reference(batch, split), 1)
        torch.testing.assert_close(kept._table[split], reference, atol=1e-5, rtol=0)
    assert len(tables(kept.config)) == 2  # one for each split
    # a table spares a forward pass of a step, which has the three of the policy besides
    assert live.flops_per_token() == pytest.approx(4 / 3 * kept.flops_per_token())


def test_the_table_is_found_again_and_made_anew_when_something_changes(
    tmp_path: Path, policy: Path, other: Path, tokenizer: Tokenizer
) -> None:
    base = make(tmp_path, policy)
    ready(base)
    first = tables(base)
    # marked, so that a second computation would be noticed
    for path in first.values():
        save_file({"log_probs": torch.full_like(load_file(path)["log_probs"], -7.0)}, path)
    again, _ = ready(make(tmp_path, policy, optimizer={"learning_rate": 1.0}, beta=0.5, loss="ipo"))
    assert tables(base).keys() == first.keys()
    assert (again._table["train"] == -7.0).all() and (again._table["validation"] == -7.0).all()
    changes: list[dict[str, Any]] = [
        {"rows": some_pairs(40, seed=9)},
        {"reference_model": str(other)},
        {"ld_alpha": 0.5},
        {"data": {"validation_fraction": 0.4}},
        {"trainer": {"precision": "bf16-mixed"}},
    ]
    for number, change in enumerate(changes, start=2):
        module, _ = ready(make(tmp_path, policy, change.pop("rows", None), **change))
        assert len(tables(base)) == 2 * number, change
        assert (module._table["train"] > -1000).all() and not (module._table["train"] == -7.0).any()


def test_the_table_of_an_adapter_folder_is_of_its_base_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    base = save_policy(tmp_path / "base", tokenizer)
    run = make(tmp_path, base, run_name="first", reference="live", lora={"rank": 2}, trainer={"max_steps": 2})
    dpo(run)
    adapter = run.folder / "adapter"
    for number in range(1, 4):
        module, data = ready(make(tmp_path, adapter))
        assert len(tables(run)) == 2 * number
        log_probs, _, _ = by_hand(adapter, data, "train")
        torch.testing.assert_close(module._table["train"].double(), log_probs, atol=1e-5, rtol=1e-6)
        if number == 1:
            options = json.loads((adapter / "adapter_config.json").read_text())
            (adapter / "adapter_config.json").write_text(json.dumps({**options, "lora_alpha": 99.0}))
        else:
            weights = load_file(base / "model.safetensors")
            save_file({name: 1.1 * weight for name, weight in weights.items()}, base / "model.safetensors")


@pytest.mark.parametrize("damage", ["cut", "rows"])
def test_a_damaged_table_is_made_anew(tmp_path: Path, policy: Path, damage: str) -> None:
    module, _ = ready(make(tmp_path, policy))
    for path in tables(module.config).values():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:40])
        else:
            save_file({"log_probs": torch.zeros(3, 2)}, path)
    again, _ = ready(make(tmp_path, policy))
    for split, table in module._table.items():
        assert torch.equal(table, again._table[split])


# What cannot be a reference.


def test_a_reference_of_another_vocabulary_or_a_reward_model_is_refused(
    tmp_path: Path, policy: Path, tokenizer: Tokenizer
) -> None:
    larger = save_policy(tmp_path / "larger", tokenizer, vocab_size=300)
    with pytest.raises(UserError, match=r"not a language model of 271 tokens \(it has 300\)"):
        build_dpo(make(tmp_path, policy, reference_model=str(larger)))
    module, _, _ = build_reward(make_reward(tmp_path, policy, some_pairs(8)))
    save_model_folder(tmp_path / "scores", module.config.model, module.model.state_dict(), tokenizer)
    for reference in ("live", "precomputed"):
        with pytest.raises(UserError, match="is not a language model"):
            build_dpo(make(tmp_path, policy, reference_model=str(tmp_path / "scores"), reference=reference))


def test_a_reference_may_have_another_shape(tmp_path: Path, policy: Path, tokenizer: Tokenizer) -> None:
    wider = save_policy(tmp_path / "wider", tokenizer, hidden_size=48, num_layers=1)
    config = make(tmp_path, policy, reference_model=str(wider), trainer={"max_steps": 1})
    dpo(config)
    log_probs = by_hand(wider, build_dpo(config)[1], "train")[0]
    found = [load_file(path)["log_probs"] for path in tables(config).values()]
    assert any(table.shape == log_probs.shape and (table - log_probs).abs().max() < 1e-4 for table in found)


@pytest.mark.parametrize("reference", ["precomputed", "live"])
def test_a_vocabulary_that_grows_grows_in_the_reference_too(tmp_path: Path, reference: str) -> None:
    from conftest import tiny_model

    plain = Tokenizer.load(chatless(tmp_path / "tokenizer"))
    size = plain.vocab_size
    model = Decoder(ModelConfig(**{**vars(tiny_model()), "vocab_size": size, "max_position_embeddings": 64}))
    folder = save_policy(tmp_path / "chatless", plain, model)
    config = make(tmp_path, folder, reference=reference, data={"add_chat_tokens": True})
    module, data = ready(config)
    assert module.config.model.vocab_size > size
    assert metrics_of(module, batch_of(data, "validation"))[0] == pytest.approx(0.6931472, abs=1e-6)


def chatless(folder: Path) -> Path:
    """A byte-level tokenizer that has an end of text only."""
    import tokenizers

    from lit_llm.tokenizer.tokenizer import byte_level

    vocab = {
        character: number for number, character in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    }
    Tokenizer(byte_level(tokenizers.models.BPE(vocab, []), ["<|endoftext|>"])).save(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "beta"),
    [([], 0.1), (["--loss", "ipo"], 0.1), (["--loss", "simpo"], 2.0), (["--loss", "simpo", "--beta", "0.1"], 0.1)],
)
def test_beta_is_that_of_the_loss_and_the_one_kept_was_used(policy: Path, words: list[str], beta: float) -> None:
    config = parse(DPOConfig, ["--init_from", str(policy), *words])
    assert config.beta == to_plain(config)["beta"] == beta
    assert from_plain(DPOConfig, to_plain(config)).beta == beta


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing has no effect on loss hinge"),
        ({"simpo_gamma": 1.0}, "simpo_gamma has no effect on loss sigmoid"),
        ({"loss": "simpo", "reference": "live"}, "loss simpo has no reference"),
        ({"loss": "simpo", "reference_model": "somewhere"}, "loss simpo has no reference"),
        ({"loss": "exo"}, "exo needs label_smoothing"),
        ({"reference": "base"}, "give lora.rank"),
        ({"reference": "base", "lora": {"rank": 2}, "reference_model": "there"}, "leave reference_model out"),
        ({"lora": {"adapter": "somewhere"}}, "the reference would be init_from without lora.adapter"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"ld_alpha": 1.5}, "ld_alpha is 1.5"),
    ],
)
def test_options_without_effect(tmp_path: Path, policy: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, policy, **options)
