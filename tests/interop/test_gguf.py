"""GGUF files: transformers and llama.cpp compute from them what we do."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from chat_rows import letter_tokenizer
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import largest_difference, random_decoder, random_tokens

from lit_llm.cli.commands import COMMANDS
from lit_llm.config import ExportConfig, ModelConfig, SamplingConfig, UserError
from lit_llm.generation import complete
from lit_llm.interop import GenerationSettings, save_model_folder
from lit_llm.interop.gguf import save_gguf, why_not_gguf
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

export = COMMANDS["export"].run

gguf = pytest.importorskip("gguf")
FILE = "model.gguf"
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    pytest.importorskip("accelerate")  # which transformers reads GGUF with
    return pytest.importorskip("transformers")


def small(**fields: Any) -> ModelConfig:
    size = {
        "hidden_size": 128,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 160,
        "max_position_embeddings": 64,
    }
    return tiny_model("llama-10m", **{**size, **fields})


@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": False}, {"head_dim": 48, "pad_vocab_to_multiple_of": 64}], ids=str
)
def test_transformers_computes_the_same(
    fields: dict[str, Any], tmp_path: Path, tokenizer: Tokenizer, transformers: ModuleType
) -> None:
    model = random_decoder(small(**fields), std=0.1)
    tokens = random_tokens(model.config, 2, 40)
    for kind, tolerance in (("F32", 2e-5), ("F16", 3e-2), ("BF16", 2e-1)):
        save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, kind)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32)
        with torch.no_grad():
            assert largest_difference(theirs(tokens).logits, model(tokens)) < tolerance, kind
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_eight_bits_are_within_half_a_step(tmp_path: Path, tokenizer: Tokenizer, transformers: ModuleType) -> None:
    """Q8_0: 32 numbers share a scale, the largest over 127, kept as float16."""
    model = random_decoder(small(intermediate_size=176), std=0.1)  # whose down projection has odd rows
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "Q8_0")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32)
    for layer, block in enumerate(theirs.model.layers):
        ours = model.blocks[layer]
        assert torch.equal(block.input_layernorm.weight, ours.attention_norm.weight)
        assert torch.equal(block.mlp.down_proj.weight, ours.feedforward.down_proj.weight)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            exact = getattr(ours.attention, name).weight.detach()
            steps = exact.view(exact.size(0), -1, 32).abs().amax(-1, keepdim=True) / 127
            error = (getattr(block.self_attn, name).weight - exact).detach().view_as(exact.view(exact.size(0), -1, 32))
            assert (error.abs() <= 0.56 * steps).all(), name
            assert error.abs().max() > 0


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.3, 2.0)])
def test_the_factors_of_llama3_are_those_of_transformers(
    low: float, high: float, tmp_path: Path, tokenizer: Tokenizer, transformers: ModuleType
) -> None:
    """The file holds what llama.cpp divides the plain frequencies by."""
    scaling = {**LLAMA3, "low_freq_factor": low, "high_freq_factor": high}
    config = small(rope_scaling=scaling, rope_theta=5000.0)
    save_gguf(tmp_path / FILE, config, random_decoder(config).state_dict(), tokenizer, "F16")
    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / FILE).tensors}["rope_freqs.weight"]
    assert read.dtype == "float32" and read.shape == (16,)
    parameters = {**scaling, "rope_type": scaling.pop("type"), "rope_theta": 5000.0}
    theirs = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=4, head_dim=32, max_position_embeddings=64, rope_parameters=parameters
    )
    frequencies, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 5000.0 ** -(torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    torch.testing.assert_close(plain / torch.tensor(read), frequencies.double(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("form", ["ours", "gpt2", "llama3", "qwen"])
def test_the_tokenizer_gives_the_same_ids(
    form: str, tmp_path: Path, tokenizer: Tokenizer, transformers: ModuleType
) -> None:
    if form != "ours":
        tokenizer = Tokenizer.load(save_foreign_tokenizer(form, tmp_path / "tokenizer"))
    model = random_decoder(small(vocab_size=410))
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "F16")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=FILE)
    for text in ("def f(x):\n    return 12345 x ** 2\n", "Größe 北京 👍", "  two  spaces don't", "I'LL <|im_start|>"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, allow_special=True)
    # a beginning where the tokenizer's own rule puts one, as the reader does without our word
    begin = [tokenizer.begin_id] if form == "llama3" else []
    assert theirs("x")["input_ids"] == [*begin, *tokenizer.encode("x")]
    assert fields_of(tmp_path / FILE)["tokenizer.ggml.add_bos_token"] is bool(begin)
    assert theirs.eos_token_id == tokenizer.eot_id
    assert theirs.pad_token_id == tokenizer.pad_id
    template = tokenizer.chat_template or ""
    for mark in ("{% generation %}", "{% endgeneration %}"):  # for training; llama.cpp's templates do not know them
        template = template.replace(mark, "")
    assert template and theirs.chat_template == template


def fields_of(path: Path) -> dict[str, Any]:
    """What the file says about the model and its tokenizer."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


TURNS = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "stops", "expected"),
    [
        (TURNS, [], {"eos": "</s>", "eot": "<|eot_id|>"}),
        (TURNS, ["<|eom_id|>", "<|eot_id|>", "</s>"], {"eos": "</s>", "eot": "<|eot_id|>", "eom": "<|eom_id|>"}),
        (TURNS.replace("<|eot_id|>", "</s>"), [], {"eos": "</s>"}),
        ("{{ 'no turns' }}", ["</s>", "<|eom_id|>"], {"eos": "</s>", "eot": "<|eom_id|>"}),
        (TURNS, ["<|eom_id|>", "<s>"], "a GGUF file has room for 3 tokens that end a text, and none for <s>"),
    ],
)
def test_every_end_of_a_turn_is_named(
    template: str, stops: list[str], expected: dict[str, str] | str, tmp_path: Path
) -> None:
    """llama.cpp stops at these three alone."""
    pytest.importorskip("transformers")
    folder = save_foreign_tokenizer("llama3", tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(folder).extended(["<|eot_id|>", "<|eom_id|>"])
    model = random_decoder(small(vocab_size=410))
    save_model_folder(
        tmp_path / "model",
        model.config,
        model.state_dict(),
        tokenizer,
        settings=GenerationSettings({}, {"eos_token_id": [tokenizer.special_ids[name] for name in stops]}),
    )
    options = ExportConfig(str(tmp_path / "model"), str(tmp_path / FILE), format="gguf")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            export(options)
        return
    export(options)
    fields = fields_of(tmp_path / FILE)
    found = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert found == {name: tokenizer.special_ids.get(expected.get(name, "")) for name in found}


def test_marks_for_training_are_taken_out_of_the_template(tmp_path: Path, transformers: ModuleType) -> None:
    folder = save_foreign_tokenizer("gpt2", tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(
        "a{%- generation -%}b{% endgeneration %}c{% if generation %}d{% endif %}"
    )
    model = random_decoder(small())
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), Tokenizer.load(folder), "F16")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=FILE)
    assert theirs.chat_template == "abc{% if generation %}d{% endif %}"


REFUSED: dict[str, tuple[ModelConfig, str]] = {
    "gpt2": (tiny_model("gpt2"), "only the Llama form without biases is written as GGUF, not gpt2"),
    "biases": (small(qkv_bias=True, attention_output_bias=True), "only the Llama form without biases"),
    "biases of the feed-forward": (small(mlp_bias=True), "without biases"),
    "another activation": (small(activation="geglu"), "with swiglu"),
    "a window": (small(sliding_window=8), "no sliding window"),
    "yarn": (small(rope_scaling={**LLAMA3, "type": "yarn"}), "yarn positions"),
    "modern": (tiny_model("modern-1m"), "transformers has no such architecture"),
    "too few rows": (small(vocab_size=300), "the tokenizer has 400 tokens and the model only 300"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_say_is_refused(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config, message = REFUSED[name]
    model = random_decoder(config)
    with pytest.raises(UserError, match=message):
        save_gguf(tmp_path / FILE, config, model.state_dict(), tokenizer, "F32")
    assert not list(tmp_path.iterdir())
    assert why_not_gguf(small(), tokenizer) is None


def test_tokenizers_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = random_decoder(small())
    sentencepiece = Tokenizer.load(save_foreign_tokenizer("llama2", tmp_path / "a"))
    with pytest.raises(UserError, match=r"only a byte-level BPE tokenizer .* not one of kind sentencepiece"):
        save_gguf(tmp_path / FILE, model.config, model.state_dict(), sentencepiece, "F32")
    folder = save_foreign_tokenizer("llama3", tmp_path / "b")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("{1,3}", "{1,2}"))
    with pytest.raises(UserError, match=r"llama\.cpp has no name for how this tokenizer splits text"):
        save_gguf(tmp_path / FILE, model.config, model.state_dict(), Tokenizer.load(folder), "F32")
    assert not (tmp_path / FILE).exists()


def test_a_number_too_large_leaves_no_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_decoder(small())
    with torch.no_grad():
        model.blocks[0].feedforward.up_proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"beyond float16's 65,504"):
        save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "F16")
    assert not list(tmp_path.iterdir())


def test_by_export(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_decoder(small())
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), tokenizer)
    export(ExportConfig(str(tmp_path / "model"), str(tmp_path / "out"), format="gguf"))
    export(ExportConfig(str(tmp_path / "model"), str(tmp_path / "small.gguf"), format="gguf", dtype="q8_0"))
    whole, eighth = (tmp_path / "out" / FILE).stat().st_size, (tmp_path / "small.gguf").stat().st_size
    assert capsys.readouterr().out.splitlines() == [
        f"GGUF file  {tmp_path / 'out' / FILE} (F32, {whole:,} bytes; {tmp_path / 'model'})",
        f"GGUF file  {tmp_path / 'small.gguf'} (Q8_0, {eighth:,} bytes; {tmp_path / 'model'})",
    ]
    assert eighth < 0.35 * whole
    _what_stays_exact_is_said(tmp_path, tokenizer, capsys)
    with pytest.raises(UserError, match="already holds a model"):
        export(ExportConfig(str(tmp_path / "model"), str(tmp_path / "out"), format="gguf"))
    with pytest.raises(UserError, match="q8_0 is for format gguf alone"):
        ExportConfig(dtype="q8_0")


def _what_stays_exact_is_said(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    for name, odd in (("odd", {}), ("odder", {"hidden_size": 40, "head_dim": 20})):
        model = random_decoder(small(intermediate_size=176, **odd))
        save_model_folder(tmp_path / name, model.config, model.state_dict(), tokenizer)
    export(ExportConfig(str(tmp_path / "odd"), str(tmp_path / "q8"), format="gguf", dtype="q8_0"))
    said = "Q8_0 but for 2 of 15 matrices, which stay F32"
    assert f"({said}, " in capsys.readouterr().out
    assert f"rounded to {said}" in (tmp_path / "q8" / "README.md").read_text()
    with pytest.raises(UserError, match="no matrix of the model has such; give float16"):
        export(ExportConfig(str(tmp_path / "odder"), str(tmp_path / "none"), format="gguf", dtype="q8_0"))
    assert not (tmp_path / "none" / FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scaling", [None, LLAMA3, {"type": "linear", "factor": 2.0}], ids=["plain", "llama3", "linear"]
)
def test_llama_cpp_computes_the_same(scaling: dict[str, Any] | None, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Its cache is float16, and positions reach beyond the original context; without the scaling it is 4 off."""
    xllamacpp = pytest.importorskip("xllamacpp")
    model = random_decoder(small(rope_scaling=scaling), std=0.1)
    save_gguf(tmp_path / FILE, model.config, model.state_dict(), tokenizer, "F32")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / FILE)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 64, 1, False, -1
    tokens = random_tokens(model.config, 1, 40)
    request = {"prompt": tokens[0].tolist(), "n_predict": 1, "n_probs": 20, "temperature": 0.0, "ignore_eos": True}
    answer = xllamacpp.Server(parameters).handle_completions(request)
    likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    with torch.no_grad():
        expected = model(tokens)[0, -1].log_softmax(-1)
    assert len(likeliest) == 20
    for token in likeliest:
        assert abs(token["logprob"] - float(expected[token["id"]])) < 0.02


@pytest.mark.slow
def test_llama_cpp_answers_the_same(tmp_path: Path) -> None:
    """From a model folder by `export` to a conversation: template, tokens, ends of turns and greedy text."""
    xllamacpp = pytest.importorskip("xllamacpp")
    tokenizer = letter_tokenizer()
    model = random_decoder(small(vocab_size=tokenizer.vocab_size, max_position_embeddings=256), std=0.1)
    with torch.no_grad():
        model.head.weight[128:256] = 0.0  # no bytes that are no letters by themselves
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), tokenizer)
    export(ExportConfig(str(tmp_path / "model"), str(tmp_path / FILE), format="gguf"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / FILE)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, -1
    server = xllamacpp.Server(parameters)
    written = SamplingConfig(max_new_tokens=24, temperature=0.0)
    for words in ("bcd", "what is it?", "x"):
        format_ = ChatFormat(tokenizer)
        prompt = format_.render_prompt([Message("user", words)])
        ours = complete(model, [prompt], written, tokenizer=tokenizer, stop_tokens=format_.stop_ids)[0]
        request = {"messages": [{"role": "user", "content": words}], "max_tokens": 24, "temperature": 0.0}
        answer = server.handle_chat_completions(request)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert answer["choices"][0]["message"]["content"] == ours.text != ""
