"""Invariant 3: how a batch is cut into micro-batches and ranks does not change its gradient."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import tiny_model
from ranks import start_ranks, tell_rank

from lit_llm.config import DataConfig, PretrainConfig, ScheduleConfig, TrainerConfig
from lit_llm.modules import PretrainingModule

ROWS, LENGTH = 8, 16


class Rows(torch.utils.data.Dataset):
    """Eight rows whose supervised parts differ in length, so that a mean of means would be wrong."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 400, (ROWS, LENGTH), generator=generator)
        self.targets = torch.randint(0, 400, (ROWS, LENGTH), generator=generator)
        for row in range(ROWS):
            self.targets[row, 1 + row :] = -100

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.tokens[row], "targets": self.targets[row]}


def gradient_of(folder: Path, micro: int, world_size: int = 1) -> dict[str, torch.Tensor]:
    """The averaged gradient of one optimizer step over the eight rows."""
    config = PretrainConfig(
        model=tiny_model(max_position_embeddings=LENGTH),
        data=DataConfig(sequence_length=LENGTH, batch_size=ROWS, micro_batch_size=micro),
        schedule=ScheduleConfig(warmup_steps=0),
        trainer=TrainerConfig(max_steps=1, gradient_clip_val=None),
        output_root=str(folder),
    )
    module = PretrainingModule(config)
    data = Rows()
    sampler = None
    if world_size > 1:
        sampler = torch.utils.data.DistributedSampler(data, world_size, torch.distributed.get_rank(), shuffle=False)
    loader = torch.utils.data.DataLoader(data, batch_size=micro, sampler=sampler)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="auto" if world_size == 1 else "ddp",
        max_steps=1,
        accumulate_grad_batches=ROWS // (micro * world_size),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, loader)
    # zero_grad runs before the backward pass, so what is left after the fit is the step's own
    return {name: p.grad.clone() for name, p in module.model.named_parameters()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The gradient of the batch in one piece."""
    return gradient_of(tmp_path_factory.mktemp("whole"), micro=8)


def assert_equal_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        difference = (one[name] - other[name]).abs()
        assert difference.max() < 1e-6 and difference.mean() < 1e-7, name


def test_the_gradient_is_that_of_the_token_mean(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Against the plain definition: cross-entropy averaged over supervised tokens."""
    data = DataConfig(sequence_length=LENGTH)
    config = PretrainConfig(model=tiny_model(max_position_embeddings=LENGTH), data=data, output_root=str(tmp_path))
    model = PretrainingModule(config).model
    rows = Rows()
    logits = model(rows.tokens)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten()).backward()
    assert_equal_gradients({name: p.grad for name, p in model.named_parameters()}, whole)


@pytest.mark.parametrize("micro", [4, 2])
def test_accumulation_does_not_change_the_gradient(micro: int, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert_equal_gradients(gradient_of(tmp_path, micro), whole)


def _rank(rank: int, port: int, folder: str) -> None:
    tell_rank(rank, 2, port)
    torch.distributed.init_process_group("gloo")
    gradient = gradient_of(Path(folder), micro=4, world_size=2)
    if rank == 0:
        torch.save(gradient, Path(folder) / "gradient.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_do_not_change_the_gradient(whole: dict[str, torch.Tensor], tmp_path: Path, free_port: int) -> None:
    start_ranks(_rank, 2, free_port, str(tmp_path))
    assert_equal_gradients(torch.load(tmp_path / "gradient.pt"), whole)
