"""The curves a run is judged by, against torchmetrics, by hand and over whole splits."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import MakeRun
from torchmetrics.text import Perplexity

from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.interop import load_model_folder
from lit_llm.model import Decoder
from lit_llm.modules import PretrainingModule
from lit_llm.modules.metrics import TokenStatistics
from lit_llm.stages.pretrain import pretrain


def test_perplexity_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = TokenStatistics(), Perplexity(ignore_index=-100)
    for rows in (3, 1, 4):
        logits = 3 * torch.randn(rows, 5, 11, generator=generator)
        targets = torch.randint(0, 11, (rows, 5), generator=generator)
        targets[0, rows:] = -100
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        ours.update(loss, (targets >= 0).sum(), torch.zeros(()))
        theirs.update(logits, targets)
    values = ours.compute()
    assert float(values["perplexity"]) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert "bits_per_byte" not in values


def test_by_hand() -> None:
    statistics = TokenStatistics()
    statistics.update(torch.tensor(math.log(8.0)), torch.tensor(2), torch.tensor(1))
    statistics.update(torch.tensor(math.log(2.0)), torch.tensor(2), torch.tensor(3))
    values = statistics.compute()
    # ln 16 nats over four tokens and four bytes: one bit each
    assert float(values["loss"]) == pytest.approx(math.log(2.0), abs=1e-7)
    assert float(values["perplexity"]) == pytest.approx(2.0, abs=1e-6)
    assert float(values["bits_per_byte"]) == pytest.approx(1.0, abs=1e-7)
    statistics.reset()
    statistics.update(torch.tensor(1.0), torch.tensor(1), torch.tensor(1))
    assert float(statistics.compute()["loss"]) == 1.0


def test_sums_do_not_lose_small_batches() -> None:
    """In float32, 2^24 + 1 is 2^24."""
    statistics = TokenStatistics()
    statistics.update(torch.tensor(2.0**24), torch.tensor(2**24), torch.tensor(2**24))
    for _ in range(8):
        statistics.update(torch.tensor(1.0), torch.tensor(1), torch.tensor(1))
    assert statistics.loss_sum == statistics.tokens == statistics.bytes == 2**24 + 8


@torch.no_grad()
def loss_by_loop(model: Decoder, tokens: torch.Tensor, length: int = 32) -> tuple[float, int]:
    """Summed loss over consecutive windows, the last one shorter, and the number of targets."""
    whole = (len(tokens) - 1) // length
    inputs, targets = tokens[:-1], tokens[1:]
    pieces = list(zip(inputs[: whole * length].view(-1, length).split(32), targets.split(32 * length), strict=False))
    if len(targets) > whole * length:
        pieces.append((inputs[None, whole * length :], targets[whole * length :]))
    total, count = 0.0, 0
    for rows, wanted in pieces:
        wanted = wanted[: rows.numel()]
        total += float(torch.nn.functional.cross_entropy(model(rows).flatten(0, 1).double(), wanted, reduction="sum"))
        count += len(wanted)
    return total, count


@pytest.mark.parametrize("batch_size", [3, 64])
def test_validation_is_the_whole_split_whatever_the_batch(batch_size: int, make_run: MakeRun, shards: Path) -> None:
    config = make_run(data={"validation_windows": None, "validation_batch_size": batch_size}, trainer={"max_steps": 2})
    result = pretrain(config)
    model, tokenizer = load_model_folder(result.model_folder)
    split = ShardedTokens(shards / "validation")
    ids = torch.from_numpy(split.read(0, len(split)).astype("int64"))
    total, count = loss_by_loop(model, ids)
    assert count == len(split) - 1 > 1000
    assert result.metrics["val/loss"] == pytest.approx(total / count, abs=2e-6)
    assert result.metrics["val/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    # every byte of the split's text, but for those of the first token, which nothing predicts
    text = tokenizer.decode(ids.tolist(), skip_special=True)
    num_bytes = len(text.encode()) - len(tokenizer.token_bytes(int(ids[0])))
    assert split.manifest.bytes == len(text.encode())
    assert result.metrics["val/bits_per_byte"] == pytest.approx(total / math.log(2) / num_bytes, abs=2e-6)


def test_test_curves(make_run: MakeRun, short_documents: Path) -> None:
    config = make_run(data={"paths": [str(short_documents)]})
    data = TokenDataModule(config.data, None, config.seed)
    lengths = torch.arange(400)
    module = PretrainingModule(config, lengths)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.test(module, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    split = ShardedTokens(short_documents / "test")
    ids = torch.from_numpy(split.read(0, len(split)).astype("int64"))
    total, count = loss_by_loop(module.model, ids)
    assert metrics["test/loss"] == pytest.approx(total / count, abs=2e-6)
    assert metrics["test/bits_per_byte"] == pytest.approx(total / math.log(2) / int(ids[1:].sum()), abs=2e-6)


@pytest.mark.parametrize("micro", [None, 4, 1])
def test_the_training_curve_is_the_mean_over_all_tokens_of_a_step(
    micro: int | None, make_run: MakeRun, short_documents: Path
) -> None:
    """Rows lose a target at every end of a document, so a mean of micro-batch means would be another number."""
    data = {"paths": [str(short_documents)], "mask_documents": True, "batch_size": 8, "micro_batch_size": micro}
    config = make_run(data=data, trainer={"max_steps": 2})
    batch = TokenDataModule(config.data, None, config.seed).train_dataset.__getitems__(range(8))
    model = PretrainingModule(config).model.eval().requires_grad_(False)
    logits = model(batch["tokens"], document_ids=batch["document_ids"])
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["targets"], reduction="none")
    supervised = batch["targets"] >= 0
    assert len(set(supervised.sum(1).tolist())) > 1
    expected = float(losses.sum() / supervised.sum())
    mean_of_means = float((losses.sum(1) / supervised.sum(1)).mean())
    assert abs(expected - mean_of_means) > 1e-4
    logged: list[float] = []

    class FirstStep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *arguments: object) -> None:
            if "train/loss" in trainer.callback_metrics:
                logged.append(float(trainer.callback_metrics["train/loss"]))

    pretrain(config, callbacks=[FirstStep()])
    assert logged[0] == pytest.approx(expected, abs=1e-5)
