"""PEFT's adapter folders: theirs read by us and ours by them give the same logits; what is not computed is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from random_decoder import largest_difference, random_decoder, random_tokens, trained_state
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_llm.cli.generate import generate
from lit_llm.config import GenerateConfig, LoraConfig, ModelConfig, SamplingConfig, UserError
from lit_llm.config.files import write_json
from lit_llm.interop import (
    load_adapter,
    load_model_folder,
    load_weights,
    read_model_config,
    save_adapter,
    save_model_folder,
    starting_adapter,
    stop_token_ids,
)
from lit_llm.interop.configuration import family_of, write_config
from lit_llm.interop.writing import outputs_of, write_weights
from lit_llm.model import Decoder
from lit_llm.model.lora import add_lora, prepare_dora
from lit_llm.tokenizer import Tokenizer

KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
ARCHITECTURES = ["llama-10m", "qwen2.5-0.5b"]


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 6.0, **fields})


@torch.no_grad()
def adapted(base: Decoder, config: LoraConfig) -> Decoder:
    """A copy of `base` with additions that matter."""
    model = Decoder(base.config).eval()
    model.load_state_dict(base.state_dict())
    add_lora(model, config, seed=1)
    prepare_dora(model)
    generator = torch.Generator().manual_seed(2)
    for value in trained_state(model).values():
        value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(random_tokens(model.config, 2, 16))


def save_base(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> Decoder:
    """In Hugging Face's form, whatever the tokenizer."""
    model = random_decoder(config, std=0.1)
    family, _ = family_of(config)
    assert family is not None
    tokenizer.save(folder)
    write_weights(folder, outputs_of(config, model.state_dict(), family))
    write_json(folder / "config.json", write_config(config, family))
    return model


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer) -> Decoder:
    """A small Llama, saved as tmp_path / "base"."""
    return save_base(tmp_path / "base", tokenizer, tiny_model("llama-10m"))


@pytest.fixture
def folder(tmp_path: Path, base: Decoder) -> Path:
    """An adapter of `base`."""
    model = adapted(base, lora())
    save_adapter(tmp_path / "adapter", base.config, lora(), model.state_dict(), str(tmp_path / "base"))
    return tmp_path / "adapter"


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ours_in_peft(tmp_path: Path, tokenizer: Tokenizer, architecture: str, kind: str) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = save_base(tmp_path / "base", tokenizer, tiny_model(architecture))
    config = lora(**KINDS[kind])
    model = adapted(base, config)
    save_adapter(tmp_path / "adapter", base.config, config, model.state_dict(), str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens = random_tokens(base.config, 2, 16)
    with torch.no_grad():
        assert largest_difference(theirs(tokens).logits, logits(model)) < 1e-5
    assert largest_difference(logits(model), logits(base)) > 0.01
    assert {value.peft_type for value in theirs.peft_config.values()} == {"LORA"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_theirs_read_by_us(tmp_path: Path, tokenizer: Tokenizer, architecture: str, kind: str) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = save_base(tmp_path / "base", tokenizer, tiny_model(architecture))
    flags = {f"use_{name}": value for name, value in KINDS[kind].items()}
    targets = {"lora": ["q_proj", "down_proj"], "rslora": "all-linear", "dora": r".*\.(v_proj|gate_proj)"}[kind]
    options = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=targets, **flags)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(theirs, options)
    tokens = random_tokens(base.config, 2, 16)
    optimizer = torch.optim.AdamW([value for value in theirs.parameters() if value.requires_grad], lr=0.03)
    for _ in range(3):
        theirs(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert largest_difference(expected, logits(base)) > 0.01

    merged, _ = load_model_folder(tmp_path / "adapter")
    assert largest_difference(logits(merged), expected) < 1e-5
    config, weights = load_adapter(tmp_path / "adapter", base.config)
    assert (config.rank, config.alpha, config.rslora, config.dora) == (3, 5, kind == "rslora", kind == "dora")
    assert len(config.targets) == {"lora": 2, "rslora": 7, "dora": 2}[kind]
    started, same = starting_adapter(LoraConfig(adapter=str(tmp_path / "adapter")), base.config)
    assert started == LoraConfig(**{**vars(config), "adapter": str(tmp_path / "adapter")})
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    add_lora(base, started, seed=0)
    base.load_state_dict(weights, strict=False)
    assert largest_difference(logits(base), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(tmp_path: Path, base: Decoder, kind: str) -> None:
    config = lora(**KINDS[kind], dropout=0.1)
    model = adapted(base, config)
    save_adapter(tmp_path / "one", base.config, config, model.state_dict(), str(tmp_path / "base"))
    save_adapter(tmp_path / "two", base.config, config, trained_state(model), str(tmp_path / "base"))
    assert (tmp_path / "one/adapter_model.safetensors").read_bytes() == (
        tmp_path / "two/adapter_model.safetensors"
    ).read_bytes()
    found, weights = load_adapter(tmp_path / "one", base.config)
    assert found.projections == config.projections
    assert vars(found) == {**vars(config), "targets": found.targets}
    assert weights.keys() == trained_state(model).keys()
    assert all(torch.equal(value, weights[name]) for name, value in trained_state(model).items())
    merged, _ = load_model_folder(tmp_path / "one")
    assert largest_difference(logits(merged), logits(model)) < 1e-5


def test_a_reward_adapter(tmp_path: Path, base: Decoder) -> None:
    """The head of scores goes along, and the base stays a language model."""
    config = base.config.as_score()
    model = Decoder(config).eval()
    model.load_state_dict({**base.state_dict(), "head.weight": model.head.weight.detach()})
    model = adapted(model, lora())
    save_adapter(tmp_path / "adapter", config, lora(), model.state_dict(), str(tmp_path / "base"))
    assert read_model_config(tmp_path / "adapter") == config
    scorer, _ = load_model_folder(tmp_path / "adapter")
    assert largest_difference(logits(scorer), logits(model)) < 1e-5
    assert "head.weight" in load_adapter(tmp_path / "adapter", config)[1]
    with pytest.raises(UserError, match="is an adapter of a reward model"):
        load_adapter(tmp_path / "adapter", base.config)
    with pytest.raises(UserError, match="is an adapter of a reward model"):
        load_weights(tmp_path / "adapter", base.config)

    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=config.vocab_size - 1
    )
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    tokens = random_tokens(config, 2, 16).clamp(max=config.vocab_size - 2)
    with torch.no_grad():
        assert largest_difference(theirs(tokens).logits[:, 0], model(tokens)[:, -1]) < 1e-5


def test_an_adapter_folder_is_a_model_folder(
    tmp_path: Path, folder: Path, base: Decoder, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_model_config(folder) == read_model_config(tmp_path / "base")
    model, found = load_model_folder(folder, dtype=torch.bfloat16)
    assert found.state == tokenizer.state
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert stop_token_ids(folder, found) == stop_token_ids(tmp_path / "base", found)
    sampling = SamplingConfig(max_new_tokens=3, temperature=0.0)
    generate(GenerateConfig(str(folder), ["def "], sampling=sampling))
    assert capsys.readouterr().out
    # an adapter of an adapter, beside which its base lies
    second = adapted(random_decoder(base.config, std=0.1), lora(rank=2))
    save_adapter(folder / "next", base.config, lora(rank=2), second.state_dict(), "..", tokenizer)
    one, two = load_weights(folder, base.config), load_weights(folder / "next", base.config)
    name = "blocks.1.attention.q_proj"
    layer = second.get_submodule(name)
    expected = one[f"{name}.weight"] + 3.0 * layer.lora_B @ layer.lora_A
    assert torch.allclose(two[f"{name}.weight"], expected, atol=1e-6)


def test_an_addition_in_some_blocks_can_be_merged_alone(folder: Path, base: Decoder) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1" in name}
    save_file(kept, path)
    merged, before = load_weights(folder, base.config), base.state_dict()
    first, second = (f"blocks.{layer}.attention.q_proj.weight" for layer in range(2))
    assert torch.equal(merged[first], before[first])
    assert not torch.equal(merged[second], before[second])
    with pytest.raises(UserError, match=r"adapts q_proj in 1 of 2 blocks; that can be merged .* not trained further"):
        load_adapter(folder, base.config)


def test_options_that_contradict_the_adapter(folder: Path, base: Decoder) -> None:
    def start(**fields: Any) -> LoraConfig:
        return starting_adapter(LoraConfig(adapter=str(folder), **fields), base.config)[0]

    assert start(rank=4, dropout=0.2, quantize_base="int8").dropout == 0.2
    assert start(targets=["all"]).alpha == 6.0
    with pytest.raises(UserError, match=r"lora.rank is 8, but .*adapter has 4; leave the option out"):
        start(rank=8)
    with pytest.raises(UserError, match=r"lora.targets is \['q_proj'\], but"):
        start(targets=["q_proj"])
    assert starting_adapter(lora(), base.config) == (lora(), {})


@pytest.mark.parametrize(("changes", "message"), [
    ({"peft_type": "IA3"}, "has peft_type 'IA3'; only LORA can be read"),
    ({"task_type": "TOKEN_CLS"}, "has task_type 'TOKEN_CLS'"),
    ({"bias": "all"}, "has bias 'all'; only adapters that leave biases alone"),
    ({"fan_in_fan_out": True}, "has fan_in_fan_out True, which is not supported"),
    ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern {'q_proj': 2}, which is not supported"),
    ({"alpha_pattern": {"q_proj": 2}}, "has alpha_pattern"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication"),
    ({"lora_bias": True}, "has lora_bias True"),
    ({"a_new_kind": {"x": 1}}, "has a_new_kind {'x': 1}, which is not supported; merge it with PEFT"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base's weights"),
    ({"r": None}, "has no rank r"),
    ({"r": 3}, r"has another shape for blocks.0.attention.q_proj.lora_A|has another shape for"),
    ({"use_dora": True}, "it lacks blocks.0.attention.k_proj.lora_magnitude"),
    ({"lora_alpha": -1}, "adapter_config.json: lora.alpha is -1"),
])  # fmt: skip
def test_adapters_that_are_refused(folder: Path, base: Decoder, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    for read in (load_adapter, load_weights):
        with pytest.raises(UserError, match=message):
            read(folder, base.config)


def test_folders_that_are_broken(tmp_path: Path, folder: Path, base: Decoder) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(400, 32)}, path)
    with pytest.raises(UserError, match=r"holds base_model.model.lm_head.weight, which is no addition to a layer"):
        load_adapter(folder, base.config)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter_model.safetensors cannot be read"):
        load_adapter(folder, base.config)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="as a pickle only"):
        load_adapter(folder, base.config)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors"):
        load_model_folder(folder)
    save_file({}, path)
    with pytest.raises(UserError, match="holds no addition"):
        load_adapter(folder, base.config)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"is an adapter of '.*base', which is no model folder here; download"):
        read_model_config(folder)
    rewrite(folder, base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(UserError, match=r"'meta-llama/Llama-3.2-1B', which is no model folder here; download"):
        load_model_folder(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        read_model_config(folder)
    with pytest.raises(UserError, match="is not an adapter folder"):
        load_adapter(tmp_path / "nothing", base.config)


def test_fused_layers_have_no_adapter(tmp_path: Path) -> None:
    model = adapted(random_decoder(tiny_model("gpt2")), lora())
    message = r"adapter of gpt2 is of fused layers \(c_attn\), .*; merge the additions into a model folder"
    with pytest.raises(UserError, match=message):
        save_adapter(tmp_path / "adapter", model.config, lora(), model.state_dict(), "base")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_is_saved_over_no_other(tmp_path: Path, folder: Path, base: Decoder) -> None:
    """PEFT, given the second, would not compute the sum of both."""
    model = adapted(random_decoder(base.config), lora())
    with pytest.raises(UserError, match=rf"{folder}, which the additions are to, is an adapter folder itself; merge"):
        save_adapter(tmp_path / "next", base.config, lora(), model.state_dict(), str(folder))
    assert not (tmp_path / "next").exists()


@pytest.mark.usefixtures("remote_code_cache")
@pytest.mark.parametrize("architecture", ["modern-1m", "gpt2"])
@pytest.mark.parametrize("scores", [False, True])
def test_adapters_of_a_folder_with_code(architecture: str, scores: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """PEFT loads ours onto the model by the code, and saves one that we load."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = tiny_model(architecture)
    base = random_decoder(config.as_score() if scores else config, std=0.1)
    save_model_folder(tmp_path / "base", base.config, base.state_dict(), tokenizer, form="lit_llm")
    model = adapted(base, lora())
    save_adapter(tmp_path / "adapter", base.config, lora(), model.state_dict(), str(tmp_path / "base"), tokenizer)
    kind = transformers.AutoModelForSequenceClassification if scores else transformers.AutoModelForCausalLM
    plain = kind.from_pretrained(tmp_path / "base", trust_remote_code=True)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    tokens = random_tokens(base.config, 2, 16)
    with torch.no_grad():
        found = theirs(input_ids=tokens).logits
        expected = model(tokens)[:, -1:] if scores else model(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (
            found - kind.from_pretrained(tmp_path / "base", trust_remote_code=True)(tokens).logits
        ).abs().max() > 0.01
    theirs.save_pretrained(tmp_path / "saved")
    for folder in ("adapter", "saved"):
        merged, _ = load_model_folder(tmp_path / folder)
        torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)
