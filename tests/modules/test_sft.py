"""Supervised fine-tuning: what it is trained on, what it says of itself, and the noise on its embeddings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chat_rows import letter_tokenizer, make_sft, save_policy, some_talks, talk
from run_files import all_curves, tensorboard_events

from lit_llm.config import SFTConfig, UserError
from lit_llm.interop import load_model_folder
from lit_llm.modules import SFTModule
from lit_llm.stages.sft import build_sft, sft
from lit_llm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"), tokenizer)


@torch.no_grad()
def answers_of(config: SFTConfig, folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of every learned token of a split, each conversation read alone."""
    _, data, _ = build_sft(config)
    model, _ = load_model_folder(folder)
    items, logits, targets = data.items(split), [], []
    for row in range(len(items.places)):
        ids, learned = torch.tensor(items.ids(row)), torch.tensor(items.supervised(row))[1:]
        logits.append(model.eval()(ids[None, :-1])[0][learned])
        targets.append(ids[1:][learned])
    return torch.cat(logits), torch.cat(targets)


def test_validation_against_each_conversation_alone(tmp_path: Path, policy: Path, tokenizer: Tokenizer) -> None:
    """Loss, perplexity, bits per byte and accuracy, by hand from the final model."""
    config = make_sft(tmp_path, policy, some_talks(40), trainer={"max_steps": 20, "val_every_n_steps": None})
    result = sft(config)
    logits, targets = answers_of(config, result.model_folder, "validation")
    loss = float(F.cross_entropy(logits, targets))
    letters = len(tokenizer.decode(targets.tolist(), skip_special=True))
    accuracy = float((logits.argmax(1) == targets).float().mean())
    assert 0.05 < accuracy < 0.95 and letters < len(targets)
    assert result.metrics["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert result.metrics["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.metrics["val/bits_per_byte"] == pytest.approx(loss * len(targets) / math.log(2) / letters, rel=1e-4)
    assert result.metrics["val/token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("chunk", [None, 3])
def test_accuracy_does_not_depend_on_chunks(tmp_path: Path, policy: Path, chunk: int | None) -> None:
    config = make_sft(tmp_path, policy, some_talks(40), loss_chunk_tokens=chunk)
    module, data, _ = build_sft(config)
    _, targets = answers_of(config, policy, "validation")
    module.eval()
    batch = data.items("validation").batch(range(len(data.items("validation"))))
    with torch.no_grad():
        loss_sum, tokens = module.token_loss(batch, training=False)
        logits = module.model(batch["tokens"], document_ids=batch["document_ids"])
    right = (logits.argmax(-1) == batch["targets"]).sum()
    assert int(tokens) == len(targets)
    assert module.validation_values() == {"token_accuracy": pytest.approx(float(right / tokens), abs=1e-7)}
    assert module.validation_accuracy.sums.item() == 0  # the next validation starts anew
    assert float(loss_sum) == pytest.approx(
        float(F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")), rel=1e-5
    )


@pytest.mark.parametrize("micro", [8, 4, 1])
def test_the_training_curve_is_the_mean_over_all_learned_tokens_of_a_step(
    tmp_path: Path, policy: Path, micro: int
) -> None:
    """Answers differ in length, so that a mean of means would be another number."""
    options: dict[str, Any] = {"packing": False, "micro_batch_size": micro, "validation_fraction": 0.0}
    config = make_sft(
        tmp_path,
        policy,
        some_talks(8),
        data=options,
        sample_prompts=0,
        trainer={"max_steps": 1, "save_every_n_steps": None},
    )
    sft(config)
    logits, targets = answers_of(config, policy, "train")
    module, data, _ = build_sft(config)
    means = [module.token_loss(data.items("train").batch([row]), training=True) for row in range(8)]
    mean_of_means = sum(float(loss.detach() / tokens) for loss, tokens in means) / 8
    expected = float(F.cross_entropy(logits, targets))
    assert abs(expected - mean_of_means) > 1e-4
    assert all_curves(config)["train/loss"] == [(1, pytest.approx(expected, abs=1e-5))]


def test_what_is_learned(tmp_path: Path, policy: Path, tokenizer: Tokenizer) -> None:
    """An assistant's words and the end of its turn, and never a prompt: no gradient comes from anywhere else."""
    module, data, _ = build_sft(
        make_sft(tmp_path, policy, [talk("ghj", "bbb", "dd")], data={"validation_fraction": 0.0})
    )
    batch = data.items("train").batch([0])
    assert tokenizer.decode(batch["targets"][batch["targets"] >= 0]) == "bbb<|im_end|>dd<|im_end|>"
    everything = make_sft(
        tmp_path, policy, [talk("ghj", "bbb", "dd")], data={"validation_fraction": 0.0, "supervise": "all"}
    )
    _, data, _ = build_sft(everything)
    targets = data.items("train").batch([0])["targets"]
    text = tokenizer.decode(targets[targets >= 0])
    assert text.startswith("user\nghj<|im_end|>\n<|im_start|>assistant\nbbb<|im_end|>\n<|im_start|>user\njhg")
    _, count = module.token_loss(batch, training=True)
    assert int(count) == 7


def noisy(tmp_path: Path, policy: Path, alpha: float, **groups: Any) -> SFTConfig:
    return make_sft(tmp_path, policy, some_talks(40), run_name=f"alpha{alpha}", neftune_alpha=alpha, **groups)


def test_neftune_noise_is_uniform_and_only_in_training(tmp_path: Path, policy: Path) -> None:
    module, _, _ = build_sft(noisy(tmp_path, policy, 5.0))
    tokens = torch.randint(0, 271, (4, 40))
    noise = added_noise(module, {"tokens": tokens, "targets": tokens})
    bound = 5.0 / math.sqrt(40 * 32)
    assert 0.99 * bound < float(noise.abs().max()) <= bound * (1 + 1e-5)
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform distribution
    assert abs(float(noise.mean())) < 0.05 * bound
    assert not torch.equal(noise[0], noise[1])
    longer = module._add_noise(module, None, torch.zeros(4, 42, 32))  # as ranks that share a row have it
    assert float(longer[:, :40].abs().max()) <= bound * (1 + 1e-5)
    module.eval()
    assert torch.equal(module.model.embedding(tokens), F.embedding(tokens, module.model.embedding.weight))


def added_noise(module: SFTModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a training step adds to the embeddings of a batch [b, t, d]."""
    seen: list[torch.Tensor] = []
    hook = module.model.embedding.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    with torch.no_grad():
        module.train().token_loss(batch, training=True)
        hook.remove()
        return seen[0] - F.embedding(batch["tokens"], module.model.embedding.weight)


@pytest.mark.parametrize("packing", [True, False])
def test_neftune_noise_is_that_of_a_conversation_however_it_is_laid_out(
    tmp_path: Path, policy: Path, packing: bool
) -> None:
    """Not of the row, which holds several conversations or one and padding."""
    module, data, _ = build_sft(noisy(tmp_path, policy, 5.0, data={"packing": packing, "validation_fraction": 0.0}))
    items = data.items("train")
    batch = items.batch(range(len(items)))
    noise = added_noise(module, batch)
    for line in range(len(items)):
        start = 0
        for row in items.rows_of(line):
            length = len(items.ids(row)) - 1
            bound = 5.0 / math.sqrt(length * 32)
            assert 0.9 * bound < float(noise[line, start : start + length].abs().max()) <= bound * (1 + 1e-5)
            start += length


def test_neftune_changes_training_and_no_validation(tmp_path: Path, policy: Path) -> None:
    """With a learning rate of nearly nothing, the model stays what it was."""
    curves = []
    for alpha in (0.0, 20.0):
        still: dict[str, Any] = {"optimizer": {"learning_rate": 1e-12}, "trainer": {"max_steps": 2}}
        config = noisy(tmp_path, policy, alpha, **still)
        sft(config)
        curves.append(all_curves(config))
    plain, noise = curves
    assert plain["val/loss"] == [(2, pytest.approx(noise["val/loss"][0][1], abs=1e-6))]
    assert abs(plain["train/loss"][0][1] - noise["train/loss"][0][1]) > 1e-3
    with pytest.raises(UserError, match="neftune_alpha is -1"):
        noisy(tmp_path, policy, -1)


def test_rows_that_do_not_fit_are_counted(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*some_talks(38), talk("ghj", "b" * 80), talk("ghk", "b" * 90)]
    config = make_sft(tmp_path, policy, rows, trainer={"max_steps": 1, "val_every_n_steps": None})
    sft(config)
    line = "data.paths: 2 of 40 rows left out (5.0%): 2 longer than data.sequence_length 48"
    assert line in (config.folder / "report.md").read_text()
    assert line in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(UserError, match=r"5\.0% of 40 rows are left out .*more than data\.max_dropped_share 0\.02"):
        sft(make_sft(tmp_path, policy, rows, run_name="strict", data={"max_dropped_share": 0.02}))
    kept = make_sft(tmp_path, policy, rows, run_name="cut", data={"too_long": "truncate"})
    _, data, _ = build_sft(kept)
    assert len(data.items("train").places) + len(data.items("validation").places) == 40
    assert "data.paths: 2 of 40 rows truncated (5.0%)" in data.statistics_lines()


def test_prompts_too_long_for_the_context(tmp_path: Path, policy: Path) -> None:
    """Those of rows are cut for their samples; one that a user gives is refused before a step is made."""
    rows = [talk(letter * 80, "f") for letter in "bcdghjklmn"]
    data: dict[str, Any] = {"too_long": "truncate", "supervise": "all", "validation_rows": 2}
    trainer = {"max_steps": 2, "val_every_n_steps": 1}
    config = make_sft(tmp_path, policy, rows, data=data, sample_prompts=2, trainer=trainer)
    config.samples.sampling.max_new_tokens = 16
    result = sft(config)
    # of the context of 64, 16 are for the answer
    assert result.samples and all(text.startswith("(its last 48 tokens are read) user: ") for text in result.samples)
    given = make_sft(tmp_path, policy, rows, run_name="given", data=data, sample_prompts=0, trainer=trainer)
    given.samples.prompts.append("b" * 80)
    with pytest.raises(UserError, match=r"samples\.prompts: a prompt of 88 tokens leaves no room in the context of 64"):
        sft(given)
    assert not (given.folder / "metrics.jsonl").exists()
    given.samples.sampling.truncate_prompt = True
    assert sft(given).samples[0].startswith("(its last 60 tokens are read) user: b")


def test_samples_and_the_example(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_sft(tmp_path, policy, some_talks(40), sample_prompts=2, trainer={"max_steps": 2})
    config.samples.prompts.append("bcd")
    result = sft(config)
    assert len(result.samples) == 3
    assert result.samples[0].startswith("user: bcd\nassistant: ")
    _, data, _ = build_sft(config)
    for sample, turns in zip(result.samples[1:], data.prompts(2), strict=True):
        assert sample.startswith(f"user: {turns[0].content}\nassistant: ")
    assert {f"samples/{n}/text_summary" for n in range(3)} <= set(tensorboard_events(config).Tags()["tensors"])
    shown = capsys.readouterr().err
    ((_, ids, _),) = data.example()
    for line in letter_tokenizer().decode(ids).splitlines():
        assert line in shown
