"""Invariant 9: each option of pretraining does what it says, shown by a number."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun
from run_files import assert_identical
from safetensors.torch import load_file
from test_resume import curves, final_state

from lit_llm.config import PretrainConfig, SampleConfig, UserError
from lit_llm.data.pretraining.data_module import TokenDataModule
from lit_llm.modules import PretrainingModule
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint import saved_checkpoints


def short_run(make_run: MakeRun, name: str = "run", steps: int = 1, **groups: Any) -> PretrainConfig:
    """A run of one step, or a few, at a constant rate that writes nothing on the way and no samples."""
    quiet = {"max_steps": steps, "val_every_n_steps": None, "save_every_n_steps": None}
    trainer = {**quiet, **groups.pop("trainer", {})}
    config = make_run(name, trainer=trainer, schedule={"name": "constant", "warmup_steps": 0}, **groups)
    return replace(config, samples=SampleConfig(prompts=[]))


class Watch(L.Callback):
    """Notes what passes by."""

    def __init__(self) -> None:
        self.micro_batches: list[dict[str, torch.Tensor]] = []
        self.validation_batches: list[torch.Tensor] = []
        self.gradient_norms: list[float] = []
        self.groups: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.micro_batches.append(batch)
        # gradients are set to zero before a backward pass, so this is what the optimizer was given
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        self.groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
        self.seen["processes"] = len(multiprocessing.active_children())
        self.seen["deterministic"] = torch.are_deterministic_algorithms_enabled()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *more: Any
    ) -> None:
        self.validation_batches.append(batch["sample_ids"])


def watched(config: PretrainConfig) -> Watch:
    watch = Watch()
    pretrain(config, callbacks=[watch])
    return watch


def steps(points: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in points]


def values(points: list[tuple[int, float]]) -> list[float]:
    return [value for _, value in points]


def first_batch_loss(config: PretrainConfig, z_loss: float = 0.0) -> float:
    """By definition: the mean over supervised tokens of the first global batch, with the initial weights."""
    tokenizer = Tokenizer.load(Path(config.data.paths[0]) / "tokenizer")
    data = TokenDataModule(config.data, tokenizer, config.seed)
    batch = data.train_dataset.__getitems__(range(config.data.batch_size))
    model = PretrainingModule(config).model.eval().requires_grad_(False)
    logits = model(batch["tokens"], document_ids=batch.get("document_ids")).flatten(0, 1).float()
    targets = batch["targets"].flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets)
    squared = logits.logsumexp(-1)[targets != -100].square().mean()
    return float(loss + z_loss * squared)


# trainer


def test_max_steps(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 3, "save_every_n_steps": None})
    pretrain(config)
    state = final_state(config)
    assert state["global_step"] == 3
    assert state["TokenDataModule"]["samples_consumed"] == 3 * 4
    assert steps(curves(config)["train/loss"]) == [1, 2, 3]
    with pytest.raises(UserError, match=r"trainer\.max_steps is 0"):
        make_run(trainer={"max_steps": 0}, schedule={"warmup_steps": 0})


def test_gradient_clip_val(make_run: MakeRun) -> None:
    free = make_run("free", trainer={"max_steps": 2, "gradient_clip_val": None})
    unclipped = watched(free)
    assert unclipped.gradient_norms == pytest.approx(values(curves(free)["train/gradient_norm"]), rel=1e-5)
    limited = make_run("limited", trainer={"max_steps": 2, "gradient_clip_val": 0.05})
    clipped = watched(limited)
    assert min(unclipped.gradient_norms) > 0.1
    assert clipped.gradient_norms == pytest.approx([0.05, 0.05], rel=1e-4)
    # the curve shows the norm before clipping
    assert curves(limited)["train/gradient_norm"][0] == curves(free)["train/gradient_norm"][0]
    loose = watched(make_run("loose", trainer={"max_steps": 2, "gradient_clip_val": 1000.0}))
    assert loose.gradient_norms == unclipped.gradient_norms


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision(precision: str, make_run: MakeRun) -> None:
    exact, rounded = make_run("exact"), make_run("rounded", trainer={"precision": precision})
    pretrain(exact)
    pretrain(rounded)
    for config, dtype in ((exact, torch.float32), (rounded, getattr(torch, WEIGHTS[precision]))):
        weights = load_file(config.folder / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {dtype}
        assert json.loads((config.folder / "model" / "config.json").read_text())["dtype"] == str(dtype)[6:]
        moments = final_state(config)["optimizer_states"][0]["state"]["model.embedding.weight"]
        assert moments["exp_avg"].dtype == dtype
    for name in ("train/loss", "val/loss"):
        ours, theirs = values(curves(rounded)[name]), values(curves(exact)[name])
        assert ours == pytest.approx(theirs, abs=0.02)
        assert ours != theirs


WEIGHTS = {"bf16-mixed": "float32", "bf16-true": "bfloat16"}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces the blocks; its eager backend needs no C++ compiler."""
    import torch._dynamo

    plain = make_run("plain", trainer={"max_steps": 2})
    pretrain(plain)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager"))
    compiled = make_run("compiled", trainer={"max_steps": 2, "compile": True})
    pretrain(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert final_state(compiled)["state_dict"].keys() == final_state(plain)["state_dict"].keys()
    for name in ("train/loss", "val/loss"):
        assert values(curves(compiled)[name]) == pytest.approx(values(curves(plain)[name]), abs=1e-5)


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (None, [5]), (5, [5]), (7, [5])])
def test_val_every_n_steps(every: int | None, expected: list[int], make_run: MakeRun) -> None:
    config = make_run(
        trainer={"max_steps": 5, "val_every_n_steps": every, "save_every_n_steps": None}, data={"micro_batch_size": 2}
    )
    pretrain(config)
    for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
        assert steps(curves(config)[name]) == expected


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (None, [5])])
def test_save_every_n_steps(every: int | None, expected: list[int], make_run: MakeRun) -> None:
    config = make_run(
        trainer={"max_steps": 5, "save_every_n_steps": every, "keep_last_checkpoints": 9}, data={"micro_batch_size": 2}
    )
    pretrain(config)
    found = saved_checkpoints(config.folder / "checkpoints")
    assert list(found) == expected
    for step, path in found.items():
        assert torch.load(path, weights_only=True)["global_step"] == step


@pytest.mark.parametrize(("keep_last", "keep_best"), [(1, False), (2, False), (1, True)])
def test_checkpoints_kept(keep_last: int, keep_best: bool, make_run: MakeRun) -> None:
    """A rate far too high, so that the best validation is not the last one."""
    config = short_run(
        make_run,
        optimizer={"learning_rate": 10.0},
        trainer={
            "max_steps": 5,
            "val_every_n_steps": 1,
            "save_every_n_steps": 1,
            "keep_last_checkpoints": keep_last,
            "keep_best_checkpoint": keep_best,
        },
    )
    pretrain(config)
    best, _ = min(curves(config)["val/loss"], key=lambda point: point[1])
    assert best < 4
    expected = set(range(6 - keep_last, 6)) | ({best} if keep_best else set())
    assert set(saved_checkpoints(config.folder / "checkpoints")) == expected


def test_log_every_n_steps(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 5, "log_every_n_steps": 2}, data={"micro_batch_size": 2})
    pretrain(config)
    points = curves(config)
    for name in ("train/loss", "train/gradient_norm", "learning_rate/adamw_decay", "throughput/tokens"):
        assert steps(points[name]) == [2, 4, 5]
    assert steps(points["val/loss"]) == [3, 5]


def test_deterministic(make_run: MakeRun) -> None:
    try:
        assert (
            watched(
                short_run(
                    make_run,
                    "free",
                )
            ).seen["deterministic"]
            is False
        )
        assert watched(short_run(make_run, "bound", trainer={"deterministic": True})).seen["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)


def test_float32_matmul_precision(make_run: MakeRun) -> None:
    """On CUDA it is set; the CPU's products are left as they are, also where oneDNN would round by it."""
    before = torch.get_float32_matmul_precision()
    pretrain(short_run(make_run, "exact", trainer={"float32_matmul_precision": "highest"}))
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(UserError, match=r"trainer\.float32_matmul_precision high is for CUDA"):
        pretrain(short_run(make_run, "rounded", trainer={"float32_matmul_precision": "high"}))


def test_enable_progress_bar(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        pretrain(short_run(make_run, f"shown_{shown}", trainer={"enable_progress_bar": shown}))
        assert ("step 1/1" in capsys.readouterr().err) is shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_accelerator_gpu_without_one(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator is gpu, but torch finds no CUDA device"):
        pretrain(make_run(trainer={"accelerator": "gpu"}))


# objective


def test_z_loss(make_run: MakeRun) -> None:
    tiny_rate = {"learning_rate": 1e-12}
    plain = short_run(make_run, "plain", optimizer=tiny_rate)
    weighted = short_run(make_run, "weighted", optimizer=tiny_rate, z_loss=1e-2)
    pretrain(plain)
    pretrain(weighted)
    (expected,), (found,) = values(curves(plain)["train/loss"]), values(curves(weighted)["train/loss"])
    assert found == pytest.approx(first_batch_loss(weighted, z_loss=1e-2), abs=1e-5)
    # logits are still close to zero, so the log-normaliser is close to ln 400
    assert found - expected == pytest.approx(1e-2 * math.log(400) ** 2, rel=0.02)
    # validation measures the model, not the penalty
    assert values(curves(weighted)["val/loss"]) == pytest.approx(values(curves(plain)["val/loss"]), abs=1e-6)


def test_loss_chunk_tokens(make_run: MakeRun) -> None:
    found, head = {}, {}
    for chunk in (None, 7, 2048):
        config = make_run(f"chunk_{chunk}", trainer={"max_steps": 3}, loss_chunk_tokens=chunk)
        pretrain(config)
        found[chunk] = values(curves(config)["train/loss"]) + values(curves(config)["val/loss"])
        head[chunk] = final_state(config)["state_dict"]["model.head.weight"]
    assert found[7] == pytest.approx(found[None], abs=1e-5)
    assert found[2048] == pytest.approx(found[None], abs=1e-5)
    # the option has reached the loss: its gradient is summed in other parts, though a few losses may round to the same
    assert not torch.equal(head[7], head[2048])
    plain = make_run("plain").loss_chunk
    assert (plain("cpu"), plain("cuda"), config.loss_chunk("cpu")) == (512, 2048, 2048)
    with pytest.raises(UserError, match="loss_chunk_tokens is 0; it must be at least 1, auto, or null"):
        make_run("none", loss_chunk_tokens=0)


# data


def test_micro_batch_size(make_run: MakeRun) -> None:
    whole, cut = make_run("whole"), make_run("cut", data={"micro_batch_size": 1})
    seen = watched(whole), watched(cut)
    assert [len(watch.micro_batches) for watch in seen] == [6, 24]
    assert [watch.micro_batches[0]["tokens"].size(0) for watch in seen] == [4, 1]
    ids = [torch.cat([batch["sample_ids"] for batch in watch.micro_batches]).tolist() for watch in seen]
    assert ids[0] == ids[1] == list(range(24))
    for name in ("train/loss", "train/gradient_norm", "val/loss"):
        assert values(curves(cut)[name]) == pytest.approx(values(curves(whole)[name]), abs=1e-4)


def test_sequence_length_and_batch_size(make_run: MakeRun) -> None:
    config = short_run(
        make_run,
        data={"sequence_length": 16, "batch_size": 3},
    )
    assert watched(config).micro_batches[0]["tokens"].shape == (3, 16)
    assert values(curves(config)["train/loss"]) == pytest.approx([first_batch_loss(config)], abs=1e-5)


def test_mask_documents(make_run: MakeRun, short_documents: Path) -> None:
    data = {"paths": [str(short_documents)], "batch_size": 8}
    plain = short_run(
        make_run,
        "plain",
        data=data,
    )
    masked = short_run(
        make_run,
        "masked",
        data={**data, "mask_documents": True},
    )
    seen = [watched(config).micro_batches[0] for config in (plain, masked)]
    ends = seen[0]["tokens"] == Tokenizer.load(short_documents / "tokenizer").eot_id
    assert ends.sum() > 8
    beyond = seen[0]["targets"] < 0  # the last target of a window may be the next one's
    assert "document_ids" not in seen[0] and not beyond[:, :-1].any()
    assert torch.equal(seen[1]["targets"] < 0, ends | beyond)
    losses = [values(curves(config)["train/loss"])[0] for config in (plain, masked)]
    assert losses == pytest.approx([first_batch_loss(plain), first_batch_loss(masked)], abs=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_validation_windows_and_batch_size(make_run: MakeRun) -> None:
    some = short_run(make_run, "some", data={"validation_windows": 5})
    ids = torch.cat(watched(some).validation_batches)
    assert len(ids) == 5 and ids.min() == 0
    every = short_run(make_run, "all", data={"validation_windows": None, "validation_batch_size": 64})
    watch = watched(every)
    total = TokenDataModule(every.data, None, 0).make_evaluation_loader("validation", 0, 1).dataset.total_windows
    assert torch.cat(watch.validation_batches).tolist() == list(range(total))
    assert len(watch.validation_batches[0]) == 64


def test_num_workers_and_prefetch_factor(make_run: MakeRun) -> None:
    alone, helped = make_run("alone"), make_run("helped", data={"num_workers": 2, "prefetch_factor": 2})
    assert watched(alone).seen["processes"] == 0
    assert watched(helped).seen["processes"] >= 2
    assert_identical(final_state(alone)["state_dict"], final_state(helped)["state_dict"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="pinning is for the GPU that is there")
def test_pin_memory_without_a_gpu_says_that_it_does_nothing(make_run: MakeRun) -> None:
    plain, pinned = (
        short_run(
            make_run,
            f"pin_{pin}",
            data={"pin_memory": pin},
        )
        for pin in (False, True)
    )
    pretrain(plain)
    with pytest.warns(UserWarning, match="no accelerator"):
        pretrain(pinned)
    assert curves(plain) == curves(pinned)


@pytest.mark.parametrize("weights", [[3.0, 1.0], None])
def test_paths_and_weights(weights: list[float] | None, make_run: MakeRun, shards: Path, short_documents: Path) -> None:
    data = {"paths": [str(shards), str(short_documents)], "weights": weights, "batch_size": 200}
    config = short_run(
        make_run,
        data=data,
    )
    ids = watched(config).micro_batches[0]["sample_ids"]
    module = TokenDataModule(config.data, None, config.seed)
    sources, _, _ = module.train_dataset.starts(ids.numpy())
    sizes = [len(source) for source in module.splits["train"]]
    expected = 0.75 if weights else sizes[0] / sum(sizes)
    assert (sources == 0).mean() == pytest.approx(expected, abs=0.08)
    assert (sources == 1).any()


def test_verify(make_run: MakeRun, shards: Path, tmp_path: Path) -> None:
    damaged = damaged_copy(shards, tmp_path)
    with pytest.raises(UserError, match="does not match the sha256"):
        pretrain(short_run(make_run, "checked", data={"paths": [str(damaged)]}))
    pretrain(short_run(make_run, "trusted", data={"paths": [str(damaged)], "verify": False}))


def damaged_copy(shards: Path, folder: Path) -> Path:
    """The shards with the last token of the training split changed to another one."""
    import shutil

    shutil.copytree(shards, folder / "damaged")
    file = folder / "damaged" / "train" / "shard_00000.npy"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    return folder / "damaged"
