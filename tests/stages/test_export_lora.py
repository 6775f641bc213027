"""A checkpoint of a run with low-rank additions becomes a merged model, or an adapter beside its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import largest_difference, random_decoder, random_tokens, trained_state
from torch import Tensor

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import CONFIG_KEY, ExportConfig, LoraConfig, ModelConfig, UserError, to_plain
from lit_llm.interop import load_adapter, load_model_folder, read_model_config, save_model_folder
from lit_llm.model import Decoder
from lit_llm.model.lora import add_lora, prepare_dora, quantize_base
from lit_llm.stages.checkpoints import read_trained_model
from lit_llm.tokenizer import Tokenizer
from lit_llm.training.checkpoint_io import AtomicCheckpointIO

export = COMMANDS["export"].run


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer) -> Decoder:
    """A small Llama, saved as tmp_path / "base"."""
    model = random_decoder(tiny_model("llama-10m"), std=0.1)
    save_model_folder(tmp_path / "base", model.config, model.state_dict(), tokenizer)
    return model


@torch.no_grad()
def train(base: Decoder, config: LoraConfig, model: ModelConfig | None = None) -> Decoder:
    """A model like `base` but for its head, with additions that matter."""
    decoder = Decoder(model or base.config, seed=4).eval()
    weights = {name: value for name, value in base.state_dict().items() if name != "head.weight"}
    missing = decoder.load_state_dict(weights, strict=False).missing_keys
    assert missing in (["head.weight"], ["head.weight", "value_head.weight"])
    if decoder.config.tie_word_embeddings:
        decoder.tie()
    add_lora(decoder, config, seed=1)
    quantize_base(decoder, config.quantize_base)
    prepare_dora(decoder)
    generator = torch.Generator().manual_seed(2)
    for value in trained_state(decoder).values():
        value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return decoder


def save_checkpoint(folder: Path, model: Decoder, config: LoraConfig, **run: Any) -> Path:
    """As a run with `config` writes it."""
    path = folder / "step_00000007.ckpt"
    run = {"model": to_plain(model.config), "lora": to_plain(config), "init_from": str(folder / "base"), **run}
    io = AtomicCheckpointIO()
    io.save_checkpoint({
        "state_dict": {f"model.{name}": value for name, value in trained_state(model).items()},
        "pytorch-lightning_version": "2.6.0",
        "global_step": 7,
        CONFIG_KEY: {"data": {"paths": ["rows.jsonl"]}, **run},
    }, path)  # fmt: skip
    io.settle()
    return path


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(random_tokens(tiny_model(), 2, 16))


@pytest.mark.parametrize("fields", [
    {"rslora": True, "targets": ["q_proj", "down_proj"]},
    {"dora": True},
    {"quantize_base": "int8"},
    {"quantize_base": "int4", "dora": True},
])  # fmt: skip
def test_merged_by_default(tmp_path: Path, base: Decoder, fields: dict[str, Any], tokenizer: Tokenizer) -> None:
    config = LoraConfig(rank=3, alpha=6.0, **fields)
    model = train(base, config)
    path = save_checkpoint(tmp_path, model, config)
    assert path.stat().st_size < 0.8 * (tmp_path / "base/model.safetensors").stat().st_size
    export(ExportConfig(str(path), str(tmp_path / "out")))
    merged, found = load_model_folder(tmp_path / "out")
    assert merged.config == base.config
    assert found.state == tokenizer.state
    assert largest_difference(logits(merged), logits(model)) < 1e-5
    assert largest_difference(logits(model), logits(base)) > 0.01
    trained = read_trained_model(path)
    assert trained.lora == config and trained.weights.keys() == trained_state(model).keys()
    assert torch.equal(logits(trained.decoder()), logits(merged))


def test_as_an_adapter(tmp_path: Path, base: Decoder, capsys: pytest.CaptureFixture[str]) -> None:
    config = LoraConfig(rank=3, dora=True, targets=["v_proj"])
    model = train(base, config)
    path = save_checkpoint(tmp_path, model, config)
    export(ExportConfig(str(path), str(tmp_path / "out"), lora="adapter"))
    assert capsys.readouterr().out == f"adapter folder  {tmp_path / 'out'} (step 7 of {path})\n"
    assert load_adapter(tmp_path / "out", base.config)[0] == config
    merged, _ = load_model_folder(tmp_path / "out")
    assert largest_difference(logits(merged), logits(model)) < 1e-5
    with pytest.raises(UserError, match="already holds a model"):
        export(ExportConfig(str(path), str(tmp_path / "out")))
    # the adapter folder itself can be exported, too, and a model replaced by an adapter
    export(ExportConfig(str(tmp_path / "out"), str(tmp_path / "merged")))
    merged, _ = load_model_folder(tmp_path / "merged")
    assert largest_difference(logits(merged), logits(model)) < 1e-5
    export(ExportConfig(str(path), str(tmp_path / "merged"), lora="adapter", overwrite=True))
    assert largest_difference(logits(load_model_folder(tmp_path / "merged")[0]), logits(model)) < 1e-5


def test_a_folder_holds_a_model_or_an_adapter(tmp_path: Path, base: Decoder) -> None:
    """transformers would put an adapter beside config.json on top of the model."""
    config = LoraConfig(rank=3)
    model = train(base, config)
    path, out = save_checkpoint(tmp_path, model, config), tmp_path / "out"

    def files() -> set[str]:
        return {each.name for each in out.iterdir() if "token" not in each.name and each.suffix != ".jinja"}

    parts: dict[str, Any] = {"format": "lit_llm", "max_shard_size": "60KB"}
    export(ExportConfig(str(path), str(out), **parts))
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} < files()
    assert len(list(out.glob("model-*.safetensors"))) > 1 and list(out.glob("*.py"))
    export(ExportConfig(str(path), str(out), lora="adapter", overwrite=True))
    assert files() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    for source in (path, out):  # the adapter is merged where it lies, too
        export(ExportConfig(str(path), str(out), lora="adapter", overwrite=True))
        export(ExportConfig(str(source), str(out), overwrite=True))
        assert files() == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
        assert "adapter" not in (out / "README.md").read_text()
        assert largest_difference(logits(load_model_folder(out)[0]), logits(model)) < 1e-5


def test_an_adapter_that_cannot_be_written_costs_no_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    base = random_decoder(tiny_model("gpt2"), std=0.1)
    config = LoraConfig(rank=3)
    for folder in ("base", "out"):
        save_model_folder(tmp_path / folder, base.config, base.state_dict(), tokenizer)
    path = save_checkpoint(tmp_path, train(base, config), config)
    with pytest.raises(UserError, match="an adapter of gpt2 is of fused layers"):
        export(ExportConfig(str(path), str(tmp_path / "out"), lora="adapter", overwrite=True))
    assert torch.equal(logits(load_model_folder(tmp_path / "out")[0]), logits(base))
    with pytest.raises(UserError, match=r"base is the model that the adapter is for; give --output another folder"):
        export(ExportConfig(str(path), str(tmp_path / "base"), lora="adapter", overwrite=True))
    assert torch.equal(logits(load_model_folder(tmp_path / "base")[0]), logits(base))


def test_a_reward_model_and_a_policy_with_a_critic(tmp_path: Path, base: Decoder) -> None:
    config = LoraConfig(rank=3)
    scorer = train(base, config, base.config.as_score())
    path = save_checkpoint(tmp_path, scorer, config)
    export(ExportConfig(str(path), str(tmp_path / "scorer")))
    found, _ = load_model_folder(tmp_path / "scorer")
    assert found.config.output == "score"
    assert largest_difference(logits(found), logits(scorer)) < 1e-5

    policy = train(base, config, ModelConfig(**{**vars(base.config), "value_head": True}))
    path = save_checkpoint(tmp_path, policy, config)
    export(ExportConfig(str(path), str(tmp_path / "policy")))
    found, _ = load_model_folder(tmp_path / "policy")
    assert not found.config.value_head
    assert largest_difference(logits(found), logits(policy)) < 1e-5


def test_new_tokens_and_a_run_in_bfloat16(tmp_path: Path, base: Decoder) -> None:
    """Rows that the run has made for chat tokens are made again; an adapter cannot say so."""
    pytest.importorskip("transformers")
    before = Tokenizer.load(save_foreign_tokenizer("gpt2", tmp_path / "base")).vocab_size
    config = LoraConfig(rank=3)
    model = train(base, config)
    model.config.vocab_size = 403
    path = save_checkpoint(
        tmp_path,
        model,
        config,
        data={"paths": ["rows.jsonl"], "add_chat_tokens": True},
        trainer={"precision": "bf16-true"},
    )
    export(ExportConfig(str(path), str(tmp_path / "out")))
    merged, found = load_model_folder(tmp_path / "out")
    assert found.vocab_size == before + 1  # <|pad|>
    assert read_model_config(tmp_path / "out").vocab_size == 403
    assert {value.dtype for value in merged.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"the model has 403 tokens and its base .* has rows for 400; merge"):
        export(ExportConfig(str(path), str(tmp_path / "adapter"), lora="adapter"))


def test_what_is_refused(tmp_path: Path, base: Decoder) -> None:
    config = LoraConfig(rank=3)
    model = train(base, config)
    output = str(tmp_path / "out")
    with pytest.raises(UserError, match="is a model; lora adapter is for a checkpoint"):
        export(ExportConfig(str(tmp_path / "base"), output, lora="adapter"))
    path = save_checkpoint(tmp_path, model, LoraConfig())
    with pytest.raises(UserError, match="has no adapter: the run trained all weights"):
        export(ExportConfig(str(path), output, lora="adapter"))
    for place in (None, str(tmp_path / "gone")):
        path = save_checkpoint(tmp_path, model, config, init_from=place)
        with pytest.raises(UserError, match=r"not the model that it started from, which is not at .*; put that model"):
            export(ExportConfig(str(path), output))
    for options in ({"format": "gguf"}, {"dtype": "bfloat16"}, {"quantize": "int8"}, {"max_shard_size": "1KB"}):
        with pytest.raises(UserError, match="has no effect on an adapter"):
            ExportConfig(lora="adapter", **options)
