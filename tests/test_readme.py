"""README's commands are run as they stand there, on small stand-ins for the files and models that they name."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_rows import pair, talk, write_rows
from conftest import ROOT, tiny_model

from lit_llm.cli import parse, run_command
from lit_llm.cli.commands import COMMANDS
from lit_llm.config import (
    EvaluateConfig,
    ExportConfig,
    LoadConfig,
    PostTrainingConfig,
    PPOConfig,
    PretrainConfig,
    RunConfig,
    preset_run,
)
from lit_llm.config.files import write_json
from lit_llm.config.presets import PRESETS
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.reward import reward
from lit_llm.stages.sft import sft

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "read", "a", "small", "book", "about", "ships"]
ELSEWHERE = ("hf:", "stdlib", "package:")
"""Beginnings of sources that are no files of the reader's."""
# what a test cannot do: bind a port for ever, take minutes, or use devices that are not here
NOT_RUN = {
    "serve": "it serves until it is stopped",
    "quickstart": "tests/quickstart runs it",
    "quickstart_chat": "tests/quickstart runs it",
    "chat": "it is talked to",
    "clean_data": "tests/test_data_recipes runs it on texts that pass its filters",
    "fetch_model": "it downloads 98 MB",
    "judge": "tests/stages/test_judge.py runs it",
    "safety": "tests/stages/test_safety.py runs it",
    "scaling": "tests/stages/test_scaling.py runs it",
}
NEEDS_OTHER_MACHINES = ("--trainer.strategy", "--trainer.compile", "--replay", "--trainer.tensor_parallel_size")


@dataclass(frozen=True)
class Line:
    """One command of README.

    Attributes:
        name: of the command.
        words: its options.
    """

    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.words)}"[:80]

    def parsed(self) -> Any:
        """The configuration that it asks for."""
        command = COMMANDS[self.name]
        return parse(command.config, command.as_options(self.words))


def commands_of(text: str) -> list[Line]:
    """The commands of this package in the fenced bash blocks of a Markdown text, in order."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            script = re.match(r"(?:python experiments/(\w+)\.py|lit-llm ([\w-]+))(?: |$)(.*)", line.strip())
            if script:
                name = (script[1] or script[2]).replace("-", "_")
                found.append(Line(name, tuple(shlex.split(script[3], comments=True))))
    return found


README = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
MORE = [
    line
    for path in sorted(ROOT.glob("*/**/README.md"))
    if path.relative_to(ROOT).parts[0] in ("experiments", "lit_llm")
    for line in commands_of(path.read_text(encoding="utf-8"))
]
BROUGHT = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "ppo": "sft"}


def test_commands_are_found() -> None:
    block = "# 1.\npython experiments/a_b.py --x 'y z' \\\n    --w 1  # why\nls\nlit-llm prepare-data\n"
    text = f"```bash\n{block}```\nlit-llm no\n"
    assert commands_of(text) == [Line("a_b", ("--x", "y z", "--w", "1")), Line("prepare_data", ())]
    assert len(README) >= 4 and {line.name for line in README} <= set(COMMANDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run of one step of pretraining, SFT and a reward model, and of a model in Llama form for what only that can."""
    root = tmp_path_factory.mktemp("made")
    trainer = {"max_steps": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    common: dict[str, Any] = {"output_root": str(root), "trainer": trainer, "samples": {"prompts": []}}
    data = {"paths": [str(shards)], "batch_size": 4, "validation_windows": 2}
    for name, architecture in (("pretrain", "modern-1m"), ("llama", "llama-10m")):
        model = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
        pretrain(preset_run(architecture, run_name=name, model=model, data={**data, "sequence_length": 64}, **common))
    for stage, run in (("sft", sft), ("reward", reward)):
        rows = {"paths": [str(a_file(root / f"{stage}.jsonl", stage))], "batch_size": 4}
        words = {"init_from": str(root / BROUGHT[stage]), "run_name": stage, **common, "data": rows}
        run(from_words(stage, words))
    return root


def from_words(stage: str, options: dict[str, Any]) -> Any:
    """A configuration of a stage from options by group."""
    from lit_llm.config import from_plain

    return from_plain(COMMANDS[stage].config, {**options, **({"sample_prompts": 0} if stage != "pretrain" else {})})


def a_file(path: Path, kind: str) -> Path:
    """A small file, or for texts a folder, of the form that a stage reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{number} {' '.join(WORDS[number % 5 :] * 9)}" for number in range(120 if kind == "text" else 24)]
    if kind == "text":
        if path.suffix == ".jsonl":
            write_rows(path, [{"text": text} for text in texts])
        elif path.suffix:
            path.write_text("\n".join(texts))
        else:
            for number, text in enumerate(texts):
                a_file(path / f"{number}.txt", "text").write_text(text)
        return path
    pairs = kind in ("reward", "dpo", "preferences")
    rows = [pair(text[:20], text[:9], text[5:30]) if pairs else talk(text[:20], text[20:40]) for text in texts]
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_rows(path, rows)
    return path


def supply(line: Line, made: Path, shards: Path) -> None:
    """Put a stand-in, in this folder, for each file that a command names and that is not there."""

    def missing(name: str | None) -> Path | None:
        if name is None or name.startswith(ELSEWHERE) or ":" in name:
            return None
        path = Path(name.replace("*", "1"))
        return None if path.exists() else path

    def files(names: Sequence[str | None], kind: str) -> None:
        for path in filter(None, map(missing, names)):
            a_file(path, kind)

    def copies(names: Sequence[str | None], source: Path) -> None:
        for path in filter(None, map(missing, names)):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, path)

    for option, name in zip(line.words, line.words[1:], strict=False):
        recipe = missing(name) if option in ("--config", "--run") else None
        if recipe is not None:
            recipe.parent.mkdir(parents=True, exist_ok=True)
            recipe.write_text("run_name: of_a_file\ndata: {paths: [shards]}\n")
    config = line.parsed()
    if isinstance(config, PretrainConfig):
        copies(config.data.paths, shards)
    elif isinstance(config, PostTrainingConfig):
        files([*config.data.paths, *config.data.validation_paths], line.name)
    if isinstance(config, RunConfig):
        copies([config.init_from], made / BROUGHT.get(line.name, "pretrain"))
        copies([getattr(config, "reference_model", None)], made / "sft")
    if isinstance(config, PPOConfig):
        copies([*config.rewards, config.critic_from], made / "reward")
    if isinstance(config, LoadConfig):
        copies([config.model, getattr(config, "draft_model", None)], made / "sft")
    if isinstance(config, ExportConfig):
        copies([config.checkpoint], made / ("llama" if config.format == "gguf" else "pretrain"))
    if isinstance(config, EvaluateConfig):
        files(config.texts, "text")
        copies(config.shards, shards)
        files(config.answers, "sft")
        files(config.preferences, "preferences")
        if config.battery == "my_tasks.yaml":
            Path(config.battery).write_text("tasks: [{name: sums, form: own, paths: [sums.jsonl]}]")
            write_rows(Path("sums.jsonl"), [{"prompt": "1 and 1 are", "choices": ["2", "3"], "answer": 0}])
    if hasattr(config, "corpus") and hasattr(config.corpus, "path"):
        files([config.corpus.path], "text")
    if line.name == "contamination":
        files(config.files, "text")
    if line.name == "inspect_data":
        copies([config.data], shards)
    if line.name == "prepare_data":
        copies([config.tokenizer], shards / "tokenizer")


def small(line: Line, config: Any) -> list[str]:
    """Options that make a command as small as a test."""
    if line.name == "train_tokenizer":
        return ["--vocab_size", "280"]
    if line.name == "generate":
        return ["--sampling.max_new_tokens", "4"]
    if not isinstance(config, RunConfig) or line.name == "plan":
        return []
    less = """--trainer.max_steps 1 --trainer.accelerator cpu --trainer.devices 1 --trainer.enable_progress_bar false
        --data.batch_size 4 --data.micro_batch_size null --samples.prompts [] --trainer.precision 32-true"""
    if config.ckpt_path is None:
        less += " --overwrite true"
    if "--config" in line.words:  # whose sizes are those of a large model
        less += " --data.sequence_length null --schedule.warmup_steps null"
    if isinstance(config, PostTrainingConfig):
        less += " --epochs null --data.validation_rows 2 --sample_prompts 0"
    else:
        less += " --data.validation_windows 2 --model.hidden_size 32 --model.num_layers 2 --model.num_heads 4"
        less += " --model.num_key_value_heads null --model.intermediate_size 64 --model.max_position_embeddings 64"
    if isinstance(config, PPOConfig):
        less += " --max_new_tokens 8 --update_epochs 1"
    return shlex.split(less)


@pytest.mark.parametrize("line", MORE, ids=str)
def test_a_command_of_another_readme_is_right(
    line: Line, made: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    supply(line, made, shards)


@pytest.mark.parametrize("line", README, ids=str)
def test_a_command_of_readme(
    line: Line, made: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    supply(line, made, shards)
    words = list(line.words)
    config = line.parsed()  # it is right, whatever machine it is for
    if line.name in NOT_RUN or any(option in words for option in NEEDS_OTHER_MACHINES):
        return
    if "--tasks" in words:  # whose data sets would be downloaded
        at = words.index("--tasks")
        del words[at : at + 2]
    if getattr(config, "format", None) == "gguf":
        pytest.importorskip("gguf")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    if "--ckpt_path" in words:  # of a run that there is
        at = words.index("--ckpt_path")
        begun = [*words[:at], *words[at + 2 :]]
        run_command(line.name, [*begun, *small(line, parse(COMMANDS[line.name].config, begun))])
        shutil.rmtree(tmp_path / config.output_root / config.run_name / "model")
    before = {path for path in tmp_path.rglob("*") if "experiments" not in path.parts}
    run_command(line.name, [*words, *small(line, config)])
    written = {path for path in tmp_path.rglob("*") if "experiments" not in path.parts} - before
    assert written or line.name in ("plan", "generate", "contamination", "inspect_data"), "it has left nothing"


def test_every_preset_is_listed() -> None:
    _, _, text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8").partition("**Presets**")
    listed = re.split(r"[\s,]+", text.partition("(RoPE")[0])
    listed += [f"modern{name}" for name in listed if name.startswith("-")]
    assert not [name for name in PRESETS if name not in listed]


def test_the_stand_ins_are_of_the_quickstarts_form() -> None:
    """So that what runs on them runs on what the quickstart leaves."""
    from lit_llm.config import QuickstartConfig
    from lit_llm.quickstart.run import pretraining

    quick = pretraining(QuickstartConfig(), 20).model
    like = tiny_model("modern-1m")
    for name in ("norm", "position", "activation", "qk_norm", "value_embeddings", "x0_shortcut", "token_smear"):
        assert getattr(quick, name) == getattr(like, name)
    assert quick.max_position_embeddings == 256
