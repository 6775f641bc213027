"""What the machine does to a run, in one line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import MakeRun

from lit_llm.config import PPOConfig, PromptDataConfig, UserError
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.failures import (
    advice_on_memory,
    distributed_defaults,
    readable_failures,
    set_distributed_defaults,
)

PEER = """
import os, sys, time
import torch, torch.distributed as dist
print("ready", flush=True)
dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
dist.all_reduce(torch.ones(1))
if sys.argv[2] == "dies":
    os._exit(1)
time.sleep(60)
"""


# memory


class Allocate(L.Callback):
    """Asks for more memory than there is in any machine."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.empty(2**50)


def test_a_run_out_of_memory_says_which_knob_first(make_run: MakeRun) -> None:
    with pytest.raises(UserError) as error:
        pretrain(make_run(), callbacks=[Allocate()])
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("this machine has no memory left for 4503599627370496 bytes more: set data.micro_batch")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_numpy_and_the_gpu_run_out_of_memory_too(make_run: MakeRun) -> None:
    config = make_run()
    with pytest.raises(UserError, match="this machine has no memory left: set data"), readable_failures(config):
        np.empty(2**50)
    # no GPU is needed to raise what torch raises on one
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.2 GiB"
    with pytest.raises(UserError, match=r"the GPU has no memory left for 2\.50 GiB more"), readable_failures(config):
        raise torch.OutOfMemoryError(text)


def test_advice_names_what_is_not_done_yet_and_the_cheapest_first(make_run: MakeRun) -> None:
    config = make_run(loss_chunk_tokens=None, data={"batch_size": 12, "micro_batch_size": 6}, trainer={"devices": 2})
    order = (
        "set data.micro_batch_size to 3 (from 6",
        "trainer.activation_checkpointing to full",
        "loss_chunk_tokens to 512",
        "trainer.strategy to fsdp",
        "trainer.precision to bf16-mixed",
        "data.sequence_length below 32",
    )
    advice = advice_on_memory(config)
    places = [advice.index(part) for part in order]
    assert places == sorted(places) and places[0] == 0
    # each disappears once it is done
    config.data.micro_batch_size = 1
    config.trainer.activation_checkpointing = "full"
    config.loss_chunk_tokens = "auto"  # which is 512 on a CPU
    config.trainer.strategy = "fsdp"
    config.trainer.precision = "bf16-mixed"
    assert advice_on_memory(config) == "set data.sequence_length below 32"
    # without accumulation, the micro-batch is a rank's share of the batch; the next smaller size divides it
    config.data.micro_batch_size = None
    config.data.batch_size = 30
    assert advice_on_memory(config).startswith("set data.micro_batch_size to 5 (from 15;")


def test_advice_for_reinforcement_learning_names_its_own_options() -> None:
    data = PromptDataConfig(batch_size=12, sequence_length=512)
    config = PPOConfig(init_from="x", rewards=["r"], data=data, group_size=3, minibatches=2)
    same = "the batch and the result stay the same"
    first, *rest = advice_on_memory(config).split("; if that is not enough, ")
    assert first == f"set update_micro_batch_size to 9 (from 18; {same})"
    assert rest[0].startswith(f"rollout_batch_size to 18 (from 36; {same}), trainer.activation_checkpointing to full, ")
    config = replace(config, update_micro_batch_size=9, rollout_batch_size=10)  # which is taken
    first, *rest = advice_on_memory(config).split("; if that is not enough, ")
    assert first == f"set update_micro_batch_size to 3 (from 9; {same})"
    assert rest[0].startswith(f"rollout_batch_size to 5 (from 10; {same}), ")
    assert "batch_size" not in advice_on_memory(replace(config, update_micro_batch_size=1, rollout_batch_size=1))


def test_another_error_stays_what_it_is(make_run: MakeRun) -> None:
    config = make_run()
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ZeroDivisionError("bug"), UserError("no")):
        with pytest.raises(type(error)) as raised, readable_failures(config):
            raise error
        assert raised.value is error


# ranks


@pytest.fixture
def no_store_is_left() -> Iterator[None]:
    """A store of processes writes to its file when it is collected, which ends the process where files may not grow."""
    yield
    gc.collect()


@pytest.mark.usefixtures("no_store_is_left")
@pytest.mark.parametrize("peer", ["dies", "hangs"])
def test_a_lost_rank(peer: str, make_run: MakeRun, tmp_path: Path) -> None:
    """Two processes over gloo; the other one dies, or does not come to the second collective in time."""
    config = make_run(trainer={"timeout_minutes": 0.05, "devices": 2})
    address = f"file://{tmp_path / 'store'}"
    if dist.is_initialized():  # by a run of another test in this process
        dist.destroy_process_group()
    other = subprocess.Popen([sys.executable, "-c", PEER, address, peer], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        patience = timedelta(minutes=config.trainer.timeout_minutes)
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=2, timeout=patience)
        dist.all_reduce(torch.ones(1))
        with pytest.raises(UserError) as error, readable_failures(config):
            dist.all_reduce(torch.ones(1))
    finally:
        other.kill()
        other.communicate()
        if dist.is_initialized():
            dist.destroy_process_group()
    message = str(error.value)
    assert "\n" not in message and message.startswith("rank 0 lost the other ranks (")
    assert "trainer.timeout_minutes (0.05)" in message and str(config.folder / "flight_recorder") in message
    assert {"dies": "by peer", "hangs": "Timed out waiting 3000ms"}[peer] in message


def test_ranks_that_never_came(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run()
    with (
        pytest.raises(UserError, match=r"rank 0 lost the other ranks \(.*1/2 clients joined"),
        readable_failures(config),
    ):
        dist.TCPStore("127.0.0.1", 0, 2, True, timeout=timedelta(seconds=0.5))


# the flight recorder


def test_the_flight_recorder_writes_into_the_run_folder(tmp_path: Path) -> None:
    added = distributed_defaults(tmp_path, {})
    assert added == {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/flight_recorder/rank_",
    }
    # what the user has set stays, also under the names that torch had before
    own = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "0", "TORCH_FR_DUMP_TEMP_FILE": "/elsewhere/rank_"}
    assert distributed_defaults(tmp_path, own) == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}


def test_the_names_are_those_of_the_installed_torch() -> None:
    """Where torch reads a variable, its name is in the library."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.is_file():
        pytest.skip("torch keeps its code elsewhere here")
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    text = header.read_text() + (header.parent / "FlightRecorder.hpp").read_text()
    assert "TORCH_FR_BUFFER_SIZE" in text and "TORCH_NCCL_DUMP_ON_TIMEOUT" in text
    import mmap

    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        assert code.find(b"TORCH_FR_DUMP_TEMP_FILE\0") >= 0


def test_nothing_is_set_without_ranks_on_cuda(make_run: MakeRun) -> None:
    before = dict(os.environ)
    for name, trainer in (("cpu", {"devices": 2}), ("alone", {"accelerator": "auto", "devices": 1})):
        config = make_run(name, trainer=trainer)
        set_distributed_defaults(config)
        assert dict(os.environ) == before and not config.folder.exists()


@pytest.mark.gpu
def test_ranks_on_cuda_have_the_defaults(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run(trainer={"accelerator": "gpu", "devices": 2})
    monkeypatch.setattr(os, "environ", {})
    set_distributed_defaults(config)
    assert os.environ == distributed_defaults(config.folder, {}) and (config.folder / "flight_recorder").is_dir()
