"""generate.py: streaming, batches, files of prompts, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import random_decoder

from lit_llm.cli import main, parse
from lit_llm.cli.generate import _Writer, generate, read_prompts
from lit_llm.config import GenerateConfig, SamplingConfig, UserError, sample_seed
from lit_llm.config.notices import with_pictures
from lit_llm.generation import complete
from lit_llm.interop import load_model_folder, save_model_folder
from lit_llm.tokenizer import Tokenizer, joined_with_next, train_character

SHORT = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=3)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run folder with a model folder in it."""
    model = random_decoder(tiny_model(max_position_embeddings=64), std=0.1)
    save_model_folder(tmp_path / "run" / "model", model.config, model.state_dict(), tokenizer)
    return tmp_path / "run"


def said(capsys: pytest.CaptureFixture[str], folder: Path, **options: Any) -> str:
    generate(GenerateConfig(str(folder), **{"sampling": SHORT, **options}))
    printed = capsys.readouterr()
    assert "tokens/s" in printed.err
    return printed.out


def expected(folder: Path, prompts: list[str], samples: int) -> str:
    """Every text written alone."""
    model, tokenizer = load_model_folder(folder / "model")
    out = ""
    for prompt in prompts:
        for sample in range(samples):
            ids = [tokenizer.begin_id, *tokenizer.encode(prompt)]
            options = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=sample_seed(3, sample))
            done = complete(model, [ids], options, tokenizer=tokenizer, stop_tokens=[tokenizer.eot_id])[0]
            out += f"{prompt}{done.text}\n\n"
    return out


def test_texts_are_the_same_streamed_and_in_batches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["def ", "import os\nimport ", "é"]
    whole = expected(folder, prompts, 3)
    assert said(capsys, folder, prompts=prompts, num_samples=3) == whole
    for batch in (1, 2, 20):
        assert said(capsys, folder, prompts=prompts, num_samples=3, stream=False, batch_size=batch) == whole
    assert said(capsys, folder / "model", prompts=prompts, num_samples=3, prefill_chunk=2) == whole


def test_a_terminal_is_given_no_orders(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no terminal gets the text as it is."""
    prompts = ["a\x1b[2Jb"]
    for options in (
        {},
        {"stream": False},
        {"log_probs": 0},
        {"sampling": replace(SHORT, temperature=0.0), "num_beams": 2},
    ):
        plain = said(capsys, folder, prompts=prompts, **options)
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            shown = said(capsys, folder, prompts=prompts, **options)
        assert shown == with_pictures(plain)
        assert "\x1b" not in shown and ("\u241b[2J" in shown) == ("\x1b[2J" in plain) == ("log_probs" not in options)


@pytest.mark.parametrize("form", ["gpt2", "qwen", "llama3", "llama2"])
def test_greedy_text_is_that_of_transformers(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With and without a rule that texts begin with a token, from the first token on; special tokens are read."""
    transformers = pytest.importorskip("transformers")
    model = random_decoder(tiny_model(max_position_embeddings=64), std=0.1)
    tokenizer = Tokenizer.load(save_foreign_tokenizer(form, tmp_path / "tokenizer"))
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), tokenizer, form="huggingface")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    encoder = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    greedy = SamplingConfig(max_new_tokens=12, temperature=0.0)
    for prompt in ("def f(x):", "one </s>two"):
        read = encoder(prompt, return_tensors="pt")
        written = theirs.generate(**read, max_new_tokens=12, do_sample=False)[0, read["input_ids"].size(1) :]
        out = said(capsys, tmp_path / "model", prompts=[prompt], sampling=greedy, log_probs=0)
        ids = [token["id"] for token in json.loads(out)["tokens"]]
        assert ids == [token for token in written.tolist() if token != tokenizer.eot_id] and len(ids) > 2


def test_special_tokens_of_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read, or are letters, of which a line says so; where the begin token is written, it is not put twice."""
    tokenizer = Tokenizer.load(folder / "model")
    turns = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    read: dict[tuple[str, ...], list[int]] = {}
    for prompt, options in (
        (turns, {}),
        (turns, {"special_tokens": False}),
        (turns, {"begin_token": "never"}),
        ("<|endoftext|>def", {}),
        ("", {}),
    ):
        config = GenerateConfig(str(folder), [prompt], **options)
        read[(prompt, *options)] = _Writer(config).texts()[0].ids
        note = "prompt 1 has <|im_start|>, <|im_end|>, names of special tokens, which the model reads as letters\n"
        assert capsys.readouterr().err == (note if "special_tokens" in options else "")
    begin = [tokenizer.eot_id]
    assert read[turns,] == begin + tokenizer.encode(turns, allow_special=True)
    assert read[turns,].count(tokenizer.im_start_id) == 2
    assert read[turns, "special_tokens"] == begin + tokenizer.encode(turns)
    assert begin + read[turns, "begin_token"] == read[turns,]
    assert read["<|endoftext|>def",] == begin + tokenizer.encode("def") and read["",] == begin
    with pytest.raises(UserError, match="a prompt is empty"):
        said(capsys, folder, begin_token="never")
    generate(GenerateConfig(str(folder), ["x"], sampling=SHORT))
    assert "texts begin with <|endoftext|>, as documents did in training" in capsys.readouterr().err


def test_a_prompt_that_ends_inside_a_token_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After "def f():" the end of the line and the indent of the next one are a single token."""
    tokenizer = Tokenizer.load(folder / "model")
    assert len(tokenizer.encode("\n    ")) == 1 and tokenizer.encode("def f():\n")[-1] == tokenizer.encode("\n")[0]
    config = GenerateConfig(str(folder), ["def f():", "<|im_start|>user\n", "def f():\n"])
    _Writer(config).texts()
    note = "prompt 3 ends with white space, which this tokenizer joins with what follows: it goes on better without\n"
    assert capsys.readouterr().err == note
    letters = train_character(["def f():\n"])
    assert joined_with_next(letters, "def f():\n", "prompt 1") == ""


def test_prompts_come_from_options_and_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, rows = tmp_path / "lines.txt", tmp_path / "rows.jsonl"
    lines.write_text("one\n\n two \u2028x\n")
    rows.write_text('{"prompt": "a\\nb"}\n{"text": "c"}\n')
    assert read_prompts(GenerateConfig(prompts=["zero"], prompts_file=str(lines))) == ["zero", "one", " two \u2028x"]
    assert read_prompts(GenerateConfig(prompts_file=str(rows))) == ["a\nb", "c"]
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "marked.txt").write_text("one\r\ntwo\r\n", encoding=encoding, newline="")
        assert read_prompts(GenerateConfig(prompts_file=str(tmp_path / "marked.txt"))) == ["one", "two"]
    assert read_prompts(GenerateConfig()) == [""]
    assert said(capsys, folder, prompts_file=str(rows), stream=False) == expected(folder, ["a\nb", "c"], 1)
    rows.write_text('{"prompt": "a"}\n{"question": "b"}\n')
    with pytest.raises(UserError, match=r'rows.jsonl, line 2: not a JSON object with a "prompt"'):
        read_prompts(GenerateConfig(prompts_file=str(rows)))
    with pytest.raises(UserError, match=r"missing.txt: cannot be read"):
        read_prompts(GenerateConfig(prompts_file=str(tmp_path / "missing.txt")))


def test_log_probabilities_are_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, folder, prompts=["def ", "x"], log_probs=2, batch_size=1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert "".join(f"{row['prompt']}{row['text']}\n\n" for row in rows) == expected(folder, ["def ", "x"], 1)
    for row in rows:
        assert row["finish_reason"] in ("stop", "length")
        for token in row["tokens"]:
            assert token["log_prob"] <= token["alternatives"][0]["log_prob"] <= 0.0
            assert len(token["alternatives"]) == 2


def test_a_draft_model_and_a_beam_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = SamplingConfig(max_new_tokens=12, temperature=0.0)
    plain = said(capsys, folder, prompts=["def "], sampling=greedy)
    generate(GenerateConfig(str(folder), ["def "], sampling=greedy, draft_model=str(folder)))
    printed = capsys.readouterr()
    assert printed.out == plain and "guesses of the draft model were kept" in printed.err
    assert said(capsys, folder, prompts=["def "], sampling=greedy, num_beams=3) != ""


def test_text_is_held_to_a_form(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("outlines_core")
    assert said(capsys, folder, prompts=["x="], regex="(12|34)") in ("x=12\n\n", "x=34\n\n")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        assert isinstance(json.loads(said(capsys, folder, json_schema=given))["a"], bool)
    with pytest.raises(UserError, match="has 70000 characters; at most 65536 are compiled"):
        said(capsys, folder, regex="a" * 70_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin_token": "maybe"}, "begin_token is 'maybe'; it must be auto, always or never"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 8}, "batch_size is for texts that are written at once, .*; add --stream false"),
        ({"batch_size": 8, "num_beams": 2}, "with num_beams one text is written after the other; leave batch_size"),
        (
            {"stream": False, "draft_model": "x"},
            "with draft_model one text .*; leave batch_size out and stream at true",
        ),
        ({"log_probs": -1}, "log_probs is -1"),
        ({"regex": "a", "json_schema": "{}"}, "regex and json_schema cannot be had together"),
        ({"num_beams": 2, "draft_model": "x"}, "num_beams and draft_model cannot be had together"),
        ({"num_beams": 2, "num_samples": 2}, "a beam search has one outcome"),
        ({"num_beams": 2, "log_probs": 1}, "num_beams cannot be had together with log_probs"),
        ({"length_penalty": 2.0}, "length_penalty is for a beam search alone"),
        ({"length_penalty": float("inf"), "num_beams": 2}, "length_penalty is inf"),
        ({"draft_tokens": 5}, "draft_tokens is for a draft model alone"),
        ({"num_beams": 2, "sampling": SamplingConfig(top_k=3)}, "a beam search draws nothing"),
        (
            {"draft_model": "x", "sampling": SamplingConfig(presence_penalty=1.0)},
            "draft_model cannot be had together with penalties",
        ),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(**options)


def test_every_option_is_reached_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--prompts", "[ab, cd]", "--sampling.logit_bias", "{5: 100}", "--stream", "false"]
    words += ["--sampling.max_new_tokens", "3", "--sampling.stop_strings", "[zz]", "--sampling.stop_token_ids", "[7]"]
    words += ["--sampling.min_p", "0.1", "--sampling.frequency_penalty", "0.1", "--sampling.context_full", "stop"]
    config = parse(GenerateConfig, words)
    assert config.sampling.logit_bias == {5: 100.0} and config.sampling.stop_token_ids == [7]
    main(GenerateConfig, generate, words)
    spelled = Tokenizer.load(folder / "model").decode([5] * 3)
    assert capsys.readouterr().out == f"ab{spelled}\n\ncd{spelled}\n\n"
