"""A checkpoint or folder from a stranger runs nothing, wherever in it the pickle is."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_runs import make_stage, run_stage
from torch.distributed.checkpoint import Metadata

from lit_llm.cli import main
from lit_llm.config import PretrainConfig, UserError
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.interop import load_model_folder, load_tokenizer
from lit_llm.modules.dpo import _read as read_reference
from lit_llm.quickstart.later_stages import saved_run
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.checkpoint_files import checksum, damage, write_manifest
from lit_llm.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lit_llm.training.shard_files import ShardSave, optimizer_entry, read_into, read_whole, weight_entry
from lit_llm.training.step_record import StepRecord
from lit_llm.training.unpickling import check_deepspeed_folder


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def sharded(folder: Path) -> Path:
    """A sharded checkpoint of one small weight and its moment."""
    path, weight = folder / "step_00000001.ckpt", torch.arange(6.0)
    rest: dict[str, Any] = {"tied": {}, "optimizer_states": [{"state": {}, "param_groups": []}]}
    tensors = {weight_entry("w"): weight, optimizer_entry(0, "exp_avg", "w"): weight}
    save = ShardSave(path, tensors, {**rest, "pytorch-lightning_version": "2.6"}, copy=False)
    save.finish([save.write()])
    return path


def put(path: Path, content: bytes) -> None:
    """Replace a file of a sharded checkpoint and the checksums, as one who makes it up would."""
    path.write_bytes(content)
    write_manifest(path.parent, {each.name: checksum(each) for each in path.parent.iterdir() if each.name[0] != "m"})
    assert damage(path.parent) is None


def text_of(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def calling(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 4 that calls what `name`, with its dots, is in `module`."""
    return b"\x80\x04" + text_of(module) + text_of(name) + b"\x93" + text_of(argument) + b"\x85R."


CHECKPOINT = "torch.distributed.checkpoint"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (f"{CHECKPOINT}.filesystem", "os.system"),
        (f"{CHECKPOINT}.metadata", "os.system"),
        (f"{CHECKPOINT}.metadata", "Metadata.__init__.__globals__"),
        (f"{CHECKPOINT}.filesystem", "FileSystem"),
        (f"{CHECKPOINT}.filesystem", "_generate_uuid"),
        ("torch.serialization", "os.system"),
        ("torch.serialization", "load"),
        ("torch", "os.system"),
        ("torch", "load"),
        ("builtins", "eval"),
        ("os", "system"),
    ],
)
def test_the_index_makes_its_own_records_and_nothing_else(module: str, name: str, tmp_path: Path) -> None:
    path, mark = sharded(tmp_path), tmp_path / "executed"
    put(path / ".metadata", calling(module, name, f"touch {mark}"))
    for read in (read_checkpoint, read_whole, lambda folder: read_into(folder, {"weights/w": torch.zeros(6)})):
        with pytest.raises(UserError, match="is not a whole checkpoint") as error:
            read(path)
        assert "the index of the checkpoint asks for" in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists()


def test_the_pickle_above_would_run(tmp_path: Path) -> None:
    pickle.loads(calling(f"{CHECKPOINT}.filesystem", "os.system", f"touch {tmp_path / 'executed'}"))
    assert (tmp_path / "executed").exists()


def shift(name: str, index: Metadata) -> None:
    """Damage the index in one way."""
    entry = index.state_dict_metadata["weights/w"]
    (place, info) = next((key, value) for key, value in index.storage_data.items() if key.fqn == "weights/w")
    if name == "outside":
        index.storage_data[place] = type(info)(f"../{info.relative_path}", info.offset, info.length)
    elif name == "transformed":
        index.storage_data[place] = type(info)(info.relative_path, info.offset, info.length, ["zstd"])
    elif name == "huge":
        entry.size = entry.chunks[0].sizes = torch.Size([2**60])
    elif name == "half":
        entry.chunks[0].sizes = torch.Size([3])
    elif name == "negative":
        entry.chunks[0].offsets = torch.Size([-1])
    else:
        index.state_dict_metadata["weights/w"] = name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("outside", "sends the reader to ../__0_0.distcp"),
        ("transformed", "sends the reader to"),
        ("huge", "tells of"),
        ("half", "do not make up a tensor"),
        ("negative", "do not make up a tensor"),
        ("text", "weights/w is not a tensor"),
    ],
)
def test_an_index_that_does_not_fit_its_folder(change: str, message: str, tmp_path: Path) -> None:
    path = sharded(tmp_path)
    assert read_checkpoint(path)["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
    index = pickle.loads((path / ".metadata").read_bytes())
    shift(change, index)
    put(path / ".metadata", pickle.dumps(index))
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def in_a_file(folder: Path, evil: Evil) -> None:
    torch.save({"state_dict": evil}, folder / "step_00000001.ckpt")
    AtomicCheckpointIO().load_checkpoint(folder / "step_00000001.ckpt")


def in_the_optimizer_of_a_file(folder: Path, evil: Evil) -> None:
    state = {"state_dict": {}, "pytorch-lightning_version": "2.6", "optimizer_states": [{"state": {"w": evil}}]}
    torch.save(state, folder / "step_00000001.ckpt")
    read_checkpoint(folder / "step_00000001.ckpt", mmap=True)


def in_an_old_file(folder: Path, evil: Evil) -> None:
    (folder / "step_00000001.ckpt").write_bytes(pickle.dumps(evil))
    read_checkpoint(folder / "step_00000001.ckpt")


def in_the_state(folder: Path, evil: Evil) -> None:
    path = sharded(folder)
    torch.save({"tied": {}, "optimizer_states": [evil]}, folder / "state")
    put(path / "state.pt", (folder / "state").read_bytes())
    read_checkpoint(path, keys=())


def in_a_shard(folder: Path, evil: Evil) -> None:
    path = sharded(folder)
    torch.save(evil, folder / "shard")
    index = pickle.loads((path / ".metadata").read_bytes())
    for info in index.storage_data.values():
        info.offset, info.length = 0, (folder / "shard").stat().st_size
    put(path / "__0_0.distcp", (folder / "shard").read_bytes())
    put(path / ".metadata", pickle.dumps(index))
    read_checkpoint(path)


def in_a_folder_of_deepspeed(folder: Path, evil: Evil) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "latest").write_text("checkpoint")
    torch.save({"module": {"w": torch.ones(2)}}, folder / "checkpoint" / "mp_rank_00_model_states.pt")
    check_deepspeed_folder(folder)
    torch.save({"optimizer_state_dict": evil}, folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    check_deepspeed_folder(folder)


def in_an_old_file_of_deepspeed(folder: Path, evil: Evil) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "latest").write_text("checkpoint")
    (folder / "checkpoint" / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(evil))
    check_deepspeed_folder(folder)


def beside_a_folder_of_deepspeed(folder: Path, evil: Evil) -> None:
    torch.save(evil, folder / "model_states.pt")
    (folder / "inside").mkdir()
    (folder / "inside" / "latest").write_text("..")
    check_deepspeed_folder(folder / "inside")


def in_the_reference_of_dpo(folder: Path, evil: Evil) -> None:
    torch.save({"log_probs": evil}, folder / "train.safetensors")
    assert read_reference(folder / "train.safetensors", 3) is None  # it is computed again
    raise UserError("nothing was read")


def in_a_replay_record(folder: Path, evil: Evil) -> None:
    (folder / "step_00000001.json").write_bytes(pickle.dumps(evil))
    StepRecord.load(folder / "step_00000001.json")


def in_the_weights_of_a_model(folder: Path, evil: Evil) -> None:
    policy = Path(make_stage("sft", folder).init_from)
    for file in (policy / "model.safetensors").parent.glob("*.safetensors"):
        torch.save({"weight": evil}, file)
    load_model_folder(policy)


def in_the_tokenizer(folder: Path, evil: Evil) -> None:
    policy = Path(make_stage("sft", folder).init_from)
    (policy / "tokenizer.json").write_bytes(pickle.dumps(evil))
    load_tokenizer(policy)


def in_an_adapter(folder: Path, evil: Evil) -> None:
    config = make_stage("sft", folder, lora={"rank": 2}, trainer={"max_steps": 1, "val_every_n_steps": None})
    run_stage(config)
    torch.save({"weight": evil}, config.folder / "adapter" / "adapter_model.safetensors")
    load_model_folder(config.folder / "adapter")


def in_the_record_of_a_run(folder: Path, evil: Evil) -> None:
    (folder / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {evil.mark}']\n")
    saved_run(folder, PretrainConfig, 1337)


def in_a_recipe(folder: Path, evil: Evil) -> None:
    (folder / "recipe.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {evil.mark}']\n")
    try:
        main(PretrainConfig, pretrain, ["--config", str(folder / "recipe.yaml")])
    except SystemExit as refused:
        raise UserError("refused") from refused


@pytest.mark.parametrize(
    "place",
    [
        in_a_file,
        in_the_optimizer_of_a_file,
        in_an_old_file,
        in_the_state,
        in_a_shard,
        in_a_folder_of_deepspeed,
        in_an_old_file_of_deepspeed,
        beside_a_folder_of_deepspeed,
        in_the_reference_of_dpo,
        in_a_replay_record,
        in_the_weights_of_a_model,
        in_the_tokenizer,
        in_an_adapter,
        in_the_record_of_a_run,
        in_a_recipe,
    ],
)
def test_a_pickle_is_executed_nowhere(place: Callable[[Path, Evil], None], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        place(tmp_path, Evil(tmp_path / "executed"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


class Own:
    """Nothing that a checkpoint holds."""


def write(path: Path, value: Any) -> None:
    torch.save(value, path)


def write_new(path: Path, value: Any) -> None:
    torch.save(value, path, pickle_protocol=4)


def write_old(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("make", "value", "reason"),
    [
        (write, Own(), r"it asks for '[\w.]*test_unpickling.Own'"),
        (write_old, Own(), r"it asks for '[\w.]*test_unpickling.Own'"),
        (write, np.float64(3), r"it asks for 'numpy\._?core\.multiarray\.scalar'"),
        (write_new, Own(), "it is no pickle of plain tensors"),
        (lambda path, value: path.write_bytes(pickle.dumps(value, 4)), Own(), "it is no pickle of plain tensors"),
        (lambda path, value: path.write_bytes(value), b"hello world", "it is no pickle of plain tensors"),
        (lambda path, value: path.write_bytes(value), b"PK\3\4 cut", r"PytorchStreamReader [^)]*[\w.)]"),
    ],
)
def test_the_reason_is_short_and_whole(
    make: Callable[[Path, Any], None], value: Any, reason: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "step_00000001.ckpt"
    make(path, value)
    with pytest.raises(UserError, match=rf"^{path} is not a whole checkpoint \({reason}( \.\.\.)?\)$"):
        read_checkpoint(path)
    assert [str(warning.message) for warning in recwarn if "pickle" in str(warning.message)] == []


def test_objects_in_a_token_shard_are_not_made(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards / "train", tmp_path / "train"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (shard, *_) = manifest["shards"]
    size = (folder / shard["file"]).stat().st_size
    with (folder / shard["file"]).open("wb") as file:
        np.save(file, np.array([Evil(tmp_path / "executed")], dtype=object), allow_pickle=True)
        file.write(bytes(size - file.tell()))
    tokens = ShardedTokens(folder)
    with pytest.raises(UserError, match="holds token"):  # what is read is bytes, and they are none of its tokens
        tokens.read(0, 10)
    with pytest.raises(UserError, match="sha256"):
        tokens.verify()
    assert not (tmp_path / "executed").exists()
