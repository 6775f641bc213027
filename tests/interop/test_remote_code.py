"""Folders of architectures that transformers lacks: the code they carry computes what our decoder computes."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import alone, largest_difference, random_decoder, random_tokens
from safetensors.torch import load_file, save_file

from lit_llm.config import ModelConfig, SamplingConfig, UserError
from lit_llm.generation import generate
from lit_llm.interop import (
    load_model_folder,
    load_tokenizer,
    load_weights,
    read_model_config,
    save_model_folder,
    why_remote_code,
)
from lit_llm.interop.remote_code import FILES
from lit_llm.model import Decoder, last_scores
from lit_llm.tokenizer import Tokenizer

pytest.importorskip("transformers", reason="transformers is not installed; pip install 'lit-llm[test]'")

import transformers

from lit_llm.interop.remote_code.configuration_lit_llm import DEFAULTS

pytestmark = pytest.mark.usefixtures("remote_code_cache")

CONTEXT = 40
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = {"type": "llama3", "factor": 8.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
MODERN = {"x0_shortcut": True, "value_embeddings": True, "token_smear": True, "embedding_norm": True}
# each field of ModelConfig that changes what is computed is away from its default in one of these
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern-1m", {"num_layers": 3, "num_key_value_heads": 2}),
    "modern-window": (
        "modern-1m",
        {
            "sliding_window": 5,
            "full_attention_every": 3,
            "num_layers": 4,
            "rope_theta": 500.0,
            "rope_theta_windowed": 50.0,
            "rope_scaling": LLAMA3,
            "attention_softcap": 3.0,
            "query_pre_attention_scalar": 24.0,
            "qk_norm_width": "all",
            "num_key_value_heads": 2,
            "norm_weight": True,
            "vocab_size": 390,
            "pad_vocab_to_multiple_of": 64,
            "tie_word_embeddings": False,
        },
    ),
    "sandwich": (
        "gemma2-2b",
        {**MODERN, "sliding_window": 6, "rope_scaling": YARN, "head_dim": 12, "num_key_value_heads": 1},
    ),
    "sublayer": ("olmo2-1b", {**MODERN, "activation": "geglu", "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "learned": ("gpt2", {**MODERN, "activation": "silu", "intermediate_size": None, "norm_eps": 1e-3}),
    "2017": ("transformer-2017", {"token_smear": True, "intermediate_size": None}),
    "no positions": ("gpt2", {"position": "none", "activation": "gelu", "norm_bias": False, "qkv_bias": False}),
    "gated": ("llama-10m", {"embedding_norm": True, "intermediate_size": None, "mlp_bias": True}),
}


def config_of(name: str, **more: Any) -> ModelConfig:
    preset, options = CASES[name]
    return tiny_model(preset, **{"max_position_embeddings": CONTEXT, **options, **more})


def save(folder: Path, model: Decoder, tokenizer: Tokenizer, **options: Any) -> Path:
    assert save_model_folder(folder, model.config, model.state_dict(), tokenizer, **options) == "lit_llm"
    return folder


def load(folder: Path, kind: str = "AutoModelForCausalLM", **options: Any) -> Any:
    """The model of a folder as transformers loads it; no weight is missing or left over."""
    loader = getattr(transformers, kind)
    model, report = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, **options)
    assert not any(report.values()), report
    assert type(model).__module__.startswith("transformers_modules.")
    return model


@pytest.fixture(scope="module")
def modern() -> Decoder:
    """A small model with everything that transformers lacks."""
    return random_decoder(config_of("modern-window"))


@pytest.fixture
def saved(tmp_path: Path, modern: Decoder, tokenizer: Tokenizer) -> Path:
    """Its folder."""
    return save(tmp_path / "model", modern, tokenizer)


def test_every_field_is_known_and_away_from_its_default_in_a_case() -> None:
    defaults = asdict(ModelConfig())
    assert defaults == DEFAULTS
    idle = {"vocab_size", "output", "value_head", "dropout", "attention_dropout", "init_std", "zero_init_projections"}
    cases = [asdict(config_of(name)) for name in CASES]
    same = {name for name, value in defaults.items() if all(case[name] == value for case in cases)}
    assert same <= idle


@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_text_are_ours(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(config_of(name))
    assert why_remote_code(model.config, tokenizer) is not None
    theirs = load(save(tmp_path / "model", model, tokenizer))
    for length in (1, 6, CONTEXT):
        tokens = random_tokens(model.config, 2, length)
        ours = model(tokens)
        assert largest_difference(theirs(tokens).logits, ours) <= 1e-5 * ours.abs().max()
    theirs(tokens, labels=tokens).loss.backward()
    torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    gradients = {name.removeprefix("model."): parameter.grad for name, parameter in theirs.named_parameters()}
    for key, parameter in model.named_parameters():
        expected = parameter.grad[: len(gradients[key])]  # rows that pad the vocabulary are not stored
        assert largest_difference(gradients[key], expected) <= 1e-4 * expected.abs().max() + 1e-7, key
        assert not parameter.grad[len(expected) :].any()

    prompts = random_tokens(model.config, 2, 8)
    texts = generate(model, prompts.tolist(), SamplingConfig(max_new_tokens=20, temperature=0.0), eos_id=None)
    for use_cache in (True, False):
        written = theirs.generate(prompts, max_new_tokens=20, do_sample=False, use_cache=use_cache, eos_token_id=None)
        assert written[:, 8:].tolist() == texts


@pytest.mark.parametrize("name", ["modern", "modern-window", "learned"])
def test_left_padding_changes_nothing(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Nor does it matter how a text is read: at once, in parts with a cache, or beside others in a packed row."""
    model = random_decoder(config_of(name))
    theirs = load(save(tmp_path / "model", model, tokenizer))
    texts = [random_tokens(model.config, length, seed=length) for length in (9, 4, 13)]
    width = max(map(len, texts))
    tokens = torch.stack([torch.nn.functional.pad(text, (width - len(text), 0), value=3) for text in texts])
    mask = torch.stack([torch.arange(width) >= width - len(text) for text in texts]).long()
    expected = alone(model, texts)

    def close(row: int, logits: torch.Tensor) -> bool:
        return largest_difference(logits, expected[row][-len(logits) :]) <= 1e-5 * float(expected[row].abs().max())

    with torch.no_grad():
        whole = theirs(tokens, attention_mask=mask, use_cache=False).logits
        first = theirs(tokens[:, :10], attention_mask=mask[:, :10], use_cache=True)
        second = theirs(tokens[:, 10:12], attention_mask=mask[:, :12], past_key_values=first.past_key_values)
        last = theirs(tokens[:, 12:], attention_mask=mask, past_key_values=second.past_key_values, logits_to_keep=1)
        positions = torch.cat([torch.arange(len(text)) for text in texts]).unsqueeze(0)
        packed = theirs(torch.cat(texts).unsqueeze(0), position_ids=positions).logits[0]
    assert last.logits.size(1) == 1
    for row, text in enumerate(texts):
        assert close(row, whole[row, -len(text) :])
        assert close(row, torch.cat([second.logits[row, -min(2, len(text) - 1) :], last.logits[row]]))
    assert all(map(close, range(3), packed.split([len(text) for text in texts])))

    sampling = SamplingConfig(max_new_tokens=12, temperature=0.0)
    written = theirs.generate(
        tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=3
    )
    assert written[:, width:].tolist() == generate(model, [text.tolist() for text in texts], sampling, eos_id=None)


def test_other_ways_to_write(saved: Path, modern: Decoder) -> None:
    """Beams reorder the cache, looking ahead cuts it back: both give what they give without a cache."""
    theirs = load(saved)
    prompts = random_tokens(modern.config, 2, 5).repeat(1, 2)
    no_end = 10_000  # looking ahead needs some token that ends a text
    write = partial(theirs.generate, do_sample=False, eos_token_id=no_end, max_new_tokens=16)
    beams = write(prompts, num_beams=3)
    assert torch.equal(beams, write(prompts, num_beams=3, use_cache=False))
    greedy = write(prompts[:1])
    assert not torch.equal(beams[:1], greedy)
    assert torch.equal(write(prompts[:1], prompt_lookup_num_tokens=3), greedy)


def test_transformers_saves_what_we_read(saved: Path, modern: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = load(saved, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    theirs.save_pretrained(tmp_path / "again", max_shard_size="30KB")
    transformers.AutoTokenizer.from_pretrained(saved, trust_remote_code=True).save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again, read = load_model_folder(tmp_path / "again")
    assert (again.config, read.vocab_size) == (modern.config, tokenizer.vocab_size)
    stored = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    for name, tensor in modern.state_dict().items():
        rows = len(stored[name])
        assert torch.equal(again.state_dict()[name][:rows], tensor[:rows].bfloat16()), name
    tokens = random_tokens(modern.config, 2, 16)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again")(tokens).logits, theirs(tokens).logits)
        # eight bits of precision in each of some fifty roundings
        difference = largest_difference(theirs(tokens).logits.float(), again(tokens).float())
        assert difference <= 0.1 * float(modern(tokens).abs().max())


def test_its_parts_are_where_trl_looks_for_them(saved: Path, modern: Decoder) -> None:
    """TRL computes the loss from the last hidden states, the head's weight and the cap on logits."""
    theirs, tokens = load(saved), random_tokens(modern.config, 2, 9)
    cap = theirs.config.final_logit_softcapping
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True)
        for trunk in (theirs.base_model, load(saved, "AutoModel")):
            states = trunk(tokens, use_cache=False).last_hidden_state
            logits = cap * torch.tanh(states @ theirs.get_output_embeddings().weight.T / cap)
            torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert cap == modern.config.logits_softcap
    assert len(expected.hidden_states) == modern.config.num_layers + 1
    assert torch.equal(expected.hidden_states[-1], states)


def test_rows_that_pad_the_vocabulary_may_be_in_a_file(saved: Path, modern: Decoder) -> None:
    """They are no longer written, and older folders have them."""
    assert load_file(saved / "model.safetensors")["head.weight"].size(0) == 390
    save_file(modern.state_dict(), saved / "model.safetensors")
    weights = load_weights(saved, modern.config)
    assert all(torch.equal(weights[name], tensor) for name, tensor in modern.state_dict().items())
    twice = {**modern.state_dict(), "model.embedding.weight": modern.embedding.weight.detach() + 1}
    save_file(twice, saved / "model.safetensors")
    with pytest.raises(UserError, match=r"holds one weight twice, as (model\.)?embedding\.weight and as"):
        load_weights(saved, modern.config)


def test_the_tokenizer_loads_and_pairs_with_the_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved = save(tmp_path / "model", random_decoder(config_of("modern")), tokenizer)
    theirs, model = transformers.AutoTokenizer.from_pretrained(saved, trust_remote_code=True), load(saved)
    texts = ["def f(x):", "import"]
    batch = theirs(texts, return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(**batch, max_new_tokens=6, do_sample=False)
    ours, _ = load_model_folder(saved)
    ends = model.generation_config.eos_token_id
    assert tokenizer.eot_id in ends
    for row, text in enumerate(texts):
        sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
        (expected,) = generate(ours, [tokenizer.encode(text)], sampling, eos_id=tokenizer.eot_id)
        assert written[row, batch["input_ids"].size(1) :].tolist()[: len(expected)] == expected


def test_it_is_trained(saved: Path, modern: Decoder, tmp_path: Path) -> None:
    """As TRL and PEFT train it: gradient checkpointing, dropout off and on, low-rank additions, more tokens."""
    peft = pytest.importorskip("peft")
    theirs = load(saved)
    tokens = random_tokens(modern.config, 2, 12)
    theirs(tokens, labels=tokens).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in theirs.named_parameters()}
    theirs.zero_grad()
    theirs.train()
    theirs.gradient_checkpointing_enable()
    theirs(tokens, labels=tokens).loss.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-6)
    assert all(gradient.any() for gradient in plain.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert theirs(tokens, labels=tokens).loss.isfinite()

    theirs.zero_grad()
    theirs.eval().gradient_checkpointing_disable()
    before = theirs(tokens).logits.detach()
    theirs.resize_token_embeddings(401)
    assert theirs(torch.full((1, 3), 400)).logits.shape == (1, 3, 401)
    assert largest_difference(theirs(tokens).logits[..., :390], before) <= 1e-5 * float(before.abs().max())
    theirs.save_pretrained(tmp_path / "grown")
    assert read_model_config(tmp_path / "grown").vocab_size == 401
    grown = Decoder(read_model_config(tmp_path / "grown")).eval()
    grown.load_state_dict(load_weights(tmp_path / "grown", grown.config))
    assert largest_difference(grown(tokens), theirs(tokens).logits) <= 1e-5 * float(before.abs().max())

    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


@pytest.mark.parametrize("with_padding", [True, False])
def test_a_reward_model_s_scores_are_ours(with_padding: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = config_of("modern" if with_padding else "gated").as_score()
    if not with_padding:  # any architecture, where the tokenizer has no padding for transformers' own classes
        tokenizer = Tokenizer.load(save_foreign_tokenizer("llama3", tmp_path / "tokenizer"))
        assert tokenizer.pad_id is None
    model = random_decoder(config)
    theirs = load(save(tmp_path / "model", model, tokenizer), "AutoModelForSequenceClassification")
    tokens, lengths = random_tokens(config, 3, 12), torch.tensor([5, 12, 1])
    mask = (torch.arange(12) < lengths.unsqueeze(1)).long()
    with torch.no_grad():
        expected = model(tokens, head=lambda hidden, head: last_scores(hidden, head, lengths))
        scores = theirs(tokens, attention_mask=mask).logits
        by_padding = theirs(tokens.masked_fill(mask == 0, tokenizer.pad_id or 0)).logits
    assert scores.shape == (3, 1)
    torch.testing.assert_close(scores[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(by_padding, scores) == with_padding
    theirs.save_pretrained(tmp_path / "again")
    assert read_model_config(tmp_path / "again") == config


def test_a_language_model_becomes_a_reward_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(config_of("modern", tie_word_embeddings=True))
    folder = save(tmp_path / "model", model, tokenizer)
    reward = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, num_labels=1
    )
    tokens = random_tokens(model.config, 2, 5)
    reward(tokens, labels=torch.tensor([1.0, 0.0])).loss.backward()
    assert reward.score.weight.grad.any()
    reward.save_pretrained(tmp_path / "reward")
    config = read_model_config(tmp_path / "reward")
    assert config == model.config.as_score()
    assert torch.equal(load_weights(tmp_path / "reward", config)["head.weight"], reward.score.weight)


REFUSED: dict[str, tuple[Callable[[Any, torch.Tensor], Any], str]] = {
    "embeddings": (lambda model, tokens: model(inputs_embeds=torch.zeros(1, 3, 32)), "reads token ids"),
    "attention weights": (
        lambda model, tokens: model(tokens, output_attentions=True),
        "attention weights are not kept",
    ),
    "a mask of another length": (
        lambda model, tokens: model(tokens, attention_mask=torch.ones(1, 7)),
        r"attention_mask is of shape .*7.*; it must be \(1, 4\)",
    ),
    "a static cache": (
        lambda model, tokens: model.generate(tokens, max_new_tokens=2, cache_implementation="static"),
        "static caches are not supported",
    ),
    "too long": (lambda model, tokens: model(tokens.repeat(1, 20)), "longer than the model's context of 40 tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_compute_is_refused(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(config_of("learned"))
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(load(save(tmp_path / "model", model, tokenizer)), random_tokens(model.config, 1, 4))


def test_which_folders_carry_code(saved: Path, modern: Decoder, tokenizer: Tokenizer) -> None:
    """Those of our own form, unless quantized; and it goes when the folder is written again in another form."""
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_lit_llm.LitLLMForCausalLM"
    assert {path.name for path in saved.glob("*.py")} == set(FILES)
    llama = random_decoder(tiny_model("llama-10m"))
    arguments = (saved, llama.config, llama.state_dict(), tokenizer)
    assert save_model_folder(*arguments) == "llama"
    assert not list(saved.glob("*.py"))
    assert save_model_folder(*arguments, form="lit_llm") == "lit_llm"
    tokens = random_tokens(llama.config, 2, 8)
    with torch.no_grad():
        assert largest_difference(load(saved)(tokens).logits, llama(tokens)) < 1e-4


def test_code_in_a_folder_is_never_run_by_us(saved: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    for name in (*FILES, "evil.py"):
        (saved / name).write_text(f"open({str(trap)!r}, 'w').close()\n")
    path = saved / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "auto_map": dict.fromkeys(values["auto_map"], "evil.Model")}))
    (saved / "tokenizer_config.json").write_text(
        json.dumps(
            {**json.loads((saved / "tokenizer_config.json").read_text()), "auto_map": {"AutoTokenizer": "evil.T"}}
        )
    )
    model, _ = load_model_folder(saved)
    load_tokenizer(saved)
    assert model(torch.tensor([[1, 2]])).isfinite().all()
    assert not trap.exists()
    path.write_text(json.dumps({**values, "flash_smear": True}))  # nor is a field passed over that nobody knows
    with pytest.raises(UserError, match="flash_smear"):
        read_model_config(saved)


def test_the_code_needs_torch_and_transformers_alone(saved: Path) -> None:
    roots = set()
    for name in FILES:
        for node in ast.walk(ast.parse((saved / name).read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots.add((node.module or "").partition(".")[0])
    assert {"torch", "transformers"} <= roots <= {"torch", "transformers", *sys.stdlib_module_names}
