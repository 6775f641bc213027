"""A tiny corpus, tokenizer and run that the tests share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# One thread, unless more are asked for: tests are small, and machines are shared. In the environment, and before torch
# is imported, as Lightning otherwise gives every core to the rest of the tests once a strategy with ranks has run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lit_llm.config import (
    CorpusConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    SampleConfig,
    SamplingConfig,
    ScheduleConfig,
    TokenizerTrainingConfig,
    TrainerConfig,
    from_plain,
    preset,
)
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.tokenizer import train_tokenizer
from lit_llm.tokenizer import Tokenizer

# A shell lets what it runs in the background ignore Ctrl-C, and so would every process that a test means to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests write need not outlast the machine's power, and thousands of files that wait for the disk take minutes: in
# this process, and in ranks, which import this module, a descriptor is only looked at.
os.fsync = os.fstat  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """The whole suite is spread over the cores, with one process more, as many tests wait for others; files and tests
    that are named run in this process."""
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """The libraries and the tests themselves stay to the end: the garbage collector never looks through them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """A run over one rank in this process leaves its process group and variables, which other ranks would inherit."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def what_no_test_changes_is_looked_up_once() -> Iterator[None]:
    """Each Trainer reads what every package of the environment offers, and each command line the docstrings of all
    options."""
    import jsonargparse._optionals as optionals
    import lightning.fabric.utilities.registry as registry

    read = cache(lambda component, params: own(component, params))
    own = optionals.parse_docstring
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", cache(registry.entry_points))
        patch.setattr(
            optionals, "parse_docstring", lambda component, params=False, logger=None: read(component, params)
        )
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled, or counted as compiled, by tests before and after."""
    import torch._dynamo

    def forget() -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()

    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def remote_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code of model folders to one folder of this session, and not to the user's."""
    modules = pytest.importorskip("transformers.dynamic_module_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real texts, where there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real texts are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thirty files of the standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    library = Path(sysconfig.get_paths()["stdlib"])
    for package in ("json", "email", "http"):
        for path in sorted((library / package).glob("*.py")):
            if path.stat().st_size < 20_000:
                shutil.copy(path, folder / f"{package}_{path.name}")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> Path:
    """Shards of the tiny corpus, with a BPE of 400 tokens beside them."""
    folder = tmp_path_factory.mktemp("shards")
    corpus = CorpusConfig(path=str(corpus_folder), split="hash", validation_fraction=0.15)
    train_tokenizer(TokenizerTrainingConfig(corpus, vocab_size=400, output=str(folder / "tok")))
    prepare_data(PrepareConfig(corpus, tokenizer=str(folder / "tok"), output=str(folder / "shards")))
    return folder / "shards"


@pytest.fixture(scope="session")
def tokenizer(shards: Path) -> Tokenizer:
    """The tokenizer of the tiny corpus."""
    return Tokenizer.load(shards / "tokenizer")


@pytest.fixture(scope="session")
def short_documents(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Shards of documents shorter than a window, with the tokenizer of the tiny corpus; every split has some."""
    folder = tmp_path_factory.mktemp("short")
    rows = (json.dumps({"text": f"{number}" + " é" * (number % 5)}) for number in range(1200))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    corpus = CorpusConfig(path=str(folder / "rows.jsonl"), validation_fraction=0.1, test_fraction=0.1)
    prepare_data(PrepareConfig(corpus, tokenizer=str(shards / "tokenizer"), output=str(folder / "shards")))
    return folder / "shards"


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def tiny_model(name: str = "llama-10m", **fields: Any) -> ModelConfig:
    """An architecture at width 32 and two layers."""
    size: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    return preset(name, **{**size, **fields})


MakeRun = Callable[..., PretrainConfig]


@pytest.fixture
def make_run(shards: Path, tmp_path: Path) -> MakeRun:
    """Builds a pretraining run of a tiny model; keywords like `model`, `data`, `trainer` replace single fields."""

    def make(name: str = "run", architecture: str = "llama-10m", **groups: Any) -> PretrainConfig:
        def group(kind: type, key: str, **defaults: Any) -> Any:
            return from_plain(kind, {**defaults, **groups.pop(key, {})})

        config = {
            "model": tiny_model(architecture, **groups.pop("model", {})),
            "data": group(
                DataConfig, "data", paths=[str(shards)], sequence_length=32, batch_size=4, validation_windows=8
            ),
            "optimizer": group(OptimizerConfig, "optimizer", learning_rate=3e-3, muon_momentum_warmup_steps=4),
            "schedule": group(ScheduleConfig, "schedule", warmup_steps=2),
            "trainer": group(
                TrainerConfig,
                "trainer",
                accelerator="cpu",
                devices=1,
                max_steps=6,
                val_every_n_steps=3,
                save_every_n_steps=2,
                log_every_n_steps=1,
                enable_progress_bar=False,
            ),
            "samples": groups.pop("samples", SampleConfig(prompts=["def "], sampling=SamplingConfig(max_new_tokens=4))),
        }
        return PretrainConfig(run_name=name, output_root=str(tmp_path), **config, **groups)

    return make
