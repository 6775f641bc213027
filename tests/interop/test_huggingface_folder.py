"""Hugging Face folders whose weights are sharded, bare, old, tied or converted; and what a run makes of one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRun, tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import random_decoder, random_tokens
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_llm.cli.commands import COMMANDS
from lit_llm.cli.generate import generate
from lit_llm.config import ExportConfig, GenerateConfig, SamplingConfig, UserError
from lit_llm.interop import (
    iterate_weights,
    load_model_folder,
    load_weights,
    read_model_config,
    save_model_folder,
    stop_token_ids,
    why_remote_code,
)
from lit_llm.model import Decoder
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer

export = COMMANDS["export"].run


def save(folder: Path, model: Decoder, tokenizer: Tokenizer, **options: Any) -> Path:
    save_model_folder(folder, model.config, model.state_dict(), tokenizer, **options)
    return folder


def model_of(folder: Path) -> dict[str, Tensor]:
    return load_weights(folder, read_model_config(folder))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small tied Llama."""
    return save(tmp_path / "model", random_decoder(tiny_model("llama-10m")), tokenizer)


@pytest.fixture
def gpt2(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small GPT-2."""
    return save(tmp_path / "gpt2", random_decoder(tiny_model("gpt2")), tokenizer)


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors")


def test_sharded_by_us_and_read_by_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_decoder(tiny_model("gpt2", tie_word_embeddings=False))
    folder = save(tmp_path / "model", model, tokenizer, max_shard_bytes=40_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((folder / file).stat().st_size < 60_000 for file in files[1:-1])  # the embedding is one tensor
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(folder / file).values()
    )
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokens = random_tokens(model.config, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=4e-5, rtol=0)
    loaded, _ = load_model_folder(folder)
    assert_same(loaded.state_dict(), model.state_dict())

    # saved again in one file, and again in several: what is old is gone
    save(folder, model, tokenizer)
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]
    save(folder, model, tokenizer, max_shard_bytes=40_000)
    assert not (folder / "model.safetensors").exists()
    assert_same(model_of(folder), model.state_dict())


@pytest.mark.parametrize("name", ["gemma2-2b", "gemma3-1b"])
def test_gemma_without_a_window_is_read_by_transformers(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    fields = {"sliding_window": None, "full_attention_every": None, "rope_theta_windowed": None}
    model = random_decoder(tiny_model(name, max_position_embeddings=64, **fields)).eval()
    save(tmp_path / "model", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = random_tokens(model.config, 2, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)
    assert read_model_config(tmp_path / "model") == model.config


def test_sharded_by_transformers_and_read_by_us(tmp_path: Path, saved: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_same(model_of(tmp_path / "sharded"), model_of(saved))


INDEX_DAMAGE: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda text: text[:20], r"index\.json is not valid JSON"),
    "no map": (lambda text: "{}", "is not an index of weights"),
    "a file that is not there": (
        lambda text: text.replace("model-00002", "model-00077"),
        r"names 'model-00077-of-\d+\.safetensors', which is not there",
    ),
    "a file elsewhere": (lambda text: text.replace("model-00002", "../model-00002"), r"names '\.\./model-00002"),
    "a pickle": (lambda text: text.replace(".safetensors", ".bin"), r"names 'model-\d+-of-\d+\.bin'"),
    "a tensor that is not there": (
        lambda text: text.replace("layers.0.input_layernorm", "layers.9.input_layernorm"),
        r"lacks model\.layers\.9\.input_layernorm\.weight, which model\.safetensors\.index\.json says it has",
    ),
}


@pytest.mark.parametrize("name", INDEX_DAMAGE)
def test_what_is_wrong_with_an_index_is_said(name: str, saved: Path, tokenizer: Tokenizer) -> None:
    damage, message = INDEX_DAMAGE[name]
    save(saved, random_decoder(tiny_model("llama-10m")), tokenizer, max_shard_bytes=30_000)
    index = saved / "model.safetensors.index.json"
    index.write_text(damage(index.read_text()))
    with pytest.raises(UserError, match=message):
        load_model_folder(saved)


def test_a_pickle_is_not_read(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle only .* convert it where you trust it: .*save_pretrained"):
        load_model_folder(saved)


def test_names_without_the_prefix(saved: Path, gpt2: Path) -> None:
    """As the bare model, without its head, is saved."""
    for folder, prefix in ((saved, "model."), (gpt2, "transformer.")):
        before = model_of(folder)
        rewrite(folder, lambda weights, prefix=prefix: {name.removeprefix(prefix): w for name, w in weights.items()})
        assert_same(model_of(folder), before)


def test_buffers_of_old_files_are_passed_over(saved: Path, gpt2: Path) -> None:
    before, before_gpt2 = model_of(saved), model_of(gpt2)
    rewrite(saved, lambda weights: {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.1.attn.masked_bias": torch.ones(())}
    rewrite(gpt2, lambda weights: {**weights, **masks})
    assert_same(model_of(saved), before)
    assert_same(model_of(gpt2), before_gpt2)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(saved: Path) -> None:
    before = model_of(saved)
    rewrite(saved, lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert_same(model_of(saved), before)
    rewrite(saved, lambda weights: {**weights, "lm_head.weight": weights["lm_head.weight"] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight and .* differ; set tie_word_embeddings to false"):
        load_model_folder(saved)


def test_weights_are_converted_one_at_a_time(saved: Path) -> None:
    config = read_model_config(saved)
    for name, tensor in iterate_weights(saved, config, dtype=torch.bfloat16):
        assert tensor.dtype == torch.bfloat16, name
        assert tensor.is_contiguous(), name
    loaded, _ = load_model_folder(saved, dtype=torch.float64)
    assert torch.equal(loaded.final_norm.weight, model_of(saved)["final_norm.weight"].double())


def test_quantized_weights_are_refused(saved: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(saved, lambda weights: {**weights, name: weights[name].to(torch.int8)})
    with pytest.raises(UserError, match=rf"{name} is stored as I8; quantized weights are not read"):
        load_model_folder(saved)


def test_a_number_too_large_leaves_the_old_weights(tmp_path: Path, saved: Path, tokenizer: Tokenizer) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = random_decoder(tiny_model("llama-10m"))
    with torch.no_grad():
        model.blocks[1].feedforward.up_proj.weight[3, 4] = 1e5
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has numbers beyond float16's 65,504"):
        save(saved, model, tokenizer, dtype=torch.float16)
    assert (saved / "model.safetensors").read_bytes() == before
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


def test_rows_that_pad_the_vocabulary_are_no_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = tiny_model("llama-10m", vocab_size=398, pad_vocab_to_multiple_of=64, tie_word_embeddings=False)
    model = random_decoder(config)
    folder = save(tmp_path / "model", model, tokenizer)
    stored = load_file(folder / "model.safetensors")
    assert stored["lm_head.weight"].shape == stored["model.embed_tokens.weight"].shape == (398, 32)
    loaded, _ = load_model_folder(folder)
    assert loaded.config == config
    assert loaded.embedding.weight.shape == (448, 32)
    assert not loaded.head.weight[398:].any()
    tokens = random_tokens(config, 2, 16)
    assert torch.equal(loaded(tokens), model(tokens))


def test_what_transformers_has_not_is_written_as_ours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(tiny_model("modern-1m"))
    arguments = (model.config, model.state_dict(), tokenizer)
    assert save_model_folder(tmp_path / "a", *arguments) == "lit_llm"
    assert save_model_folder(tmp_path / "b", *arguments, form="huggingface") == "lit_llm"
    assert_same(model_of(tmp_path / "b"), model_of(tmp_path / "a"))
    reason = why_remote_code(model.config, tokenizer)
    assert re.search(r"no such architecture: .* without .*x0_shortcut True", reason or "")
    llama = random_decoder(tiny_model("llama-10m"))
    assert save_model_folder(tmp_path / "c", llama.config, llama.state_dict(), tokenizer, form="lit_llm") == "lit_llm"
    assert_same(model_of(tmp_path / "c"), llama.state_dict())


def test_qwen2_needs_qwen_s_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """transformers would split text by Qwen's pattern, and its ids would not be the model's."""
    pytest.importorskip("transformers")
    model = random_decoder(tiny_model("qwen2.5-0.5b"))
    arguments = (model.config, model.state_dict())
    assert save_model_folder(tmp_path / "a", *arguments, tokenizer, form="huggingface") == "lit_llm"
    assert "AutoTokenizer splits text by qwen2's own pattern" in (why_remote_code(model.config, tokenizer) or "")
    qwen = Tokenizer.load(save_foreign_tokenizer("qwen", tmp_path / "tokenizer"))
    assert save_model_folder(tmp_path / "c", *arguments, qwen) == "qwen2"
    assert_same(model_of(tmp_path / "c"), model_of(tmp_path / "a"))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder that transformers wrote, tokenizer and all."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = save_foreign_tokenizer("llama3", tmp_path / "theirs")
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=380,
        eos_token_id=381,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [381, 7]
    model.generation_config.temperature = 0.6
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


def test_a_run_starts_from_their_folder(theirs: Path, make_run: MakeRun) -> None:
    before = model_of(theirs)
    config = make_run(
        init_from=str(theirs), optimizer={"learning_rate": 1e-9}, trainer={"max_steps": 2, "val_every_n_steps": None}
    )
    result = pretrain(config)
    assert result is not None
    after = model_of(result.model_folder)
    assert read_model_config(result.model_folder) == read_model_config(theirs)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)


@pytest.mark.slow
def test_a_sharded_run_starts_from_their_folder(theirs: Path, make_run: MakeRun, tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "fsdp", "tensor_parallel_size": 2, "max_steps": 1, "val_every_n_steps": None}
    config = make_run(
        init_from=str(theirs), optimizer={"learning_rate": 1e-9}, schedule={"warmup_steps": 0}, trainer=trainer
    )
    run_ranks(pretrain, 2, tmp_path, config)
    after = model_of(config.folder / "model")
    for name, tensor in model_of(theirs).items():
        torch.testing.assert_close(after[name], tensor, atol=1e-7, rtol=0)


def test_text_is_written_from_their_folder(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    generate(GenerateConfig(str(theirs), ["def "], sampling=SamplingConfig(max_new_tokens=8, temperature=0.0)))
    text = capsys.readouterr().out.rstrip("\n")
    reader = transformers.AutoTokenizer.from_pretrained(theirs)
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    ids = torch.tensor([reader("def ")["input_ids"]])  # which begins with the token that begins a text
    continued = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert text == reader.decode(continued[0, 1:])


def test_from_folder_to_folder(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "half"
    export(ExportConfig(str(theirs), str(output), format="huggingface", dtype="bfloat16", max_shard_size="30kB"))
    assert capsys.readouterr().out == f"model folder  {output} ({theirs})\n"
    assert len(list(output.glob("*.safetensors"))) > 1
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in model_of(theirs).items():
        assert torch.equal(model_of(output)[name], tensor.bfloat16()), name
    generation = json.loads((theirs / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [381, 7]
    assert json.loads((output / "generation_config.json").read_text()) == generation
    assert stop_token_ids(output, Tokenizer.load(output)) == [381, 7]

    export(ExportConfig(str(theirs), str(tmp_path / "same")))
    assert_same(load_file(theirs / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors"))
    assert Tokenizer.load(tmp_path / "same").digest == Tokenizer.load(theirs).digest


def test_export_says_who_can_load_it(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "modern", random_decoder(tiny_model("modern-1m")), tokenizer)
    export(ExportConfig(str(folder), str(tmp_path / "out")))
    first, second = capsys.readouterr().out.splitlines()
    loads = "transformers loads it with trust_remote_code=True, by the code in the folder: "
    assert first.startswith(f"{loads}transformers has no such architecture")
    assert second.startswith("model folder")
    export(ExportConfig(str(folder), str(tmp_path / "same"), format="huggingface"))
    assert capsys.readouterr().out.splitlines()[0] == first
    llama = save(tmp_path / "llama", random_decoder(tiny_model("llama-10m")), tokenizer)
    export(ExportConfig(str(llama), str(tmp_path / "ours"), format="lit_llm"))
    assert capsys.readouterr().out.splitlines()[0] == f"{loads}it is of our own form"


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("2GiB", 2**31), ("7", 7)])
def test_sizes_of_files(text: str, size: int) -> None:
    assert ExportConfig(max_shard_size=text).max_shard_bytes == size


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "5 5GB", "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="max_shard_size"):
        ExportConfig(max_shard_size=text)


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of a file."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the memory of a process is read from /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_reading_holds_one_tensor_at_a_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = tiny_model("llama-10m", hidden_size=512, num_layers=8, intermediate_size=2048)
    model = Decoder(config)
    folder = save(tmp_path / "model", model, tokenizer)
    whole = sum(parameter.numel() for parameter in model.parameters()) * 4
    del model
    before = anonymous_memory()
    most = 0
    for _ in iterate_weights(folder, config, dtype=torch.bfloat16):
        most = max(most, anonymous_memory() - before)
    assert most < whole / 8
    weights = load_weights(folder, config)  # which stay in the file
    assert anonymous_memory() - before < whole / 8
    assert sum(tensor.sum() for tensor in weights.values()).isfinite()
