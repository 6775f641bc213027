"""What a run says when it starts, while it goes on, and how long it will take."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MakeRun, tiny_model
from stage_runs import make_stage, run_stage

from lit_llm.config import DataConfig, PretrainConfig, TrainerConfig, preset
from lit_llm.config import progress as lines
from lit_llm.stages.pretrain import pretrain
from lit_llm.training import header
from lit_llm.training.header import architecture, kernel_lines
from lit_llm.training.progress import TrainingProgress

QUIET = {"val_every_n_steps": None, "save_every_n_steps": None}


class Slow(L.Callback):
    """Makes each training step last a known time."""

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        time.sleep(0.02)


def test_a_start_and_a_resume_have_a_header(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run(trainer={"max_steps": 2, **QUIET})
    pretrain(config)
    parameters = 400 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    said = capsys.readouterr().err.splitlines()
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    assert said[:2] == [
        f"pretrain  the llama architecture, {parameters:,} parameters: 2 layers, width 32, 4 heads, vocabulary 400",
        f"device    CPU ({threads}), precision 32-true, strategy one device",
    ]
    data = re.fullmatch(r"data      tokens: ([\d,]+) in train, ([\d,]+) in validation; from (.*)", said[2])
    assert data is not None and data[3] == config.data.paths[0]
    passes = 2 * 4 / (int(data[1].replace(",", "")) / 32)
    length = re.fullmatch(r"length    2 steps of 4 x 32 tokens: 256 tokens, ([\d.]+) passes over the data", said[3])
    assert length is not None and float(length[1]) == pytest.approx(passes, rel=0.02)
    assert said[4] == f"starting {config.folder}"
    pretrain(make_run(trainer={"max_steps": 3, **QUIET}, ckpt_path="last", resume_changed=True))
    said = capsys.readouterr().err.splitlines()
    (begin,) = (number for number, line in enumerate(said) if line.startswith("pretrain  "))
    assert said[begin + 3].startswith("length    3 steps of 4 x 32 tokens: 384 tokens, ")
    newest = config.folder / "checkpoints" / "step_00000002.ckpt"
    assert said[begin + 4] == f"resumed at step 2 from {newest}"
    data = {"paths": config.data.paths * 2, "weights": [0.5, 0.5]}
    pretrain(make_run("mixed", trainer={"max_steps": 2, **QUIET}, data=data))
    assert " passes over the corpus that is read most often\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "options", "parts"),
    [
        ("sft", {}, ["sft     the llama architecture, ", "rows: ", "length  1 steps of 8 rows: about "]),
        ("dpo", {"lora": {"rank": 2}}, [" trained with lora: ", " rows: about "]),
        ("reward", {}, ["reward  the llama architecture as a reward model, "]),
        ("ppo", {"group_size": 2}, [" trained with the critic's)", "1 steps of 8 prompts x 2 answers: 16 answers"]),
    ],
)
def test_the_header_of_later_stages(
    stage: str, options: dict[str, Any], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_stage(stage, tmp_path, trainer={"max_steps": 1, **QUIET}, **options)
    run_stage(config)
    said = capsys.readouterr().err
    for part in [*parts, f"; from {config.init_from}\n", f"\nstarting {config.folder}\n"]:
        assert part in said


def test_kernels_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(device: str, trainer: dict[str, Any] | None = None, **fields: Any) -> list[str]:
        data = DataConfig(paths=["x"], sequence_length=512, mask_documents=fields.pop("documents", False))
        model = {"max_position_embeddings": 1024, "head_dim": 16, **fields}
        return kernel_lines(
            PretrainConfig(model=tiny_model(**model), data=data, trainer=TrainerConfig(**(trainer or {}))), device
        )

    assert said("cpu") == said("cpu", sliding_window=512) == []
    assert said("cpu", documents=True) == ["attention to documents piece by piece"]
    assert said("cpu", {"attention_kernel": "mask"}, documents=True) == ["attention to documents by a mask"]
    assert said("cpu", documents=True, dropout=0.1) == ["attention to documents by a mask"]
    assert said("cpu", {"compile": True}) == ["compiled blocks"]
    monkeypatch.setattr("lit_llm.training.header.multiplies_bfloat16", lambda device: False)
    emulated = "bfloat16 emulated, which is slow: --trainer.precision auto avoids it"
    assert (said("cpu"), said("cpu", {"precision": "bf16-mixed"})) == ([], [emulated])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    everything = {"sliding_window": 100, "attention_softcap": 30.0}
    assert said("cuda", {"compile": True, "precision": "bf16-mixed"}, documents=True, **everything) == [
        "compiled blocks, loss and Muon, float32 products of TF32 factors (trainer.float32_matmul_precision), "
        "attention to documents and windows and capped scores by FlexAttention"
    ]


def test_architectures_in_words() -> None:
    assert architecture(preset("modern-1m", vocab_size=99, dropout=0.1)) == "modern-1m"
    assert architecture(preset("modern-1m", vocab_size=99).as_score()) == "modern-1m as a reward model"
    assert architecture(preset("gpt2")) == "gpt2"
    assert architecture(preset("gpt2", num_layers=3)) == "the gpt2 architecture"
    assert architecture(tiny_model("modern-1m")) == "an architecture of this package"


def test_the_expected_time(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of eleven steps are measured, of 0.02 s each at least; the first is not."""
    monkeypatch.setattr(header, "STEPS_MEASURED", 2)
    monkeypatch.setattr(header, "in_words", lambda seconds: f"[{seconds:.2f}]")
    config = make_run(trainer={"max_steps": 11, **QUIET, "max_time": 600})
    pretrain(config, callbacks=[Slow()])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("about "))
    found = re.fullmatch(r"about \[([\d.]+)\] for the remaining 8 steps, without their validations", line)
    assert found is not None and 8 * 0.02 <= float(found[1]) < 60


CURVES = {
    "pretrain": ["loss", "val loss"],
    "sft": ["loss", "val loss", "val accuracy"],
    "reward": ["loss", "val loss", "accuracy", "val accuracy"],
    "dpo": ["loss", "val loss", "margin", "accuracy", "val margin", "val accuracy"],
    "ppo": ["reward", "KL", "length", "val reward", "val length"],
}


@pytest.mark.parametrize("stage", CURVES)
def test_lines_of_progress_in_a_pipe(
    stage: str,
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "SECONDS_BETWEEN_LINES", 0.0)
    trainer = {"max_steps": 3, **QUIET, "enable_progress_bar": True}
    if stage == "pretrain":
        config = make_run(trainer=trainer)
        pretrain(config)
    else:
        config = make_stage(stage, tmp_path, trainer=trainer)
        run_stage(config)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition("  ")[0] for line in said] == ["step 1/3", "step 2/3", "step 3/3", "step 3/3"]
    labels = [" ".join(part.split()[:-1]) for part in said[-1].split("  ")[1:]]
    assert labels == [*CURVES[stage], "tok/s"]
    assert said[0].endswith(" left") and not said[-1].endswith(" left")


def test_a_line_is_not_due_at_every_step(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(make_run(trainer={"max_steps": 3, **QUIET, "enable_progress_bar": True}))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(said) == 1 and said[0].startswith("step 3/3  loss ")
    assert TrainingProgress().console.stderr


def test_what_is_left_ends_with_max_time(make_run: MakeRun, capfd: pytest.CaptureFixture[str]) -> None:
    """A million steps would take hours; the run ends after two seconds, and each of its lines knows."""
    trainer = {"max_steps": 10**6, "max_time": "00:00:00:02", "val_every_n_steps": 5, "save_every_n_steps": None}
    pretrain(make_run(trainer={**trainer, "enable_progress_bar": True}, data={"validation_windows": 2}))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    told = [line.rpartition("  about ")[2] for line in lines if " left" in line]
    assert told and all("minute" not in left and "hour" not in left and "day" not in left for left in told)
    assert len(lines) == len(set(lines))  # none comes twice
