"""Telling a whole checkpoint from a damaged one, and which one a run goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import MakeRun
from run_files import all_curves, assert_equal_weights, checkpoints

from lit_llm.config import UserError
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_files import (
    MANIFEST,
    checksum,
    copy_to_cpu,
    damage,
    newest_whole,
    put_in_place,
    remove,
    remove_leftovers,
    saved_checkpoints,
    step_of,
    write_manifest,
)
from lit_llm.training.run_folder import checkpoint_to_resume, forget_replaced, run_folder


def test_names() -> None:
    assert step_of(Path("a/step_00000120.ckpt")) == 120
    assert step_of(Path(".step_00000120.ckpt.partial")) is None
    assert step_of(Path("epoch=1.ckpt")) is None


def test_only_finished_checkpoints_count_and_in_the_order_of_steps(tmp_path: Path) -> None:
    for name in ("step_100000000.ckpt", "step_00000020.ckpt", ".step_00000030.ckpt.partial", "step_x.ckpt"):
        (tmp_path / name).touch()
    assert list(saved_checkpoints(tmp_path)) == [20, 100000000]
    assert saved_checkpoints(tmp_path / "missing") == {}


def a_file(path: Path) -> Path:
    torch.save({"state_dict": {"weight": torch.arange(1000)}}, path)
    return path


def a_folder(path: Path, text: str = "0123456789") -> Path:
    path.mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp"):
        (path / name).write_text(text)
    write_manifest(path, {name: checksum(path / name) for name in ("__0_0.distcp", "__1_0.distcp")})
    return path


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_damage_to_a_file_is_found(tmp_path: Path) -> None:
    path = a_file(tmp_path / "step_00000001.ckpt")
    assert damage(path) is None
    data = path.read_bytes()
    flip_a_bit(path, data.index(torch.arange(500, 510).numpy().tobytes()))
    assert "checksum of" in (damage(path) or "")
    path.write_bytes(data[:-1])
    assert damage(path) is not None
    path.write_bytes(b"")
    assert damage(path) is not None


def test_damage_to_a_folder_is_found(tmp_path: Path) -> None:
    assert damage(a_folder(tmp_path / "step_00000001.ckpt")) is None
    path = a_folder(tmp_path / "step_00000002.ckpt")
    flip_a_bit(path / "__1_0.distcp", 5)
    assert damage(path) == "the checksum of __1_0.distcp is wrong"
    path = a_folder(tmp_path / "step_00000003.ckpt")
    (path / "__0_0.distcp").write_text("01234")
    assert damage(path) == "__0_0.distcp has another size than when it was written"
    (path / "__0_0.distcp").unlink()
    assert damage(path) == "__0_0.distcp is missing"
    (path / MANIFEST).write_text("{")
    assert damage(path) is not None
    (path / MANIFEST).unlink()
    assert damage(path) == "it has no manifest.json"


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest_whole(tmp_path) is None
    for step in (1, 2, 3):
        a_file(tmp_path / f"step_0000000{step}.ckpt")
    a_folder(tmp_path / "step_00000004.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "step_00000004.ckpt"
    assert capsys.readouterr().err == ""
    (tmp_path / "step_00000004.ckpt" / MANIFEST).unlink()
    (tmp_path / "step_00000003.ckpt").write_bytes(b"half")
    assert newest_whole(tmp_path) == tmp_path / "step_00000002.ckpt"
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("step_")[2][:8] for line in lines] == ["00000004", "00000003"]
    assert lines[0].endswith("is damaged (it has no manifest.json); going back to the one before")
    for step in (1, 2):
        (tmp_path / f"step_0000000{step}.ckpt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        newest_whole(tmp_path)


@pytest.mark.parametrize("new", [a_file, a_folder])
@pytest.mark.parametrize("old", [a_file, a_folder, None])
def test_a_file_or_folder_takes_the_place_of_either(new: type, old: type | None, tmp_path: Path) -> None:
    target = tmp_path / "step_00000001.ckpt"
    if old is not None:
        old(target)
    put_in_place(new(tmp_path / ".step_00000001.ckpt.partial"), target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_dir() == (new is a_folder)
    assert damage(target) is None
    remove(target)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_and_checkpoints_stay(tmp_path: Path) -> None:
    kept = [a_file(tmp_path / "step_00000001.ckpt"), a_folder(tmp_path / "step_00000002.ckpt")]
    for name in (".step_00000003.ckpt.partial", ".step_00000002.ckpt.replaced", ".step_00000001.ckpt.removed"):
        a_folder(tmp_path / name)
    (tmp_path / ".step_00000004.ckpt.partial").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == kept


def test_a_copy_shares_nothing_but_what_was_shared() -> None:
    weight = torch.ones(3)
    state = {"embedding": weight, "head": weight.detach(), "numbers": [1, (2.0, weight[1:])]}
    copied = copy_to_cpu(state)
    weight.zero_()
    assert copied["embedding"] is copied["head"]
    assert copied["embedding"].tolist() == [1, 1, 1]
    assert copied["numbers"][1][1].tolist() == [1, 1]
    assert copied["numbers"][1][0] == 2.0


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "trainer": {"max_steps": 4, "save_every_n_steps": 1, "keep_last_checkpoints": 9, "val_every_n_steps": None}
    }
    straight, config = make_run("straight", **options), make_run("damaged", **options)
    pretrain(straight)
    pretrain(config)
    flip_a_bit(checkpoints(config)[4], 100_000)
    checkpoints(config)[3].write_bytes(checkpoints(config)[3].read_bytes()[:100_000])
    capsys.readouterr()
    pretrain(make_run("damaged", **options, ckpt_path="last"))
    assert [line[:9] for line in capsys.readouterr().err.splitlines() if "damaged (" in line] == ["warning: "] * 2
    assert_equal_weights(straight, config)
    # the curves after the checkpoint that was taken are written once
    assert [step for step, _ in all_curves(config)["train/loss"]] == [1, 2, 3, 4]

    flip_a_bit(checkpoints(config)[4], 100_000)
    with pytest.raises(UserError, match=r"step_00000004.ckpt is not a whole checkpoint \(the checksum of"):
        pretrain(make_run("damaged", **options, ckpt_path=str(checkpoints(config)[4])))


def test_ranks_that_start_together_agree(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 may come before rank 0 or after it: it neither refuses nor deletes, and tells the same of a resume."""
    config = make_run("run", trainer={"max_steps": 2, "val_every_n_steps": None})
    pretrain(config)
    before = sorted(config.folder.rglob("*"))
    for variable, number in (("RANK", "1"), ("SLURM_PROCID", "3"), ("LOCAL_RANK", "1"), ("NODE_RANK", "1")):
        with monkeypatch.context() as environment:
            environment.setenv(variable, number)
            for other in (config, make_run("run", overwrite=True)):
                with run_folder(other):
                    pass
            assert sorted(config.folder.rglob("*")) == before
            checkpoints(config)[2].write_bytes(b"half")  # rank 1 does not read it
            assert checkpoint_to_resume(make_run("run", ckpt_path="last")) == str(checkpoints(config)[2])
            assert checkpoint_to_resume(make_run("other", ckpt_path="last")) is None
    with monkeypatch.context() as environment:
        environment.setenv("RANK", "0")
        environment.setenv("SLURM_PROCID", "1")  # torchrun inside of SLURM: one process of SLURM starts many
        with pytest.raises(UserError, match="already holds a finished run"), run_folder(config):
            pass
        with pytest.raises(UserError, match="every checkpoint"):
            checkpoint_to_resume(make_run("run", ckpt_path="last"))
        with run_folder(make_run("run", overwrite=True)):
            assert (config.folder / ".lock").exists() and not (config.folder / "config.yaml").exists()
        assert (config.folder / "config.yaml").exists()  # as nothing was begun in its place
        with run_folder(make_run("run", overwrite=True)):
            forget_replaced(config.folder)
    assert not (config.folder / "config.yaml").exists()
    assert checkpoint_to_resume(make_run("run", ckpt_path="last_or_begin")) is None
    assert list(config.folder.iterdir()) == []
