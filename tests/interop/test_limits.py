"""Where a model cannot go is known before it is trained."""

from __future__ import annotations

import pytest
from conftest import MakeRun, tiny_model

from lit_llm.config import ModelConfig
from lit_llm.interop import export_limits
from lit_llm.stages.pretrain import pretrain
from lit_llm.tokenizer import Tokenizer

LIMITS: dict[str, tuple[ModelConfig, list[str]]] = {
    "all": (tiny_model("llama-10m"), []),
    "no GGUF": (
        tiny_model("gpt2"),
        ["it cannot be written as GGUF (only the Llama form without biases is written as GGUF, not gpt2)"],
    ),
    "code": (
        tiny_model("modern-1m"),
        ["transformers loads it with trust_remote_code=True only", "it cannot be written as GGUF"],
    ),
    "reward model": (tiny_model("gpt2").as_score(), []),
    "critic": (tiny_model("llama-10m", value_head=True), []),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_others_will_not_do_with_a_model(name: str, tokenizer: Tokenizer) -> None:
    config, limits = LIMITS[name]
    assert export_limits(config, tokenizer) == limits


def test_a_run_says_so_when_it_starts(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {"max_steps": 2, "val_every_n_steps": None}
    result = pretrain(make_run(architecture="modern-1m", trainer=trainer))
    assert result is not None
    assert (result.model_folder / "modeling_lit_llm.py").is_file()
    line = "the finished model: transformers loads it with trust_remote_code=True only; it cannot be written as GGUF\n"
    assert line in capsys.readouterr().err
