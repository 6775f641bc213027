"""Batches across world sizes, micro-batch sizes and workers; exact resume under a real Lightning Trainer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_batches import Recorder, trainer_for
from shard_files import write_split
from torch.utils.data import DataLoader

from lit_llm.config import DataConfig, UserError
from lit_llm.data.loading.loader import ConsumedBatchSampler, micro_batch_shape
from lit_llm.data.pretraining.batches import PackedWindows
from lit_llm.data.pretraining.data_module import TokenDataModule


def write_corpus(folder: Path, num_tokens: int = 400, vocab_size: int = 1000) -> str:
    """Train and validation shards of random tokens."""
    rng = np.random.default_rng(num_tokens)
    write_split(folder / "train", np.array_split(rng.integers(2, vocab_size, num_tokens), 2), vocab_size)
    write_split(folder / "validation", [rng.integers(2, vocab_size, 50)], vocab_size)
    return str(folder)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_corpus(tmp_path / "corpus")


def make(path: str | list[str], **options: Any) -> TokenDataModule:
    paths = [path] if isinstance(path, str) else path
    seed = options.pop("seed", 5)
    return TokenDataModule(DataConfig(**{"paths": paths, "sequence_length": 8, "batch_size": 8, **options}), None, seed)


def steps_of(data: TokenDataModule, world_size: int, num_steps: int) -> list[dict[int, tuple[int, ...]]]:
    """For each optimizer step, sample id -> its tokens, put together over all ranks and micro-batches."""
    steps: list[dict[int, tuple[int, ...]]] = [{} for _ in range(num_steps)]
    for rank in range(world_size):
        sampler = data.train_sampler(rank, world_size, num_steps)
        batches = list(data.make_train_loader(sampler))
        assert len(batches) == len(sampler) == num_steps * sampler.accumulate_grad_batches
        for index, batch in enumerate(batches):
            step = steps[index // sampler.accumulate_grad_batches]
            for sample, tokens in zip(batch["sample_ids"].tolist(), batch["tokens"].tolist(), strict=True):
                assert sample not in step
                step[sample] = tuple(tokens)
    return steps


def test_global_batches_do_not_depend_on_how_they_are_shared(path: str) -> None:
    expected = steps_of(make(path), 1, 20)
    assert [sorted(step) for step in expected] == [list(range(8 * k, 8 * k + 8)) for k in range(20)]
    assert len({tokens for step in expected for tokens in step.values()}) > 100
    for world_size in (1, 2, 4):
        for micro in (None, 1, 2):
            assert steps_of(make(path, micro_batch_size=micro), world_size, 20) == expected
    assert steps_of(make(path, micro_batch_size=2, num_workers=2), 2, 20) == expected
    assert steps_of(make(path, seed=6), 1, 20) != expected


def test_micro_batches_are_dealt_to_the_ranks_in_turn() -> None:
    samplers = [ConsumedBatchSampler(40, 8, 2, rank, 2, num_steps=2) for rank in range(2)]
    assert list(samplers[0]) == [[40, 42], [44, 46], [48, 50], [52, 54]]
    assert list(samplers[1]) == [[41, 43], [45, 47], [49, 51], [53, 55]]
    assert [len(sampler) for sampler in samplers] == [4, 4]


def test_a_new_batch_size_goes_on_from_the_same_sample(path: str) -> None:
    data = make(path, batch_size=6, micro_batch_size=3)
    data.advance(20)
    assert [sorted(step) for step in steps_of(data, 1, 2)] == [list(range(20, 26)), list(range(26, 32))]


@pytest.mark.parametrize("mask_documents", [False, True])
def test_loader_processes_pass_on_what_is_read_without_them(tmp_path: Path, path: str, mask_documents: bool) -> None:
    """Of a mix whose tokens are 2 and 4 bytes wide, and of one path."""
    wide = write_corpus(tmp_path / "wide", 900, vocab_size=70_000)
    for paths in ([path, wide], path):
        alone, helped = (
            list(data.make_train_loader(data.train_sampler(0, 1, 30)))
            for data in (make(paths, mask_documents=mask_documents, num_workers=workers) for workers in (0, 2))
        )
        assert len(alone) == len(helped) == 30
        for expected, batch in zip(alone, helped, strict=True):
            assert batch.keys() == expected.keys()
            for name, tensor in batch.items():
                assert tensor.dtype == torch.int64 and torch.equal(tensor, expected[name]), name


def test_a_loader_process_passes_on_tokens_as_narrow_as_they_are_stored(path: str) -> None:
    data = make(path, num_workers=1)
    passed_on = next(DataLoader.__iter__(data.make_train_loader(data.train_sampler(0, 1, 1))))
    assert isinstance(passed_on, PackedWindows)
    assert passed_on.windows.shape == (8, 9) and passed_on.windows.dtype == np.uint16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_for_a_gpu_are_pinned(path: str, num_workers: int) -> None:
    data = make(path, num_workers=num_workers)
    for batch in data.make_train_loader(data.train_sampler(0, 1, 3)):
        assert all(tensor.is_pinned() for tensor in batch.values())


def test_a_batch_that_does_not_divide_is_an_error(path: str) -> None:
    assert micro_batch_shape(8, None, 2) == (4, 1)
    assert micro_batch_shape(8, 2, 2) == (2, 2)
    assert make(path, micro_batch_size=2).accumulate_grad_batches(1) == 4
    with pytest.raises(UserError, match=r"batch_size 8 does not divide by data.micro_batch_size 2 x 3 devices"):
        make(path, micro_batch_size=2).accumulate_grad_batches(3)
    with pytest.raises(UserError, match=r"batch_size 8 does not divide by 3 devices"):
        make(path).accumulate_grad_batches(3)
    with pytest.raises(UserError, match=r"does not divide"):
        ConsumedBatchSampler(0, 8, 3, 0, 1, num_steps=1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_global_random_state_alone_and_counts_the_wait(path: str, num_workers: int) -> None:
    data = make(path, num_workers=num_workers)
    loaders = [data.make_train_loader(data.train_sampler(0, 1, 3)), data.make_evaluation_loader("validation", 0, 1)]
    torch.manual_seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for loader in loaders:
        assert loader.wait_seconds == 0.0
        assert len(list(loader)) == len(loader)
        assert loader.wait_seconds > 0.0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


# Resume under Lightning.


def fit(path: str | list[str], folder: Path, max_steps: int, ckpt: str | None = None, save_at=(), **options: Any):
    data = make(path, **options)
    module = Recorder()
    trainer = trainer_for(data, folder, max_steps, save_at)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    assert trainer.global_step == max_steps
    return module, data, trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_at_any_step_sees_what_an_uninterrupted_run_sees(path: str, tmp_path: Path, num_workers: int) -> None:
    options = {"micro_batch_size": 4, "num_workers": num_workers}
    save_at = tuple(range(1, 20, 1 if num_workers == 0 else 6))
    whole, data, _ = fit(path, tmp_path, 20, save_at=save_at, **options)
    assert data.samples_consumed == 160
    # The corpus has 50 windows, so that several epochs pass.
    assert data.epochs(160)[0] > 3
    assert [sample for _, batch in whole.seen for sample in batch] == list(range(160))
    assert [step for step, _ in whole.seen] == np.repeat(np.arange(20), 2).tolist()
    for step in save_at:
        resumed, data, _ = fit(path, tmp_path, 20, ckpt=str(tmp_path / f"{step}.ckpt"), **options)
        assert resumed.seen == whole.seen[2 * step :]
        assert data.samples_consumed == 160
        # Lightning counts the micro-batches before the resume as fetched, and must not meet the end of the loader.
        assert len(data.train_loader) == 20 * 2 + 1
        assert len(data.train_loader.batch_sampler) == (20 - step) * 2
        assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_finished_run_goes_on_under_a_larger_max_steps(path: str, tmp_path: Path) -> None:
    options = {"micro_batch_size": 4}
    whole, _, _ = fit(path, tmp_path, 12, **options)
    fit(path, tmp_path, 5, save_at=(5,), **options)
    middle, data, _ = fit(path, tmp_path, 9, ckpt=str(tmp_path / "5.ckpt"), save_at=(9,), **options)
    assert middle.seen == whole.seen[10:18]
    assert data.samples_consumed == 72
    last, _, trainer = fit(path, tmp_path, 12, ckpt=str(tmp_path / "9.ckpt"), **options)
    assert trainer.fit_loop.epoch_progress.total.ready == 1  # no epoch without a batch came between
    assert last.seen == whole.seen[18:]
    again, data, _ = fit(path, tmp_path, 9, ckpt=str(tmp_path / "9.ckpt"), **options)
    assert again.seen == []
    assert data.samples_consumed == 72


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_checkpoint_saved_after_fit_goes_on(path: str, tmp_path: Path) -> None:
    whole, _, _ = fit(path, tmp_path, 8)
    _, _, trainer = fit(path, tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    resumed, data, _ = fit(path, tmp_path, 8, ckpt=str(tmp_path / "after.ckpt"))
    assert resumed.seen == whole.seen[3:]
    assert data.samples_consumed == 64


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_another_accumulation_at_resume_reads_every_sample_once(
    path: str, tmp_path: Path, before: int, after: int
) -> None:
    fit(path, tmp_path, 6, save_at=(4,), micro_batch_size=8 // before)
    resumed, data, _ = fit(path, tmp_path, 10, ckpt=str(tmp_path / "4.ckpt"), micro_batch_size=8 // after)
    assert [sample for _, batch in resumed.seen for sample in batch] == list(range(32, 80))
    assert data.samples_consumed == 80


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_resume_on_other_data_says_what_changed(path: str, tmp_path: Path) -> None:
    fit(path, tmp_path, 2, save_at=(2,))
    ckpt = str(tmp_path / "2.ckpt")
    with pytest.raises(UserError, match=r"data.sequence_length \(from 8 to 16\) changed"):
        fit(path, tmp_path, 4, ckpt=ckpt, sequence_length=16)
    with pytest.raises(UserError, match=r"the seed \(from 5 to 6\) changed"):
        fit(path, tmp_path, 4, ckpt=ckpt, seed=6)
    other = write_corpus(tmp_path / "other", 420)
    with pytest.raises(UserError, match=r"number of training tokens \(from \[400\] to \[420\]\)"):
        fit(other, tmp_path, 4, ckpt=ckpt)
    with pytest.raises(UserError, match=r"number of training tokens \(from \[400\] to \[400, 420\]\)"):
        fit([path, other], tmp_path, 4, ckpt=ckpt, weights=[1.0, 2.0])
    # Weights are shares: doubling both is no change, nor is a folder that moved.
    state = make([path, other], weights=[1.0, 2.0]).state_dict()
    same = make([path, other], weights=[2.0, 4.0])
    same.load_state_dict(state)
    assert same.reordered is None
    # Nothing tells how the samples of a mix that is not recorded have been dealt.
    del state["fingerprint"]["mix"]
    with pytest.raises(UserError, match=r"mixed paths in another order"):
        make([path, other], weights=[2.0, 4.0]).load_state_dict(state)
    # The same number of other tokens is another corpus, and other windows are other samples.
    state = make(path).state_dict()
    before = {**state, "fingerprint": {**state["fingerprint"]}}
    del before["fingerprint"]["windows"]
    with pytest.raises(UserError, match=r"how an epoch is cut into windows \(from None to ring\) changed"):
        make(path).load_state_dict(before)
    write_split(Path(path) / "train", [np.arange(400) % 1000])
    with pytest.raises(UserError, match=r"content of the training shards"):
        make(path).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_validation_and_test_under_a_trainer(path: str, tmp_path: Path) -> None:
    data, module = make(path), Recorder()
    trainer = trainer_for(data, tmp_path, 4, save_at=(2,), limit_val_batches=None, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    assert module.validated == 2 * 49
    with pytest.raises(UserError, match=r"no test split; prepare the data with corpus.test_fraction"):
        trainer.test(module, datamodule=data, verbose=False)
    write_split(Path(path) / "test", [np.arange(30) + 2])
    module.validated = 0
    # Any checkpoint may be evaluated on any data.
    other = make(path, sequence_length=16)
    trainer.test(module, datamodule=other, verbose=False, ckpt_path=str(tmp_path / "2.ckpt"))
    assert module.validated == 29


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_run_without_a_validation_split(path: str, tmp_path: Path) -> None:
    for file in (Path(path) / "validation").iterdir():
        file.unlink()
    (Path(path) / "validation").rmdir()
    data, module = make(path), Recorder()
    trainer_for(data, tmp_path, 4, limit_val_batches=None, val_check_interval=2).fit(module, datamodule=data)
    assert len(module.seen) == 4
    assert module.validated == 0


def test_validation_options(path: str) -> None:
    loader = make(path, validation_batch_size=3).make_evaluation_loader("validation", 0, 1)
    assert [len(batch["tokens"]) for batch in loader] == [3, 3, 1]
    loaders = [make(path, validation_windows=3).make_evaluation_loader("validation", r, 2) for r in range(2)]
    ids = [batch["sample_ids"].tolist() for loader in loaders for batch in loader]
    assert ids == [[0, 4], [2, -1]]


def test_paths_are_mixed_by_tokens_unless_weights_are_given(path: str, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", 1200)
    assert make([path, other]).mix.stretches[0].quotas == (16_384, 49_152)
    assert make([path, other], weights=[1.0, 1.0]).mix.stretches[0].quotas == (32_768, 32_768)
    data = make([path, other])
    assert data.vocab_size == 1000
    assert data.bytes_per_token("train") == 2.0
    assert data.epochs(8) == [2 / 50, 6 / 150]


def test_shards_are_verified(path: str) -> None:
    make(path).prepare_data()
    file = Path(path) / "validation" / "shard_00000.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"validation/shard_00000.npy does not match the sha256"):
        make(path).prepare_data()
    make(path, verify=False).prepare_data()


def test_what_setup_refuses(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.paths is empty"):
        make([]).setup("fit")
    with pytest.raises(UserError, match=r"no shards at .*run experiments/prepare_data.py"):
        make(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(UserError, match=r"has 400 tokens and one window needs 513"):
        make(path, sequence_length=512).setup("fit")
    other = tmp_path / "other"
    manifest = write_split(other / "train", [np.arange(100)])
    manifest.tokenizer_digest = "another"
    manifest.save(other / "train")
    with pytest.raises(UserError, match=r"were encoded with different tokenizers"):
        make([path, str(other)]).setup("fit")
    data = make(path)
    trainer = trainer_for(data, tmp_path, -1)
    with pytest.raises(UserError, match=r"set trainer.max_steps"):
        trainer.fit(Recorder(), datamodule=data)
