"""Whether a run survives what happens to runs: kills, flipped bits, and a thousand steps.

    python experiments/benchmarks/durability.py            # 31 kills, 400 flips, 1,000 steps: some minutes
    python experiments/benchmarks/durability.py --quick    # 2 kills, 20 flips, 40 steps

A pretraining of a tiny model on the standard library's source is killed (SIGKILL) at random moments and started again
each time, until it ends; its last checkpoint must be that of a run that nobody killed, to the bit. Bits of that
checkpoint are flipped, one at a time: each flip must be noticed, or change nothing that is read. And a run must not
grow. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from reporting import print_report

from lit_llm.config import (
    CorpusConfig,
    DataConfig,
    PrepareConfig,
    PretrainConfig,
    SampleConfig,
    ScheduleConfig,
    TokenizerTrainingConfig,
    TrainerConfig,
    preset,
    to_plain,
)
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.training.checkpoint_files import damage, saved_checkpoints

SCRIPT = Path(__file__).resolve().parents[1] / "pretrain.py"
STEPS = 60


def write_shards(folder: Path) -> Path:
    """Shards of one package of the standard library."""
    texts = folder / "texts"
    shutil.copytree(Path(sysconfig.get_paths()["stdlib"]) / "json", texts, ignore=shutil.ignore_patterns("__pycache__"))
    corpus = CorpusConfig(path=str(texts), validation_fraction=0.1)
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=300, output=str(folder / "tokenizer")))
    prepare_data(PrepareConfig(corpus, tokenizer=str(folder / "tokenizer"), output=str(folder / "shards")))
    return folder / "shards"


def run_of(folder: Path, name: str, max_steps: int = STEPS, save_every: int = 2) -> PretrainConfig:
    """A run that a CPU does some tens of steps of in a second."""
    size = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 128}
    return PretrainConfig(
        run_name=name,
        output_root=str(folder),
        model=preset(
            "llama-10m",
            **size,
            vocab_size=300,
            max_position_embeddings=64,
            num_key_value_heads=None,
            head_dim=None,
            dropout=0.1,
        ),
        data=DataConfig(
            paths=[str(folder / "shards")], sequence_length=64, batch_size=4, micro_batch_size=2, validation_windows=4
        ),
        schedule=ScheduleConfig(warmup_steps=2),
        trainer=TrainerConfig(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            val_every_n_steps=20,
            save_every_n_steps=save_every,
            enable_progress_bar=False,
        ),
        samples=SampleConfig(prompts=[]),
    )


def start(config: PretrainConfig) -> subprocess.Popen[bytes]:
    """The script of the stage, as a job that is restarted calls it."""
    recipe = config.folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(to_plain(config)))
    command = [sys.executable, str(SCRIPT), "--config", str(recipe), "--ckpt_path", "last_or_begin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums over another number of threads end in other bits
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(config: PretrainConfig) -> dict[str, Any]:
    """Run to the end; gives the last checkpoint."""
    process = start(config)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())
    (*_, newest) = saved_checkpoints(config.folder / "checkpoints").values()
    return torch.load(newest, weights_only=True)


def survive(folder: Path, kills: int, chance: random.Random) -> tuple[bool, list[int]]:
    """Kill a run so often; returns whether it ended as one that was not killed, and the steps it was killed after."""
    straight = finish(run_of(folder, "straight"))
    killed = run_of(folder, "killed")
    checkpoints, steps = killed.folder / "checkpoints", []
    for number in range(kills):
        process = start(killed)
        # as far as its share of the way, and then anywhere up to and into the save after next
        while process.poll() is None and max(saved_checkpoints(checkpoints), default=0) < STEPS * number / (kills + 1):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.3))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before it could be killed: {process.communicate()[1].decode()}")
        process.kill()
        process.communicate()
        steps.append(max(saved_checkpoints(checkpoints), default=0))
    ended = finish(killed)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "TokenDataModule")
    return all(same(straight[key], ended[key]) for key in keys), steps


def same(one: Any, other: Any) -> bool:
    """Whether two parts of checkpoints are equal, to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def flip(path: Path, flips: int, chance: random.Random) -> tuple[int, int]:
    """Flip one bit after another; returns how many were noticed, and how many changed nothing that is read."""
    whole, noticed, harmless = path.read_bytes(), 0, 0
    expected = torch.load(path, weights_only=True)
    copy = path.with_name("step_99999999.ckpt")
    for _ in range(flips):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        copy.write_bytes(data)
        if damage(copy) is not None:
            noticed += 1
        else:
            harmless += same(torch.load(copy, weights_only=True), expected)
    copy.unlink()
    return noticed, harmless


class Resident(L.Callback):
    """Notes the resident memory of the process, in MiB, at each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        self.seen.append(sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few of each")
    parser.add_argument("--seed", type=int, default=7, help="of the moments and the bits")
    options = parser.parse_args()
    kills, flips, steps = (2, 20, 40) if options.quick else (31, 400, 1000)
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_shards(folder)
        equal, killed_after = survive(folder, kills, chance)
        (*_, newest) = saved_checkpoints(folder / "straight" / "checkpoints").values()
        noticed, harmless = flip(newest, flips, chance)
        resident = Resident()
        pretrain(run_of(folder, "long", steps, save_every=steps // 4), [resident])
    # allocators settle in the first tenth
    growth = max(resident.seen[-len(resident.seen) // 10 :]) - max(resident.seen[: len(resident.seen) // 10])
    print_report(
        "What a run survives",
        ["what", "how often", "result"],
        [
            ["kills", str(kills), "the same bytes" if equal else "OTHER BYTES"],
            ["flipped bits", str(flips), f"{noticed} noticed, {harmless} of no effect"],
            ["steps", str(steps), f"{growth:+.1f} MiB"],
        ],
        {
            "kills": kills,
            "killed_after_steps": killed_after,
            "equal_bytes": equal,
            "flips": flips,
            "flips_noticed": noticed,
            "flips_of_no_effect": harmless,
            "steps": steps,
            "resident_growth_mib": round(growth, 1),
        },
    )


if __name__ == "__main__":
    main()
